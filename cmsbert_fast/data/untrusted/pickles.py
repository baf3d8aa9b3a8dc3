"""Pickles from strangers, read without running anything in them.

Python's unpickler calls what a file names. This one has no calls to make: it interprets the opcodes over the
memory-mapped file and builds numbers, strings, lists, tuples, dictionaries and records of arrays. A name outside the
exact list below, an opcode that builds objects, a size the file does not hold, or more objects than its size warrants,
end the reading.

Arrays are views of the file: nothing is copied before a reader asks for it, whatever the size.

Allowed names, each with the one form in which numpy and the standard library write it:
    numpy.core.multiarray, numpy._core.multiarray: _reconstruct, scalar      numpy: ndarray, dtype
    numpy.core.numeric, numpy._core.numeric: _frombuffer (protocol 5)        _codecs: encode (bytes in protocols 0-2)
    collections: OrderedDict, defaultdict                                   builtins, __builtin__: bytes (empty only)
    any module's return_unk, the default of MISA's dictionary, as a name that is never called
"""

import codecs
import math
import mmap
import re
import struct
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data.example import DataError, whole

MEMORY_FACTOR = 16  # bytes that parsing may take for each byte of the file,
MEMORY_FLOOR = 64 << 20  # and for the smallest of files

_RECONSTRUCT, _SCALAR, _NDARRAY, _DTYPE = "numpy array", "numpy scalar", "numpy.ndarray", "numpy.dtype"
_FROMBUFFER, _ENCODE, _ORDERED, _DEFAULT = "numpy buffer", "_codecs.encode", "OrderedDict", "defaultdict"
_BYTES, _STUB = "bytes", "return_unk"

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DTYPE,
    ("_codecs", "encode"): _ENCODE,
    ("collections", "OrderedDict"): _ORDERED,
    ("collections", "defaultdict"): _DEFAULT,
    ("builtins", "bytes"): _BYTES,
    ("__builtin__", "bytes"): _BYTES,
}
_TYPE = re.compile(r"(?:b1|[iu][1248]|f[248]|S[1-9]\d{0,5}|U[1-9]\d{0,5}|O8|O4)")
_INTEGER = re.compile(rb"-?\d{1,40}L?")
_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")
_DIMENSIONS = 8
_ELEMENTS = 1 << 48
_EMPTY = 1 << 20  # the longest dimension of an array without elements: no byte of the file pays for it
_LONG = 1 << 16  # bytes; longer text stays in the file until it is asked for
_BLOCK = 1024  # elements of an array that are objects at a time
TEXT_SIZE = 150  # bytes of a short text, with its places in a list and in what knows it again
_LINE = 512  # bytes of a text argument that is a number or a name
_TEXT = 100_000  # characters of one text, at most: a transcript of hours has fewer
_KEY_LENGTH = 1000  # characters: one key can be decoded, hashed and compared a million times
_KEY = 1 << 60  # whole numbers up to here are their own hash: larger ones can be made to collide


class UnsafePickleError(DataError):
    """The pickle holds something that no data file of this field needs; nothing in it was run."""


class _Name:
    """A name from the allow-list."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class _Type:
    """A numpy type under construction: its string without byte order, then the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = ""

    @property
    def dtype(self) -> np.dtype:
        return np.dtype((self.order or "=") + self.code)


class LongText:
    """Text that is still in the file, UTF-8; ``encoded`` once ``_codecs.encode(text, 'latin1')`` makes it bytes."""

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
        """The text, decoded once: a file may refer to it any number of times.

        Raises:
            DataError: It is encoded bytes.
        """
        if self.encoded:
            raise DataError("Expected text, found bytes.")
        if self._text is None:
            self._text = str(self.view, "utf-8", "surrogatepass")
        return self._text


