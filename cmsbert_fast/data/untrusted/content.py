"""The content of a loaded pickle as text, arrays and lists, made only when it is asked for."""

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.text import whole
from cmsbert_fast.data.untrusted import limits
from cmsbert_fast.data.untrusted.limits import TEXT
from cmsbert_fast.data.untrusted.records import Array, LongText

_BLOCK = 1024  # elements of an array that are objects at a time


def text_of(value: Any) -> str:
    """A string of either Python as text (UTF-8, else Latin-1).

    Raises:
        DataError: It is not a string, or it is longer than 100,000 characters.
    """
    if not isinstance(value, str | bytes | memoryview | LongText):
        raise DataError(f"Expected text, found {type(value).__name__}.")
    if isinstance(value, str) or len(value) <= 4 * TEXT:  # bytes of a character in UTF-8
        text = whole(_decoded(value))
        if len(text) <= TEXT:
            return text
    raise DataError(f"Shorten the texts: one of them is longer than {TEXT:,} characters.")


def _decoded(value: str | bytes | memoryview | LongText) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, LongText):
        return value.text()
    raw = bytes(value)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


class Reading:
    """Limits how much one pass over a split may look at: a million examples can name one text or array.

    `Budget` charges what examples hold. This charges what leaves nothing in them: text that is white space, and frames
    that are cut off.
    """

    def __init__(self, path: Path) -> None:
        self._left = limits.limit_of(path)

    def spend(self, size: int) -> None:
        """Charge bytes before they are taken.

        Raises:
            DataError: All of them together are many times larger than the file.
        """
        self._left -= size
        if self._left < 0:
            raise DataError("Do not use this file: its examples together are many times larger than it is.")

    def text_of(self, value: Any) -> str:
        """`text_of`.

        Raises:
            DataError: It is not a string, is too long, or all texts together are many times larger than the file.
        """
        text = text_of(value)
        self.spend(len(text))
        return text

    def texts_of(self, values: Collection[Any]) -> list[str]:
        """`texts_of`, charged by number (one byte of the file can be a text) and by the size of an array of them."""
        self.spend(limits.TEXT_SIZE * len(values) + getattr(values, "nbytes", 0))
        return texts_of(values)


def texts_of(values: Collection[Any]) -> list[str]:
    """Strings and numbers as text; a string that occurs several times is decoded once, to one object.

    Raises:
        DataError: One of them is neither.
    """
    known: dict[int, str] = {}
    result = []
    lasting = isinstance(values, list | tuple)  # it keeps its parts alive: their identities stay theirs
    for value in values:
        if isinstance(value, str):
            result.append(whole(value))
            continue
        text = known.get(id(value))
        if text is None:
            text = str(value) if isinstance(value, int | float) else text_of(value)
            if lasting:
                known[id(value)] = text
        result.append(text)
    return result


def few_of(value: Any, limit: int) -> np.ndarray | None:
    """`array_of`, flat, for a value that should have few elements; None, without a look at them, where it has more.

    Raises:
        DataError: It is not an array of numbers.
    """
    shape = value.shape if isinstance(value, Array) else (len(value),) if isinstance(value, list | tuple) else ()
    return array_of(value).ravel() if math.prod(shape) <= limit else None


def array_of(value: Any) -> np.ndarray:
    """A record of an array, or a list of numbers, as a numpy array.

    Raises:
        DataError: It is neither.
    """
    if isinstance(value, Array):
        return value.load()
    if isinstance(value, bool | int | float):
        return np.asarray(value)
    if isinstance(value, list | tuple) and all(isinstance(v, bool | int | float) for v in value):
        return np.asarray(value, dtype=np.float64)
    raise DataError(f"Expected an array of numbers, found {type(value).__name__}.")


class _Items:
    """The elements of an array as Python objects, a block at a time: an object is larger than its element."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.nbytes = array.nbytes

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Any]:
        for begin in range(0, len(self._array), _BLOCK):
            yield from self._array[begin : begin + _BLOCK].tolist()

    def __contains__(self, value: object) -> bool:
        return any(value == item for item in self)


def items_of(value: Any) -> Collection[Any]:
    """The parts of a list, a tuple, or an array (n,) or (n, 1) of objects, strings or numbers.

    Raises:
        DataError: It is none of these.
    """
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, Array) and value.shape and math.prod(value.shape[1:]) == 1:
        return value.items if value.items is not None else _Items(value.load().reshape(-1))
    raise DataError(f"Expected a list, found {type(value).__name__}.")
