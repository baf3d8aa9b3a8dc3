"""The names that a pickle may use, each with the one form in which numpy and the standard library write it.

    numpy.core.multiarray, numpy._core.multiarray: _reconstruct, scalar      numpy: ndarray, dtype
    numpy.core.numeric, numpy._core.numeric: _frombuffer (protocol 5)        _codecs: encode (bytes in protocols 0-2)
    collections: OrderedDict, defaultdict                                   builtins, __builtin__: bytes (empty only)
    builtins, __builtin__: set, frozenset (of a list, which is what is built)
    any module's return_unk, the default of MISA's dictionary, as a name that is never called

Nothing is imported or called: `call` and `set_state` build what the name would have built.
"""

import re
import sys
from collections.abc import Callable
from typing import Any, Protocol

from cmsbert_fast.data.untrusted.records import Array, LongText, NumpyType, UnsafePickleError

_RECONSTRUCT, _SCALAR, _NDARRAY, _DTYPE = "numpy array", "numpy scalar", "numpy.ndarray", "numpy.dtype"
_FROMBUFFER, _ENCODE, _ORDERED, _DEFAULT = "numpy buffer", "_codecs.encode", "OrderedDict", "defaultdict"
_BYTES, _STUB, _SET = "bytes", "return_unk", "set"

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
    ("builtins", "set"): _SET,
    ("__builtin__", "set"): _SET,
    ("builtins", "frozenset"): _SET,
    ("__builtin__", "frozenset"): _SET,
}
_TABLES = {
    "torch": "tensors of PyTorch, save them as arrays (tensor.numpy())",
    "pandas": "tables of pandas, save them as csv",
}
_TYPE = re.compile(r"(?:b1|[iu][1248]|f[248]|S[1-9]\d{0,5}|U[1-9]\d{0,5}|O8|O4)")
_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")


class Maker(Protocol):
    """What building needs of the machine: its memory is charged, and keys of dictionaries are checked."""

    def spend(self, amount: int) -> None: ...

    def set_items(self, target: Any, items: list[Any]) -> None: ...