class Array:
    """An array as the file holds it: type, shape, and where its bytes are.

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
        """Set type, shape and bytes, if they agree."""
        if self.built:
            raise UnsafePickleError("it fills one array twice")
        if not isinstance(shape, tuple) or len(shape) > _DIMENSIONS or not isinstance(kind, _Type):
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
                raise UnsafePickleError("an array holds no bytes")
            held = len(data)
            # Text holds one or two bytes for each byte of the array; the exact count is checked when it is decoded.
            fits = held / 2 <= needed <= held if isinstance(data, LongText) else held == needed
            if not fits:
                raise UnsafePickleError(f"an array of shape {shape} holds {held} bytes, not {needed}")
        self.shape, self._data, self._fortran, self.built = shape, data, bool(fortran), True

    def transpose(self, axes: Any) -> None:
        """Permute the axes, as numpy writes arrays that are neither in C nor in Fortran order."""
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
            raise UnsafePickleError("a string in an array holds what is no character")  # numpy would make it a str
        if self._axes is not None:
            return flat.reshape(self._stored).transpose(self._axes)
        return flat.reshape(self.shape, order="F" if self._fortran else "C")

    def __len__(self) -> int:
        if not self.shape:
            raise DataError("Expected an array of several elements, found one number.")
        return self.shape[0]


_MARK = object()
_UNSET = object()


class _Machine:
    """The pickle machine without calls: a stack, a memo, and a budget of memory."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self.view = memoryview(data)
        self.size = len(data)
        self.at = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under the open marks
        self.memo: list[Any] = []
        self.sparse: dict[int, Any] = {}
        self.left = MEMORY_FACTOR * self.size + MEMORY_FLOOR

    # Reading the file

    def take(self, count: int) -> memoryview:
        at, end = self.at, self.at + count
        if count < 0 or end > self.size:
            raise UnsafePickleError(f"it ends within an element of {count} bytes: it is truncated or damaged")
        self.at = end
        return self.view[at:end]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self, limit: int | None = None) -> bytes:
        end = self.size if limit is None else min(self.size, self.at + limit)
        stop = self.data.find(b"\n", self.at, end)
        if stop < 0:
            raise UnsafePickleError("a line in it does not end: it is truncated or damaged")
        found = bytes(self.view[self.at : stop])
        self.at = stop + 1
        return found

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise UnsafePickleError(f"it asks for more than {MEMORY_FACTOR} times its size in memory")

    # Building

    def push(self, value: Any, cost: int) -> None:
        self.left -= cost + 16
        if self.left < 0:
            self.spend(0)
        self.stack.append(value)

    def text(self, size: int) -> None:
        view = self.take(size)
        if size > _LONG:
            self.push(LongText(view), 100)
        else:
            value = str(view, "utf-8", "surrogatepass")
            self.push(value, sys.getsizeof(value))

    def binary(self, size: int) -> None:
        view = self.take(size)
        if size > 256:
            self.push(view, 200)  # stays in the file
        else:
            self.push(bytes(view), 40 + size)

    def integer(self, line: bytes) -> None:
        if not _INTEGER.fullmatch(line):
            raise UnsafePickleError(f"it holds a damaged number {line!r:.60}")
        self.push(int(line.rstrip(b"L")), 48)

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.below.pop()
        return items

    def key(self, key: Any) -> Any:
        if type(key) in (str, bytes) and len(key) > _KEY_LENGTH:
            raise UnsafePickleError(f"a dictionary has a key of {len(key)} characters")
        if type(key) is str:
            return key
        if type(key) is bytes:
            return key.decode("latin-1")
        if type(key) is bool or (type(key) is int and -_KEY < key < _KEY):
            return key
        raise UnsafePickleError(f"a dictionary has a key of type {type(key).__name__}")

    def set_items(self, target: Any, items: list[Any]) -> None:
        if type(target) is not dict or len(items) % 2:
            raise UnsafePickleError("it sets items of what is no dictionary")
        self.spend(60 * len(items))
        for k in range(0, len(items), 2):
            target[self.key(items[k])] = items[k + 1]

    def append(self, target: Any, items: list[Any]) -> None:
        if type(target) is not list:
            raise UnsafePickleError("it appends to what is no list")
        self.spend(16 * len(items))
        target.extend(items)

    def find(self, module: Any, name: Any) -> None:
        if not (
            isinstance(module, str) and isinstance(name, str) and _NAME.fullmatch(module) and _NAME.fullmatch(name)
        ):
            raise UnsafePickleError("it asks for a name that is none")
        kind = _STUB if name == "return_unk" else _ALLOWED.get((module, name))
        if kind is None:
            raise UnsafePickleError(f"it asks for {module}.{name}, which no data file needs")
        self.push(_Name(kind), 48)

    def remember(self, place: int) -> None:
        value = self.stack[-1]
        if place < 0:
            raise UnsafePickleError("it defines a reference with a negative number")
        memo = self.memo
        if place < len(memo):
            memo[place] = value
            return
        if place <= len(memo) + 1:  # Python 2's cPickle begins with 1
            self.spend(32)
            memo.extend([_UNSET] * (place - len(memo)))
            memo.append(value)
        else:
            self.spend(200)
            self.sparse[place] = value

    def recall(self, place: int) -> None:
        value = self.memo[place] if 0 <= place < len(self.memo) else self.sparse.get(place, _UNSET)
        if value is _UNSET:
            raise UnsafePickleError("it refers to what it did not define")
        self.push(value, 0)

    # What REDUCE and BUILD mean for the allowed names

    def reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(name) is not _Name or type(arguments) is not tuple:
            raise UnsafePickleError("it calls what is no name of numpy or the standard library")
        self.push(self.apply(name.kind, arguments), 200)

    def apply(self, kind: str, arguments: tuple[Any, ...]) -> Any:
        if kind == _RECONSTRUCT and len(arguments) == 3:
            subtype, shape, code = arguments
            if type(subtype) is _Name and subtype.kind == _NDARRAY and shape == (0,) and code in (b"b", "b"):
                return Array()
        elif kind == _DTYPE and 1 <= len(arguments) <= 3 and all(flag in (0, 1) for flag in arguments[1:]):
            code = arguments[0].decode("latin-1") if type(arguments[0]) is bytes else arguments[0]
            if type(code) is str:
                bare = code.lstrip("<>|=") if len(code) < 12 else code
                if _TYPE.fullmatch(bare):
                    found = _Type(bare)
                    found.order = code[: len(code) - len(bare)].replace("|", "")[:1]
                    return found
                raise UnsafePickleError(f"it holds an array of type {code!r:.40}")
        elif kind == _SCALAR and len(arguments) == 2 and type(arguments[0]) is _Type:
            if arguments[0].code[0] != "O":
                scalar = Array()
                scalar.fill((), arguments[0], False, arguments[1])
                value = scalar.load().item()
                self.spend(sys.getsizeof(value))
                return value
        elif kind == _FROMBUFFER and len(arguments) in (4, 5) and type(arguments[1]) is _Type:
            order, axes = arguments[3], arguments[4] if len(arguments) == 5 else None
            if arguments[1].code[0] != "O" and (order in ("C", "F") or (order == "K" and axes is not None)):
                array = Array()
                array.fill(arguments[2], arguments[1], order == "F", arguments[0])
                if order == "K":
                    array.transpose(axes)
                return array
        elif kind == _ENCODE and len(arguments) == 2 and arguments[1] in ("latin1", b"latin1"):
            text = arguments[0]
            if type(text) is LongText and not text.encoded:
                return LongText(text.view, encoded=True)
            if type(text) is str:
                self.spend(len(text))
                return text.encode("latin-1")
        elif kind == _ORDERED and len(arguments) <= 1:
            items: dict[Any, Any] = {}
            for pair in self.pairs(arguments):
                self.set_items(items, pair)
            return items
        elif kind == _DEFAULT and (not arguments or (len(arguments) == 1 and self.is_stub(arguments[0]))):
            return {}
        elif kind == _BYTES and not arguments:
            return b""
        raise UnsafePickleError(f"it uses {kind} as no data file does")

    @staticmethod
    def is_stub(value: Any) -> bool:
        return value is None or (type(value) is _Name and value.kind == _STUB)

    @staticmethod
    def pairs(arguments: tuple[Any, ...]) -> list[list[Any]]:
        pairs = arguments[0] if arguments else []
        if type(pairs) is not list or not all(type(p) in (list, tuple) and len(p) == 2 for p in pairs):
            raise UnsafePickleError("it makes an OrderedDict of what are no pairs")
        return [list(pair) for pair in pairs]

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(state) is tuple:
            if type(target) is Array and len(state) == 5 and state[0] == 1 and state[3] in (0, 1):
                target.fill(state[1], state[2], bool(state[3]), state[4])
                return
            if type(target) is _Type and len(state) == 8 and state[0] == 3 and not target.order:
                order = state[1].decode("latin-1") if type(state[1]) is bytes else state[1]
                width = target.dtype.itemsize if target.code[0] in "SU" else -1
                if order in ("<", ">", "|", "=") and state[2:5] == (None, None, None) and state[5] in (-1, width):
                    target.order = "" if order in "|=" else order
                    return
        raise UnsafePickleError("it sets the state of something other than a plain array")

    # Opcodes

    def protocol(self) -> None:
        if self.number(1) > 5:
            raise UnsafePickleError("it has a protocol that does not exist")

    def string(self) -> None:
        line = self.line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise UnsafePickleError("a string in it has no quotation marks")
        self.spend(len(line))
        value, _ = codecs.escape_decode(line[1:-1])
        self.push(value, sys.getsizeof(value))

    def unicode(self) -> None:
        value = str(self.line(), "raw-unicode-escape")
        self.push(value, sys.getsizeof(value))

    def long(self, size: int) -> None:
        if not 0 <= size <= 16:
            raise UnsafePickleError(f"it holds a number of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True), 48)

    def int_line(self) -> None:
        line = self.line(_LINE)
        if line in (b"00", b"01"):
            self.push(line == b"01", 0)
        else:
            self.integer(line)

    def tuple(self, count: int) -> None:
        items = self.stack[len(self.stack) - count :]
        if len(items) != count:
            raise IndexError
        del self.stack[len(self.stack) - count :]
        self.push(tuple(items), 56 + 8 * count)

    def mark(self) -> None:
        self.spend(80)
        self.below.append(self.stack)
        self.stack = []

    def tuple_mark(self) -> None:
        items = self.pop_mark()
        self.push(tuple(items), 56 + 8 * len(items))

    def list_mark(self) -> None:
        items = self.pop_mark()
        self.push(items, 72 + 8 * len(items))

    def dict_mark(self) -> None:
        items = self.pop_mark()
        made: dict[Any, Any] = {}
        self.set_items(made, items)
        self.push(made, 72)

    def append_one(self) -> None:
        item = self.stack.pop()
        self.append(self.stack[-1], [item])

    def append_marked(self) -> None:
        items = self.pop_mark()
        self.append(self.stack[-1], items)

    def set_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [key, value])

    def set_marked(self) -> None:
        items = self.pop_mark()
        self.set_items(self.stack[-1], items)

    def global_lines(self) -> None:
        module, name = self.line(_LINE), self.line(_LINE)
        self.find(module.decode("latin-1"), name.decode("latin-1"))

    def global_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.find(module, name)

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def place(self) -> int:
        line = self.line(_LINE)
        if not _INTEGER.fullmatch(line):
            raise UnsafePickleError(f"it holds a damaged reference {line!r:.60}")
        return int(line)

    def run(self) -> Any:
        """Interpret the whole file and return what it holds."""
        actions, data = _ACTIONS, self.data
        while self.at < self.size:
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                value = self.stack.pop()
                if self.stack or self.below:
                    raise UnsafePickleError("it leaves something unfinished: it is truncated or damaged")
                if self.at != self.size:
                    raise UnsafePickleError("something follows after its end")
                return value
            action = actions[code]
            if action is None:
                raise UnsafePickleError(f"it uses the operation 0x{code:02x}, which data files do not need")
            action(self)
        raise UnsafePickleError("it ends too early: it is truncated or damaged")


