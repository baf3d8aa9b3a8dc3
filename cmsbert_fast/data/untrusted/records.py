"""Records of arrays and long texts: where their bytes are in the file.

Nothing is copied before a reader asks for it, whatever the size.
"""

import math
import sys
from typing import Any

import numpy as np

from cmsbert_fast.data.example import DataError

_DIMENSIONS = 8
_ELEMENTS = 1 << 48
_EMPTY = 1 << 20  # the longest dimension of an array without elements: no byte of the file pays for it


class UnsafePickleError(DataError):
    """The pickle holds something that no data file of this field needs; nothing in it was run."""


class NumpyType:
    """A numpy type under construction: its string without byte order, then the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = ""

    @property
    def dtype(self) -> np.dtype:
        return np.dtype((self.order or "=") + self.code)


class LongText:
    """UTF-8 text that is still in the file; ``encoded``: the bytes that ``_codecs.encode(text, 'latin1')`` makes."""

    __slots__ = ("_text", "encoded", "view")

    def __init__(self, view: memoryview, encoded: bool = False) -> None:
        self.view = view
        self.encoded = encoded
        self._text: str | None = None

    def __len__(self) -> int:
        return len(self.view)

    def load(self) -> str | bytes:
        text = str(self.view, "utf-8", "surrogatepass")
        return text.encode("latin-1") if self.encoded else text

    def text(self) -> str:
        """The text. It is decoded once: a file may refer to it any number of times.

        Raises:
            DataError: It is encoded bytes.
        """
        if self.encoded:
            raise DataError("Expected text, found bytes.")
        if self._text is None:
            self._text = str(self.view, "utf-8", "surrogatepass")
        return self._text


class Array:
    """An array in the file: its type, its shape, and where its bytes are.

    Attributes:
        shape: Its dimensions.
        dtype: Its numpy type; None for an array of objects.
        items: The objects of an object array in C order, else None.
    """

    __slots__ = ("_axes", "_data", "_fortran", "_stored", "built", "dtype", "items", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype: np.dtype | None = None
        self.items: list[Any] | None = None
        self._data: Any = b""
        self._fortran = False
        self._axes: tuple[int, ...] | None = None
        self._stored: tuple[int, ...] = (0,)
        self.built = False

    def fill(self, shape: Any, kind: Any, fortran: bool, data: Any) -> None:
        """Sets type, shape and bytes.

        Raises:
            UnsafePickleError: They do not agree.
        """
        if self.built:
            raise UnsafePickleError("it fills one array twice")
        if not isinstance(shape, tuple) or len(shape) > _DIMENSIONS or not isinstance(kind, NumpyType):
            raise UnsafePickleError("an array has no proper shape and type")
        if not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
            raise UnsafePickleError("an array has a negative or absurd shape")
        size = math.prod(shape)
        if size > _ELEMENTS or (size == 0 and max(shape) > _EMPTY):
            raise UnsafePickleError(f"an array has the absurd shape {shape}")
        if kind.code[0] == "O":
            if not isinstance(data, list) or len(data) != size:
                raise UnsafePickleError("an array of objects does not hold as many as its shape says")
            self.items = data
        else:
            self.dtype = kind.dtype
            needed = size * self.dtype.itemsize
            if not isinstance(data, bytes | bytearray | memoryview | LongText):
                raise UnsafePickleError("an array does not hold bytes")
            held = len(data)
            # Text holds one or two bytes for each byte of the array; the exact count is checked when it is decoded.
            fits = held / 2 <= needed <= held if isinstance(data, LongText) else held == needed
            if not fits:
                raise UnsafePickleError(f"an array of shape {shape} holds {held} bytes, not {needed}")
        self.shape, self._data, self._fortran, self.built = shape, data, bool(fortran), True

    def transpose(self, axes: Any) -> None:
        """Permutes the axes, as numpy writes arrays that are neither in C nor in Fortran order."""
        if type(axes) is not tuple or not all(type(a) is int for a in axes):
            raise UnsafePickleError("an array has no proper order of axes")
        if sorted(axes) != list(range(len(self.shape))):
            raise UnsafePickleError("an array has no proper order of axes")
        self._stored, self._axes = self.shape, axes
        self.shape = tuple(self.shape[a] for a in axes)

    def load(self) -> np.ndarray:
        """The array, a view of the file wherever the file holds its bytes as they are.

        Raises:
            DataError: It is an array of objects.
        """
        if self.dtype is None:
            raise DataError("Expected an array of numbers or strings, found one of objects.")
        data: Any = self._data.load() if isinstance(self._data, LongText) else self._data
        if len(data) != math.prod(self.shape) * self.dtype.itemsize:
            raise UnsafePickleError(f"an array of shape {self.shape} holds {len(data)} bytes")
        flat = np.frombuffer(data, dtype=self.dtype) if len(data) else np.zeros(0, dtype=self.dtype)
        if self.dtype.kind == "U" and flat.size and flat.view(self.dtype.byteorder + "u4").max() > sys.maxunicode:
            raise UnsafePickleError("a string in an array holds an invalid character")  # numpy would make it a str
        if self._axes is not None:
            return flat.reshape(self._stored).transpose(self._axes)
        return flat.reshape(self.shape, order="F" if self._fortran else "C")

    def __len__(self) -> int:
        if not self.shape:
            raise DataError("Expected an array of several elements, found one number.")
        return self.shape[0]