class Name:
    """A name from the allow-list."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


def find(module: Any, name: Any) -> Name:
    """The allowed name that a pickle asks for.

    Raises:
        UnsafePickleError: It is not on the list.
    """
    if not (isinstance(module, str) and isinstance(name, str) and _NAME.fullmatch(module) and _NAME.fullmatch(name)):
        raise UnsafePickleError("it asks for something that is not a name")
    kind = _STUB if name == "return_unk" else _ALLOWED.get((module, name))
    if kind is None and (what := _TABLES.get(module.split(".")[0])):
        raise UnsafePickleError(f"it holds {what}")
    if kind is None:
        raise UnsafePickleError(f"it asks for {module}.{name}, which no data file needs")
    return Name(kind)


def call(name: Any, arguments: Any, maker: Maker) -> Any:
    """What a call of an allowed name would return.

    Raises:
        UnsafePickleError: It is not an allowed name, or is used in a form that numpy and the standard library do not
            write.
    """
    if type(name) is not Name or type(arguments) is not tuple:
        raise UnsafePickleError("it calls something other than a name of numpy or the standard library")
    build = _BUILDERS.get(name.kind)
    made = _MISUSED if build is None else build(arguments, maker)
    if made is _MISUSED:
        raise UnsafePickleError(f"it uses {name.kind} as no data file does")
    return made


def set_state(target: Any, state: Any) -> None:
    """Sets what numpy pickles as the state of an array or a type.

    Raises:
        UnsafePickleError: The target is neither, or the state is not what numpy writes.
    """
    if type(state) is tuple:
        if type(target) is Array and len(state) == 5 and state[0] == 1 and state[3] in (0, 1):
            _, shape, kind, fortran, data = state
            target.fill(shape, kind, bool(fortran), data)
            return
        if type(target) is NumpyType and len(state) == 8 and state[0] == 3 and not target.order:
            order = state[1].decode("latin-1") if type(state[1]) is bytes else state[1]
            width = target.dtype.itemsize if target.code[0] in "SU" else -1
            if order in ("<", ">", "|", "=") and state[2:5] == (None, None, None) and state[5] in (-1, width):
                target.order = "" if order in "|=" else order
                return
    raise UnsafePickleError("it sets the state of something other than a plain array")


_MISUSED = object()  # what a builder returns for arguments that no data file has


def _reconstruct(arguments: tuple[Any, ...], maker: Maker) -> Any:
    if len(arguments) == 3:
        subtype, shape, code = arguments
        if type(subtype) is Name and subtype.kind == _NDARRAY and shape == (0,) and code in (b"b", "b"):
            return Array()
    return _MISUSED


def _dtype(arguments: tuple[Any, ...], maker: Maker) -> Any:
    if not (1 <= len(arguments) <= 3 and all(flag in (0, 1) for flag in arguments[1:])):
        return _MISUSED
    code = arguments[0].decode("latin-1") if type(arguments[0]) is bytes else arguments[0]
    if type(code) is not str:
        return _MISUSED
    bare = code.lstrip("<>|=") if len(code) < 12 else code
    if not _TYPE.fullmatch(bare):
        raise UnsafePickleError(f"it holds an array of type {code!r:.40}")
    found = NumpyType(bare)
    found.order = code[: len(code) - len(bare)].replace("|", "")[:1]
    return found


def _scalar(arguments: tuple[Any, ...], maker: Maker) -> Any:
    if len(arguments) != 2 or type(arguments[0]) is not NumpyType or arguments[0].code[0] == "O":
        return _MISUSED
    kind, data = arguments
    maker.spend(kind.dtype.itemsize)  # of a text in the file, which can be named again and again, that much is decoded
    scalar = Array()
    scalar.fill((), kind, False, data)
    value = scalar.load().item()
    maker.spend(sys.getsizeof(value))
    return value


def _frombuffer(arguments: tuple[Any, ...], maker: Maker) -> Any:
    if len(arguments) not in (4, 5) or type(arguments[1]) is not NumpyType or arguments[1].code[0] == "O":
        return _MISUSED
    data, kind, shape, order = arguments[:4]
    axes = arguments[4] if len(arguments) == 5 else None
    if not (order in ("C", "F") or (order == "K" and axes is not None)):
        return _MISUSED
    array = Array()
    array.fill(shape, kind, order == "F", data)
    if order == "K":
        array.transpose(axes)
    return array


def _encode(arguments: tuple[Any, ...], maker: Maker) -> Any:
    if len(arguments) == 2 and arguments[1] in ("latin1", b"latin1"):
        text = arguments[0]
        if type(text) is LongText and not text.encoded:
            return LongText(text.view, encoded=True)
        if type(text) is str:
            maker.spend(len(text))
            return text.encode("latin-1")
    return _MISUSED


def _ordered(arguments: tuple[Any, ...], maker: Maker) -> Any:
    if len(arguments) > 1:
        return _MISUSED
    pairs = arguments[0] if arguments else []
    if type(pairs) is not list or not all(type(p) in (list, tuple) and len(p) == 2 for p in pairs):
        raise UnsafePickleError("it makes an OrderedDict of something other than pairs")
    items: dict[Any, Any] = {}
    for pair in pairs:
        maker.set_items(items, list(pair))
    return items


def _defaultdict(arguments: tuple[Any, ...], maker: Maker) -> Any:
    if not arguments:
        return {}
    default = arguments[0]
    unused = default is None or (type(default) is Name and default.kind == _STUB)
    return {} if len(arguments) == 1 and unused else _MISUSED


def _bytes(arguments: tuple[Any, ...], maker: Maker) -> Any:
    return _MISUSED if arguments else b""


def _set(arguments: tuple[Any, ...], maker: Maker) -> Any:
    return arguments[0] if len(arguments) == 1 and type(arguments[0]) is list else [] if not arguments else _MISUSED


_BUILDERS: dict[str, Callable[[tuple[Any, ...], Maker], Any]] = {
    _RECONSTRUCT: _reconstruct,
    _DTYPE: _dtype,
    _SCALAR: _scalar,
    _FROMBUFFER: _frombuffer,
    _ENCODE: _encode,
    _ORDERED: _ordered,
    _DEFAULT: _defaultdict,
    _BYTES: _bytes,
    _SET: _set,
}
