"""How much may be made of an untrusted file, in proportion to its size."""

from collections.abc import Iterable
from pathlib import Path

from cmsbert_fast.data.example import DataError, Example

MEMORY_FACTOR = 16  # bytes that parsing a pickle may take for each byte of the file,
MEMORY_FLOOR = 64 << 20  # and for the smallest of files
RATIO, FLOOR = 10, 64 << 20  # the same for streams and tables
TEXT = 100_000  # characters of one text: a transcript of hours has fewer
ROW = 200  # bytes of a word or a label while its video is read
TEXT_SIZE = 150  # bytes of a short text, its places in lists and dictionaries included
_EXAMPLE = 600  # bytes of an example, its two arrays and its places, whatever it holds


def memory_for(size: int) -> int:
    """Bytes that a pickle of ``size`` bytes may take while it is parsed, and its examples afterwards."""
    return MEMORY_FACTOR * size + MEMORY_FLOOR


def limit_of(path: Path) -> int:
    """`memory_for` a file."""
    return memory_for(path.stat().st_size)


class Budget:
    """Bytes that all examples of a source together may hold, including those that are left out afterwards.

    A pickle can name one array a million times, and any number of segments can overlap in a stream. What is made of
    them must stay in proportion to the files.
    """

    def __init__(self, limit: int) -> None:
        self.left = limit

    @classmethod
    def of_streams(cls, files: Iterable[Path]) -> "Budget":
        """The budget of streams and tables."""
        return cls(RATIO * sum(file.stat().st_size for file in files) + FLOOR)

    def reserve(self, size: int) -> None:
        """Check that so many bytes are left, without spending them.

        Raises:
            DataError: They are not.
        """
        if size > self.left:
            raise DataError(
                "Do not use this file: its examples together are many times larger than it is (if you trust it, save "
                "it without compression)."
            )

    def spend(self, size: int) -> None:
        """Charge bytes. Raises as `reserve` does."""
        self.reserve(size)
        self.left -= size

    def see(self, example: Example) -> None:
        """Charge an example. Raises as `reserve` does."""
        arrays = (example.visual, example.acoustic, *(example.frame_words or ()))
        self.spend(_EXAMPLE + sum(array.nbytes for array in arrays) + _text_size(example))


def _text_size(example: Example) -> int:
    """Bytes that the id and words of an example take, in memory or as JSON, whichever is more."""
    return sum(56 + len(s) * (1 if s.isascii() and s.isprintable() else 6) for s in (example.id, *example.words))