def _actions() -> list[Callable[[_Machine], Any] | None]:
    m = _Machine
    by_code: dict[bytes, Callable[[_Machine], Any]] = {
        b"(": m.mark,
        b"0": m.pop,
        b"1": lambda s: s.pop_mark(),
        b"2": lambda s: s.push(s.stack[-1], 0),
        b"F": lambda s: s.push(float(s.line(_LINE)), 24),
        b"I": m.int_line,
        b"J": lambda s: s.push(int.from_bytes(s.take(4), "little", signed=True), 32),
        b"K": lambda s: s.push(s.number(1), 0),
        b"L": lambda s: s.integer(s.line(_LINE)),
        b"M": lambda s: s.push(s.number(2), 32),
        b"N": lambda s: s.push(None, 0),
        b"R": m.reduce,
        b"S": m.string,
        b"T": lambda s: s.binary(s.number(4)),
        b"U": lambda s: s.binary(s.number(1)),
        b"V": m.unicode,
        b"X": lambda s: s.text(s.number(4)),
        b"a": m.append_one,
        b"b": m.build,
        b"c": m.global_lines,
        b"d": m.dict_mark,
        b"}": lambda s: s.push({}, 72),
        b"e": m.append_marked,
        b"g": lambda s: s.recall(s.place()),
        b"h": lambda s: s.recall(s.number(1)),
        b"j": lambda s: s.recall(s.number(4)),
        b"l": m.list_mark,
        b"]": lambda s: s.push([], 72),
        b"p": lambda s: s.remember(s.place()),
        b"q": lambda s: s.remember(s.number(1)),
        b"r": lambda s: s.remember(s.number(4)),
        b"s": m.set_one,
        b"t": m.tuple_mark,
        b")": lambda s: s.push((), 0),
        b"u": m.set_marked,
        b"G": lambda s: s.push(struct.unpack(">d", s.take(8))[0], 24),
        b"\x80": m.protocol,
        b"\x85": lambda s: s.tuple(1),
        b"\x86": lambda s: s.tuple(2),
        b"\x87": lambda s: s.tuple(3),
        b"\x88": lambda s: s.push(True, 0),
        b"\x89": lambda s: s.push(False, 0),
        b"\x8a": lambda s: s.long(s.number(1)),
        b"\x8b": lambda s: s.long(s.number(4)),
        b"B": lambda s: s.binary(s.number(4)),
        b"C": lambda s: s.binary(s.number(1)),
        b"\x8c": lambda s: s.text(s.number(1)),
        b"\x8d": lambda s: s.text(s.number(8)),
        b"\x8e": lambda s: s.binary(s.number(8)),
        b"\x93": m.global_stack,
        b"\x94": lambda s: s.remember(len(s.memo) + len(s.sparse)),
        b"\x95": lambda s: s.take(8),
        b"\x96": lambda s: s.binary(s.number(8)),
    }
    return [by_code.get(bytes([code])) for code in range(256)]


