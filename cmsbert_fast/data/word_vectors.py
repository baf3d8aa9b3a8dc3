"""Word vectors from a text file in GloVe's format: a line a word, the word and then its numbers.

Files are large (glove.840B.300d.txt: 5.6 GB). One is mapped and scanned once, and only the lines of needed words are
parsed.
"""

import json
import math
import mmap
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from cmsbert_fast import atomic
from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.mapped import Resident
from cmsbert_fast.data.untrusted.files import open_regular

_LONGEST_LINE = 1 << 16  # bytes; enough for 3,000 numbers of 20 digits
_PUNCTUATION = str.maketrans("", "", string.punctuation + "\N{RIGHT SINGLE QUOTATION MARK}\N{HORIZONTAL ELLIPSIS}")


def spellings(word: str) -> Iterator[str]:
    """The forms under which a word is looked up, in order: as written, in lower case, stripped of punctuation."""
    yield word
    yield word.lower()
    yield word.lower().translate(_PUNCTUATION)


@dataclass(frozen=True)
class WordVectors:
    """Frozen vectors of words.

    Attributes:
        table: float32 (n + 1, e); row 0 is the vector of every unknown word, the mean of the others.
        words: The n words of the other rows, in order.
        source: Where they are from, for reports.
    """

    table: np.ndarray
    words: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "_row", {word: k for k, word in enumerate(self.words, 1)})

    @property
    def size(self) -> int:
        """e, numbers of a vector."""
        return self.table.shape[1]

    def row(self, word: str) -> int:
        """The row of a word in any of its spellings; 0 for an unknown word."""
        rows: dict[str, int] = self._row  # type: ignore[attr-defined]
        return next((rows[form] for form in spellings(word) if form in rows), 0)

    def rows(self, words: Sequence[str]) -> np.ndarray:
        """The vectors of words, float32 (n, e)."""
        return self.table[np.array([self.row(word) for word in words], dtype=np.int64)]

    def save(self, path: Path) -> None:
        """Writes a safetensors file: the table, and the words in its metadata."""
        content = save({"vectors": self.table}, {"words": json.dumps(self.words), "source": self.source})
        atomic.replace_file(path, lambda draft: draft.write_bytes(content))

    @classmethod
    def load(cls, path: Path) -> "WordVectors":
        """What :meth:`save` wrote.

        Raises:
            ValueError: The file holds something else.
        """
        open_regular(path).close()
        with safe_open(path, framework="np") as tensors:
            if list(tensors.keys()) != ["vectors"]:
                raise ValueError(f"{path.name} does not hold word vectors alone")
            table, more = tensors.get_tensor("vectors"), tensors.metadata() or {}
        words = json.loads(more.get("words", "null"))
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{path.name} does not say whose vectors it holds")
        if table.dtype != np.float32 or table.ndim != 2 or len(table) != len(words) + 1:
            raise ValueError(f"{path.name} does not hold a vector for each of its words")
        return cls(table, tuple(words), more.get("source", path.name))

    def coverage(self, words: Iterable[str]) -> str:
        """How many of the words, which may be repeated, have a vector, in a sentence."""
        counts: dict[str, int] = {}
        for word in words:
            counts[word] = counts.get(word, 0) + 1
        known = [word for word in counts if self.row(word)]
        every, found = sum(counts.values()), sum(counts[word] for word in known)
        return (
            f"word vectors from {self.source}: {self.size} numbers each, for {len(known)} of {len(counts)} words and "
            f"{found / max(1, every):.1%} of the text; the others get the mean vector"
        )


def select(found: dict[str, np.ndarray], words: Iterable[str], source: str) -> WordVectors:
    """The vectors, of those found by spelling, that the words need.

    Raises:
        DataError: No word has one.
    """
    used: dict[str, np.ndarray] = {}
    for word in words:
        form = next((form for form in spellings(word) if form in found), None)
        if form is not None:
            used[form] = found[form]
    if not used:
        raise DataError(f"Give other word vectors: {source} has none for any word of the data.")
    table = np.stack([np.zeros_like(next(iter(used.values()))), *used.values()]).astype(np.float32)
    table[0] = table[1:].mean(axis=0, dtype=np.float64)
    return WordVectors(table, tuple(used), source)


def read_vectors(path: Path, words: Iterable[str]) -> WordVectors:
    """The vectors of words from a text file in GloVe's or word2vec's format.

    Of several lines for a spelling, the first counts.

    Raises:
        DataError: The file cannot be read, is not of that format, or has no vector for any of the words.
    """
    known = set(words)
    needed = {form.encode(): form for word in known for form in spellings(word) if form}
    try:
        with open_regular(path) as file:
            first = file.readline(_LONGEST_LINE)
            size = _size_of(first, path)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                found = _scan(data, needed, size, path)
    except (OSError, ValueError) as error:
        raise DataError(f"Give a text file of word vectors: {path} cannot be read ({error!s:.200}).") from error
    return select(found, known, path.name)


def _size_of(first: bytes, path: Path) -> int:
    """Numbers of a vector, from the first line of a file: a word and its numbers, or word2vec's two counts."""
    parts = first.split()
    try:
        numbers = [float(part) for part in (parts if len(parts) == 2 else parts[1:])]
    except ValueError:
        numbers = []
    if not numbers or not first.endswith(b"\n") or not all(map(math.isfinite, numbers)):
        raise _wrong(path, 1, "does not hold a word and its numbers")
    return int(numbers[1]) if len(parts) == 2 else len(numbers)


def _scan(data: mmap.mmap, needed: dict[bytes, str], size: int, path: Path) -> dict[str, np.ndarray]:
    """The vectors of the needed words."""
    found: dict[str, np.ndarray] = {}
    resident = Resident(data)
    number = 0
    while line := data.readline():
        number += 1
        resident.see(len(line))
        form = needed.get(line[: line.find(b" ")])
        if form is None or form in found:
            continue
        # The word is all but the last fields: some of glove.840B hold spaces.
        parts = line.rstrip().rsplit(b" ", size)
        if number == 1 and len(line.split()) == 2 and size > 1:
            continue  # word2vec's counts
        if len(parts) != size + 1:
            raise _wrong(path, number, f"does not hold a word and {size} numbers")
        if parts[0] != form.encode():
            continue
        try:
            vector = np.array(parts[1:], dtype=np.float32)
        except ValueError:
            raise _wrong(path, number, f"does not hold a word and {size} numbers") from None
        if not np.isfinite(vector).all():
            raise _wrong(path, number, "holds a number that is not finite")
        found[form] = vector
    return found


def _wrong(path: Path, line: int, what: str) -> DataError:
    return DataError(f"Give an undamaged text file of word vectors, or 'bert': line {line} of {path.name} {what}.")