_ACTIONS = _actions()


def loads(data: bytes | mmap.mmap) -> Any:
    """What a pickle holds: None, bool, int, float, str, bytes, list, tuple, dict, and `Array` or `LongText` records.

    Bytes keys of dictionaries become text. Long bytes are memoryviews of ``data``.

    Raises:
        UnsafePickleError: The pickle is damaged or holds something outside the allow-list; nothing was run.
    """
    try:
        return _Machine(data).run()
    except (IndexError, ValueError, TypeError, OverflowError, struct.error, UnicodeError, Warning) as error:
        raise UnsafePickleError(f"it is damaged ({type(error).__name__}: {error!s:.100})") from error


def load(path: str | Path) -> Any:
    """`loads` over a memory-mapped file, whose name then is part of every error."""
    return load_mapped(path)[0]


def load_mapped(path: str | Path) -> tuple[Any, mmap.mmap]:
    """`load`, with the map that the arrays are views of."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DataError(f"Check {path.name}: it is empty or cannot be read ({error}).") from error
    try:
        return loads(data), data
    except UnsafePickleError as error:
        raise UnsafePickleError(f"Do not use {path.name}: {error}. Nothing in it was run.") from error


def is_pickle(path: Path) -> bool:
    """Whether a file may be a pickle: by its first bytes (protocol 2 and later) or its suffix."""
    with path.open("rb") as file:
        head = file.read(2)
    return (len(head) == 2 and head[0] == 0x80 and head[1] <= 5) or path.suffix.lower() in (".pkl", ".pickle", ".p")


def text_of(value: Any) -> str:
    """A string of either Python as text (UTF-8, else Latin-1).

    Raises:
        DataError: It is no string, or longer than 100,000 characters.
    """
    if not isinstance(value, str | bytes | memoryview | LongText):
        raise DataError(f"Expected text, found {type(value).__name__}.")
    if isinstance(value, str) or len(value) <= 4 * _TEXT:  # bytes of a character in UTF-8
        text = whole(_decoded(value))
        if len(text) <= _TEXT:
            return text
    raise DataError(f"Shorten the texts: one of them is longer than {_TEXT:,} characters.")


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


def limit_of(path: Path) -> int:
    """Bytes that what is made from a file may take."""
    return MEMORY_FACTOR * path.stat().st_size + MEMORY_FLOOR


class Reading:
    """How much one pass over a split may look at: one text or array can be named by a million examples.

    What an example holds is charged elsewhere; of texts of white space and of frames that are cut off nothing is left.
    """

    def __init__(self, path: Path) -> None:
        self._left = limit_of(path)

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
            DataError: It is no string, too long, or all texts together are many times larger than the file.
        """
        text = text_of(value)
        self.spend(len(text))
        return text

    def texts_of(self, values: Collection[Any]) -> list[str]:
        """`texts_of`, charged by their number: one byte of the file can be a text; and what an array of them holds."""
        self.spend(TEXT_SIZE * len(values) + getattr(values, "nbytes", 0))
        return texts_of(values)


def texts_of(values: Collection[Any]) -> list[str]:
    """Strings and numbers as text; what occurs several times is decoded once, and is one object in the result.

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
    """`array_of`, flat, for what may have few elements only; None where it has more: they are not looked at.

    Raises:
        DataError: It is no array of numbers.
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
    """The elements of an array as Python's objects, a block of them at a time: an object is larger than its element."""

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
