"""The unpickler without calls: honest files are read to what they hold, hostile ones end with one error."""

import builtins
import codecs
import collections
import contextlib
import functools
import gc
import importlib
import io
import json
import operator
import os
import pickle
import pickletools
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from cmsbert_fast.data.__main__ import main
from cmsbert_fast.data.formats import mag
from cmsbert_fast.data.untrusted import content, limits, names, pickles, records

PROTOCOLS = range(6)


def plain(value: Any) -> Any:
    """Records as what they stand for."""
    if isinstance(value, records.Array):
        return [plain(v) for v in value.items] if value.items is not None else value.load()
    if isinstance(value, records.LongText):
        return value.load()
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


def assert_same(found: Any, meant: Any) -> None:
    if isinstance(meant, np.ndarray) and meant.dtype == object:
        assert_same(found, meant.ravel().tolist())
    elif isinstance(meant, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert found.dtype == meant.dtype
        assert found.shape == meant.shape
        assert found.tobytes() == meant.tobytes()
    elif isinstance(meant, dict):
        assert list(found) == list(meant)
        for key, value in meant.items():
            assert_same(found[key], value)
    elif isinstance(meant, list | tuple):
        assert type(found) is type(meant)
        assert len(found) == len(meant)
        for a, b in zip(found, meant, strict=True):
            assert_same(a, b)
    else:
        assert found == meant
        assert isinstance(meant, np.generic) or type(found) is type(meant)


# Honest files


HONEST: dict[str, Any] = {
    "numbers": [0, 1, -1, 255, 256, 65536, -(2**31), 2**40, -(2**62), 0.5, -1e300, True, False, None],
    "text": ["", "plain", "naïve ☃ \U0001f600", "quote ' \" \\ \n \t end", "long " * 40000, "é" * 70000],
    "bytes": [b"", b"abc", bytes(range(256)) * 3, b"x" * 100000],
    "nested": {"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[]], {}], "b": {"c": {"d": [None]}}},
    "ordered": collections.OrderedDict([("z", 1), ("a", 2)]),
    "default": collections.defaultdict(None, {"x": 1}),
    "scalars": [np.float64(1.5), np.float32(0.1), np.int64(-3), np.bool_(True), np.str_("hé")],
    "double": np.arange(6.0).reshape(2, 3),
    "single": np.linspace(-1, 1, 4000, dtype=np.float32).reshape(40, 100),
    "half": np.arange(5, dtype=np.float16),
    "integers": [np.arange(8).astype(t) for t in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")],
    "big endian": [np.arange(4, dtype=">i4"), np.arange(4, dtype=">f8"), np.array(["ab", "c"], dtype=">U4")],
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "axes": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "empty": [np.zeros(0), np.zeros((0, 5)), np.zeros((3, 0)), np.array(4.0)],
    "unicode array": np.array(["03bSnISJMiM$_$11", "x"], dtype="<U16"),
    "bytes array": np.array([[b"vid", b"0.5", b"1.25"]]),
    "objects": np.array(["text", 1, 2.5, None, ["w"]], dtype=object),
    "special": np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324]),
    "shared": (lambda a: [a, a, {"again": a}])(np.arange(3)),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", HONEST)
def test_honest_files_read_to_exactly_what_they_hold(name: str, protocol: int) -> None:
    assert_same(plain(pickles.loads(pickle.dumps(HONEST[name], protocol))), HONEST[name])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_pure_python_pickler_is_read_too(protocol: int) -> None:
    buffer = io.BytesIO()
    pickle._Pickler(buffer, protocol).dump(HONEST["nested"])
    assert_same(plain(pickles.loads(buffer.getvalue())), HONEST["nested"])


def spelt(value: Any, protocol: int, core: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A pickle as the numpy writes it whose inner modules lie below ``numpy.core`` (1.x) or ``numpy._core`` (2.x)."""
    original = pickle.whichmodule  # type: ignore[attr-defined]

    def whichmodule(thing: Any, name: str) -> str:
        parts = original(thing, name).split(".")
        return ".".join([parts[0], core, *parts[2:]] if parts[:2] in (["numpy", "core"], ["numpy", "_core"]) else parts)

    own = original(np.array(0).__reduce__()[0], "_reconstruct").split(".")[1]
    modules = {name: module for name, module in sys.modules.items() if name.startswith(f"numpy.{own}.")}
    buffer = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(pickle, "whichmodule", whichmodule)
        for name, module in modules.items():  # pickle looks for what it names; numpy 1.26 has not all names of 2.x
            patch.setitem(sys.modules, name.replace(f"numpy.{own}.", f"numpy.{core}.", 1), module)
        pickle._Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


# Of every way in which numpy writes arrays and numbers.
ARRAYS = ("scalars", "double", "big endian", "fortran", "axes", "empty", "unicode array", "bytes array", "objects")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("core", ["core", "_core"])
def test_files_of_numpy_1_and_2(core: str, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"core": b"numpy._core.", "_core": b"numpy.core."}[core]
    for name in ARRAYS:
        # One by one: Python's own pickler fails on several empty arrays in protocol 5.
        for value in HONEST[name] if isinstance(HONEST[name], list) else [HONEST[name]]:
            data = spelt(value, protocol, core, monkeypatch)
            assert f"numpy.{core}.".encode() in data
            assert other not in data
            assert_same(plain(pickles.loads(data)), value)


def test_an_optimised_pickle_with_gaps_in_its_memo_is_read() -> None:
    data = pickletools.optimize(pickle.dumps(HONEST["shared"], 2))
    assert_same(plain(pickles.loads(data)), HONEST["shared"])


def python2_array(array: np.ndarray, binary: bool) -> bytes:
    """An array as Python 2's cPickle wrote it, protocol 2 (memo from 1, strings of bytes) or 0 (text)."""
    raw, kind = array.tobytes(), array.dtype.str[1:].encode()
    if binary:
        shape = b"(" + b"".join(b"K" + bytes([n]) for n in array.shape) + b"t"
        head = (
            b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01bq\x04\x87q\x05Rq\x06"
        )
        dtype = b"cnumpy\ndtype\nq\x07U" + bytes([len(kind)]) + kind + b"q\x08K\x00K\x01\x87q\x09Rq\x0a"
        dtype += b"(K\x03U\x01<q\x0bNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0cb"
        return head + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tq\x0db"
    shape = b"(" + b"".join(b"I%d\n" % n for n in array.shape) + b"t"
    head = b"cnumpy.core.multiarray\n_reconstruct\np1\n(cnumpy\nndarray\np2\n(I0\ntp3\nS'b'\np4\ntp5\nRp6\n"
    dtype = b"cnumpy\ndtype\np7\n(S'" + kind + b"'\np8\nI0\nI1\ntp9\nRp10\n(I3\nS'<'\np11\nNNNI-1\nI-1\nI0\ntp12\nb"
    text = repr(raw)[1:].encode()  # Python 2's repr of a str is Python 3's of bytes without the b
    return head + b"(I1\n" + shape + dtype + b"I00\nS" + text + b"\np13\ntp14\nb"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<i8"])
def test_files_of_python_2(binary: bool, dtype: str) -> None:
    array = (np.arange(12).reshape(3, 4) * 37 - 100).astype(dtype)
    body = python2_array(array, binary)
    data = b"\x80\x02}q\x00(U\x05trainq\x0e" + body + b"u." if binary else b"(dp0\nS'train'\np15\n" + body + b"s."
    meant = pickle.loads(data, encoding="latin1")  # the fixture itself is what Python understands
    np.testing.assert_array_equal(meant["train"], array)
    assert_same(plain(pickles.loads(data)), {"train": array})


def test_return_unk_of_misa_is_a_name_that_is_never_called() -> None:
    data = b"\x80\x02ccollections\ndefaultdict\nc__main__\nreturn_unk\n\x85R(X\x01\x00\x00\x00aK\x05u."
    assert pickles.loads(data) == {"a": 5}
    with pytest.raises(records.UnsafePickleError):
        pickles.loads(b"\x80\x02c__main__\nreturn_unk\n)R.")


def test_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.pkl"
    path.write_bytes(pickle.dumps({"a": np.zeros((1000, 2000))}, 4))
    tracemalloc.start()
    array = pickles.load(path)["a"].load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert array.shape == (1000, 2000)
    assert peak < 200_000


def test_twenty_thousand_small_arrays_take_seconds() -> None:
    one = pickle.dumps(np.arange(8.0).reshape(2, 4), 2)[2:-1]
    # Every array anew, as in MAG-BERT's files; memo places repeat, as honest ones never do, and do not matter.
    data = b"\x80\x02](" + one * 20_000 + b"e."
    begin = time.perf_counter()
    assert len(pickles.loads(data)) == 20_000
    assert time.perf_counter() - begin < 12  # 2 s where nothing else runs: 100,000 in 10 s


# Hostile files


def reduce_of(function: Any, *arguments: Any) -> bytes:
    """The pickle of an object whose unpickling calls the function."""

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return function, arguments

    return pickle.dumps(Attack(), 2)


def call(module: str, name: str, arguments: bytes = b")") -> bytes:
    return b"\x80\x04c" + module.encode() + b"\n" + name.encode() + b"\n" + arguments + b"R."


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def array_with(
    shape: bytes = b"K\x02\x85",
    kind: bytes = b"f8",
    state: bytes = b"",
    data: bytes = b"C\x10" + bytes(16),
    order: bytes = b"<",
) -> bytes:
    """A protocol 3 array whose parts can be replaced."""
    dtype = b"cnumpy\ndtype\n" + text(kind.decode()) + b"K\x00K\x01\x87R"
    dtype += state or b"(K\x03" + text(order.decode()) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    head = b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return head + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb."


CANARY = "touch {}"
MINUS, HUGE = b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f"
RECONSTRUCT = b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n"
CALLS: dict[str, Callable[[str], bytes]] = {
    "os.system": lambda f: reduce_of(os.system, CANARY.format(f)),
    "subprocess.Popen": lambda f: reduce_of(subprocess.Popen, ["touch", f]),
    "subprocess.check_output": lambda f: reduce_of(subprocess.check_output, ["touch", f]),
    "builtins.eval": lambda f: reduce_of(builtins.eval, f"open({f!r}, 'w')"),
    "builtins.exec": lambda f: reduce_of(builtins.exec, f"open({f!r}, 'w')"),
    "builtins.open": lambda f: reduce_of(builtins.open, f, "w"),
    "builtins.__import__": lambda f: reduce_of(builtins.__import__, "antigravity"),
    "builtins.getattr": lambda f: reduce_of(builtins.getattr, "x", "upper"),
    "builtins.bytes with a size": lambda f: call("builtins", "bytes", b"J\xff\xff\xff\x7f\x85"),
    "builtins.bytearray with a size": lambda f: call("builtins", "bytearray", b"J\xff\xff\xff\x7f\x85"),
    "builtins.range to a list": lambda f: call("builtins", "list", b"cbuiltins\nrange\nJ\xff\xff\xff\x7f\x85R\x85"),
    "importlib.import_module": lambda f: reduce_of(importlib.import_module, "antigravity"),
    "functools.partial": lambda f: reduce_of(functools.partial, os.system, CANARY.format(f)),
    "functools.reduce": lambda f: reduce_of(functools.reduce, operator.add, [1, 2]),
    "operator.attrgetter": lambda f: reduce_of(operator.attrgetter, "__class__"),
    "operator.methodcaller": lambda f: reduce_of(operator.methodcaller, "write_text", "x"),
    "shutil.rmtree": lambda f: reduce_of(shutil.rmtree, str(Path(f).parent / "nothing")),
    "pickle.loads nested": lambda f: reduce_of(pickle.loads, reduce_of(os.system, CANARY.format(f))),
    "pathlib": lambda f: reduce_of(Path(f).touch),
    "numpy runstring": lambda f: call("numpy.testing._private.utils", "runstring", text(f"open({f!r},'w')") + b"}\x86"),
    "numpy.load": lambda f: reduce_of(np.load, f),
    "numpy.fromfile": lambda f: reduce_of(np.fromfile, "/etc/hostname"),
    "numpy.memmap": lambda f: reduce_of(np.memmap, f, "uint8", "w+", 0, (4,)),
    "numpy.save through savetxt": lambda f: reduce_of(np.savetxt, f, [1.0]),
    "numpy.zeros": lambda f: reduce_of(np.zeros, 1 << 40),
    "numpy.ndarray called": lambda f: call(
        "numpy", "ndarray", b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85\x85"
    ),
    "an allowed module, fromfile": lambda f: call("numpy.core.multiarray", "fromfile", text(f) + b"\x85"),
    "a longer name below an allowed one": lambda f: call("numpy.core.multiarray._reconstruct", "__call__"),
    "a dotted name through STACK_GLOBAL": lambda f: (
        b"\x80\x04"
        + text("numpy")
        + text("testing._private.utils.runstring")
        + b"\x93"
        + text(f"open({f!r},'w')")
        + b"}\x86R."
    ),
    "an allowed module, another name": lambda f: call("collections", "namedtuple", text("A") + text("b") + b"\x86"),
    "codecs.decode": lambda f: reduce_of(codecs.decode, b"x", "rot13"),
    "_codecs.encode with another codec": lambda f: call("_codecs", "encode", text("x") + text("zip") + b"\x86"),
    "defaultdict(os.system)": lambda f: call("collections", "defaultdict", b"cos\nsystem\n\x85"),
    "defaultdict of an allowed name": lambda f: call("collections", "defaultdict", b"cnumpy\nndarray\n\x85"),
    "torch storage": lambda f: call("torch.storage", "_load_from_bytes", b"C\x01x\x85"),
    "code object": lambda f: call("types", "CodeType"),
    "sys.setrecursionlimit": lambda f: reduce_of(sys.setrecursionlimit, 10**9),
}

FORMS: dict[str, bytes] = {
    "a name that is not even called": b"\x80\x04](cos\nsystem\ne.",
    "INST": b"(S'true'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'true'\no.",
    "NEWOBJ": b"\x80\x02cnumpy\nndarray\nK\x01\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04cnumpy\nndarray\n)}\x92.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT4": b"\x80\x02\x84\xff\xff\xff\x7f.",
    "PERSID": b"Pid\n.",
    "BINPERSID": b"Nq\x00Q.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05C\x01a\x98.",
    "a set": b"\x80\x04\x8f.",
    "memo: a place never filled": b"\x80\x04h\x07.",
    "memo: a huge place never filled": b"\x80\x04j\xff\xff\xff\xff.",
    "memo: a negative place": b"g-1\n.",
    "memo: text in place of a number": b"g__import__\n.",
    "memo: a name smuggled into REDUCE": b"\x80\x04cnumpy\ndtype\nq\x00K\x01q\x01h\x01h\x00R.",
    "BUILD on a list": b"\x80\x04]}b.",
    "BUILD on a name": b"\x80\x04cnumpy\nndarray\n}b.",
    "BUILD on a dictionary": b"\x80\x04}(K\x01K\x02tb.",
    "APPEND to a tuple": b"\x80\x04)Na.",
    "SETITEM on a list": b"\x80\x04]K\x01K\x02s.",
    "SETITEMS with an odd number": b"\x80\x04}(K\x01u.",
    "a list as key": b"\x80\x04}]K\x01s.",
    "an array as key": b"\x80\x04}" + array_with()[2:-1] + b"K\x01s.",
    "keys that collide": b"\x80\x04}("
    + b"".join(b"\x8a\x0c" + ((2**61 - 1) * k).to_bytes(12, "little") + b"N" for k in range(1, 500))
    + b"u.",
    "a long key": b"\x80\x04}" + text("k" * 1001) + b"Ns.",
    "a long key of bytes in a line": b"}S'" + b"k" * 1001 + b"'\nNs.",
    "floats as keys": b"\x80\x04}G" + struct.pack(">d", 1.5) + b"Ns.",
    "shape bomb": array_with(b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85"),
    "shape that overflows to the right size": array_with(
        b"\x8a\x05" + (1 << 32).to_bytes(5, "little") + b"\x8a\x05" + (1 << 32).to_bytes(5, "little") + b"\x86"
    ),
    "empty array of a trillion rows": array_with(
        b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"K\x00\x86", data=b"C\x00"
    ),
    "negative shape": array_with(b"J\xfe\xff\xff\xff\x85"),
    "two negative dimensions": array_with(b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86"),
    "shape of floats": array_with(b"G" + struct.pack(">d", 2.0) + b"\x85"),
    "shape of booleans": array_with(b"\x88K\x02\x86"),
    "shape as a list": array_with(b"](K\x02e"),
    "nine dimensions": array_with(b"(" + b"K\x01" * 8 + b"K\x02t"),
    "too few bytes": array_with(data=b"C\x0f" + bytes(15)),
    "too many bytes": array_with(data=b"C\x11" + bytes(17)),
    "text for bytes": array_with(data=text("x" * 16)),
    "a list for bytes": array_with(data=b"]"),
    "objects from bytes": array_with(kind=b"O8", order=b"|"),
    "fewer objects than the shape": array_with(kind=b"O8", order=b"|", data=b"](Ne"),
    "object scalar": call(
        "numpy.core.multiarray",
        "scalar",
        b"cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87RC\x08" + bytes(8) + b"\x86",
    ),
    "void type": array_with(kind=b"V8"),
    "a record type": array_with(kind=b"f8,f8"),
    "a repeated type": array_with(kind=b"(99999999,)f8"),
    "a type of a gigabyte": array_with(kind=b"S1000000000"),
    "a type of no bytes": array_with(
        b"\x8a\x05" + (1 << 33).to_bytes(5, "little") + b"\x85", kind=b"U0", data=b"C\x00"
    ),
    "a date type": array_with(kind=b"M8[ns]"),
    "a type by name": array_with(kind=b"object"),
    "an unknown byte order": array_with(order=b"?"),
    "type with fields": array_with(
        kind=b"f8", state=b"(K\x03" + text("<") + b"N" + text("a") + b"\x85}" + 2 * MINUS + b"K\x00tb"
    ),
    "type of another item size": array_with(kind=b"U2", state=b"(K\x03" + text("<") + b"NNN" + HUGE + b"K\x04K\x08tb"),
    "array filled twice": array_with()[:-1] + array_with()[array_with().index(b"(K\x01") :],
    "_reconstruct with a shape": RECONSTRUCT + b"cnumpy\nndarray\n" + HUGE + b"\x85C\x01b\x87R.",
    "_reconstruct of a subclass": RECONSTRUCT + b"cnumpy\ndtype\nK\x00\x85C\x01b\x87R.",
    "_frombuffer of text": call(
        "numpy._core.numeric", "_frombuffer", b"(" + text("x") + text("f8") + b"K\x01\x85" + text("C") + b"t"
    ),
    "BINBYTES8 of 2**63": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 63) + b"x.",
    "BINUNICODE8 of 2**64 - 1": b"\x80\x04\x8d" + b"\xff" * 8 + b"x.",
    "BYTEARRAY8 of 2**40": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "BINSTRING of 2**32 - 1": b"\x80\x02T\xff\xff\xff\xffx.",
    "FRAME beyond the end": b"\x80\x04\x95" + b"\xff" * 8,
    "LONG4 with a negative size": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "LONG4 of a megabyte": b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20) + b".",
    "LONG of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "INT of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "FLOAT that is none": b"F__import__('os')\n.",
    "STRING without quotation marks": b"S__import__\n.",
    "STRING with a damaged escape": b"S'\\xZZ'\n.",
    "UNICODE with a damaged escape": b"V\\uZZZZ\n.",
    "text that is no UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "nothing on the stack": b"\x80\x02R.",
    "no mark": b"\x80\x02e.",
    "a mark never closed": b"\x80\x02(N.",
    "tuple of more than there is": b"\x80\x02N\x87.",
    "more on the stack than one": b"\x80\x02NN.",
    "nothing at all": b"",
    "no end": b"\x80\x04]",
    "only an end": b".",
    "no pickle": b"id,text,label\n1,hello,2\n",
    "HTML in place of a file": b"<!DOCTYPE html><html></html>",
    "a second pickle behind the first": pickle.dumps([1]) + reduce_of(os.system, "true"),
    "an unknown protocol": b"\x80\x09N.",
    "an unknown operation": b"\x80\x04\xff.",
    "names that are no text": b"\x80\x04K\x01K\x02\x93.",
    "a name with a newline": b"\x80\x04" + text("os\nsystem") + text("system") + b"\x93.",
}

# The file pays for none of these: memory must stay in proportion.
BOMBS: dict[str, bytes] = {
    "a million empty lists": b"\x80\x04(" + b"]" * 1_200_000 + b"l.",
    "a million marks": b"\x80\x04" + b"(" * 1_200_000 + b".",
    "one string encoded again and again": b"\x80\x04"
    + text("x" * 60_000)
    + b"q\x000"
    + b"c_codecs\nencode\nq\x01("
    + (b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 60_000)
    + b"l.",
    "an OrderedDict of one list again and again": b"\x80\x04]("
    + b"(K\x01Nt" * 20_000
    + b"eq\x000("
    + b"ccollections\nOrderedDict\nh\x00\x85R" * 1_000
    + b"l.",
}


def test_there_are_at_least_forty_hostile_files() -> None:
    assert len(CALLS) + len(FORMS) + len(BOMBS) >= 100


def test_the_attack_would_work_on_pythons_own_unpickler(tmp_path: Path) -> None:
    file = tmp_path / "pwned"
    pickle.loads(CALLS["os.system"](str(file)))
    assert file.exists()


@pytest.mark.parametrize("name", CALLS)
def test_nothing_in_a_file_runs(name: str, tmp_path: Path) -> None:
    file = tmp_path / "pwned"
    data = CALLS[name](str(file))
    with pytest.raises(records.UnsafePickleError):
        pickles.loads(data)
    with pytest.raises(records.UnsafePickleError):  # and not within a structure either
        pickles.loads(b"\x80\x04](" + data[2:-1] + b"e.")
    assert not file.exists()


@pytest.mark.parametrize("name", FORMS)
def test_a_damaged_or_strange_file_is_one_error(name: str, tmp_path: Path) -> None:
    data = FORMS[name]
    begin = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(records.UnsafePickleError):
            pickles.loads(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(data) + 1_000_000
    assert time.perf_counter() - begin < 2
    path = tmp_path / "file.pkl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"file\.pkl"):
        read_corpus(path)


@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_in_proportion_to_the_file(name: str) -> None:
    data = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(records.UnsafePickleError):
            pickles.loads(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limits.MEMORY_FACTOR * len(data) + limits.MEMORY_FLOOR


def test_a_huge_memo_place_costs_nothing() -> None:
    # The C unpickler allocates a table up to the place.
    tracemalloc.start()
    assert pickles.loads(b"\x80\x04]r\xff\xff\xff\xff.") == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("opening", [b"]", b"(", b"}K\x01"])
def test_deep_nesting_neither_crashes_nor_recurses(opening: bytes) -> None:
    closing = {b"]": b"a", b"(": b"t", b"}K\x01": b"s"}[opening]
    depth = 200_000
    value = pickles.loads(b"\x80\x04" + opening * depth + b"N" + closing * depth + b".")
    del value  # freeing it does not recurse in C either


def test_deeply_nested_object_arrays() -> None:
    head = array_with(b"K\x01\x85", kind=b"O8", order=b"|", data=b"](")[:-3]
    depth = 10_000
    value = pickles.loads(b"\x80\x04" + head[2:] * depth + b"N" + b"etb" * depth + b".")
    del value


def test_an_exponential_tower_of_references_is_not_walked(tmp_path: Path) -> None:
    path = tmp_path / "tower.pkl"
    path.write_bytes(b"\x80\x04)q\x00" + b"h\x00h\x00\x86q\x000" * 200 + b"h\x00.")
    with pytest.raises(DataError):
        read_corpus(path)


def test_a_list_that_holds_itself(tmp_path: Path) -> None:
    path = tmp_path / "cycle.pkl"
    path.write_bytes(b"\x80\x04}q\x00X\x05\x00\x00\x00train]q\x01h\x01as.")
    with pytest.raises(DataError):
        read_corpus(path)


def test_one_array_named_a_thousand_times_is_refused(files: Any) -> None:
    words, rows = ["a"] * 2, np.zeros((2, 200_000))
    root = {"train": [((words, rows, rows), 0.5, f"v[{k}]") for k in range(1000)]}
    path = files.pickle("mag.pkl", root)
    assert path.stat().st_size < 10_000_000
    with pytest.raises(DataError, match="many times larger"):
        read_corpus(path)


def _peak(path: Path, **choices: Any) -> int:
    """The most bytes that a refused reading held, in Python's own allocations."""
    tracemalloc.start()
    with pytest.raises(DataError):
        read_corpus(path, **choices)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


LIMIT = 4 * (limits.MEMORY_FLOOR + (1 << 20) * limits.MEMORY_FACTOR) // 3


@pytest.mark.parametrize("kind", ["mmsa", "funny"])
def test_a_text_of_spaces_named_again_and_again_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MEMORY_FLOOR", 1 << 20)
    blank, count, rows = " " * 60_000, 200, np.ones((1, 2))
    root: dict[str, Any] = {"raw_text": [blank] * count, "id": [f"v_{k}" for k in range(count)]}
    part = (blank, rows, rows, rows)
    path = tmp_path / "file.pkl"
    train = root | {"regression_labels": [0.5] * count} if kind == "mmsa" else [(part, part, 1, 0)] * count
    path.write_bytes(pickle.dumps({"train": train}, 4))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="many times larger"):
        read_corpus(path)


@pytest.mark.parametrize("kind", ["frames that are cut off", "wide word"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_an_array_of_which_nothing_is_left_is_charged_all_the_same(
    kind: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example looks at all of it, and decodes it where a protocol before 3 wrote it."""
    monkeypatch.setattr(limits, "MEMORY_FLOOR", 1 << 20)
    rows, words = np.zeros((20_000, 1)), np.array(["a"], dtype="U50000")
    inner = (0, rows, rows, ["a"], 0, 0) if kind != "wide word" else (0, rows[:1], rows[:1], words)
    path = tmp_path / "train.pkl"
    path.write_bytes(pickle.dumps([(inner, 1.0, f"v[{k}]") for k in range(100)], protocol))
    assert path.stat().st_size < 350_000
    with pytest.raises(DataError, match="many times larger"):
        read_corpus(path)


@pytest.mark.parametrize("kind", [str, bytes])
def test_a_text_that_is_too_long_is_refused(kind: type) -> None:
    long = "é" * 100_000
    assert content.text_of(pickles.loads(pickle.dumps(long if kind is str else long.encode(), 4))) == long
    for text in (long + "e", "e" * 400_001):
        value = pickles.loads(pickle.dumps(text if kind is str else text.encode(), 4))
        with pytest.raises(DataError, match="longer than"):
            content.text_of(value)


@pytest.mark.parametrize("kind", ["mmsa", "mag", "mult", "funny"])
@pytest.mark.parametrize("labels", [True, False])
def test_one_split_under_many_names_is_refused_before_it_is_read(
    kind: str, labels: bool, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = str(files.table([["a", "train", 0, 1, 1, "b"]]))
    one = (files.mmsa(aligned=False) if kind == "mmsa" else getattr(files, kind)())["train"]
    path = files.pickle("many.pkl", {f"split {k}": one for k in range(65)})
    monkeypatch.setattr(content, "items_of", lambda value: pytest.fail("it was read"))
    with pytest.raises(DataError, match="65 splits"):
        open_source(path, words=table if kind == "mult" else None, labels=labels)


def test_labels_of_splits_that_are_one_object_are_looked_at_once(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"raw_text": ["a"] * 9, "id": [f"v_{k}" for k in range(9)], "regression_labels": ["glad", "sad", None] * 3}
    path = files.pickle("mmsa.pkl", {f"split {k}": one for k in range(60)})
    seen, items_of = [], content.items_of
    monkeypatch.setattr(content, "items_of", lambda value: seen.append(value) or items_of(value))
    assert open_source(path).classes == ("glad", "sad")
    assert len(seen) == 1


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_a_long_word_named_a_thousand_times_is_decoded_once(kind: str, tmp_path: Path) -> None:
    word: Any = "z" * 70_000 if kind == "text" else b"z" * 70_000
    rows = np.ones((1, 2))
    path = tmp_path / "mag.pkl"
    path.write_bytes(pickle.dumps({"train": [(([word] * 6000, rows, rows), 0.5, "v[0]")]}, 4))
    assert path.stat().st_size < 100_000
    assert _peak(path) < LIMIT


def test_words_and_ids_are_charged_their_size(tmp_path: Path) -> None:
    path, count = tmp_path / "mmsa.pkl", 5000
    root = {"raw_text": [" " + "z" * 60_000] * count, "id": [f"v_{k}" for k in range(count)]}
    path.write_bytes(pickle.dumps({"train": root | {"regression_labels": [0.5] * count}}, 4))
    assert _peak(path) < LIMIT
    with pytest.raises(DataError, match="many times larger"):  # and what convert writes is as bounded
        convert.convert(open_source(path), tmp_path / "c")
    assert sum(p.stat().st_size for p in (tmp_path / "c.partial").iterdir()) < LIMIT


@pytest.mark.parametrize("kind", ["mag", "mmsa", "annotations", "mult"])
def test_arrays_of_short_texts_are_no_bombs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMORY_FLOOR", 1 << 20)
    count, rows = 300_000, np.ones((1, 2))
    short = np.array([f"{k:x}" for k in range(count)], dtype="S5")
    root: Any = {"raw_text": short, "id": short, "regression_labels": np.zeros(count, dtype="f2")}
    if kind == "mag":
        root = [((["a"], rows, rows), 1.0, "v[0]"), ((short, rows, rows), 1.0, "v[1]")]
    elif kind == "annotations":
        root["regression_labels"] = short.astype("U5")
    elif kind == "mult":
        root = {"vision": rows, "audio": rows, "labels": rows, "id": short.reshape(count, 1)}
    path, table = tmp_path / "file.pkl", tmp_path / "words.tsv"
    path.write_bytes(pickle.dumps({"train": root}, 4))
    table.write_text("id\ttext\n1\tyes\n")
    assert _peak(path, words=str(table)) < limits.MEMORY_FACTOR * path.stat().st_size + limits.MEMORY_FLOOR


@pytest.mark.parametrize("kind", ["mag", "misa", "funny"])
def test_what_is_dropped_for_its_label_costs_nothing(
    kind: str, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of a million words can be named by a million examples, none of which leaves anything to charge."""
    many, nan, rows = ["many"] * 9, float("nan"), np.ones((1, 2))
    if kind == "funny":
        part = (many, rows, rows, rows)
        path = files.pickle("file.pkl", {"train": [((["a"], *part[1:]), part, 1, 0)] + [(part, part, 2, nan)] * 9})
    elif kind == "mag":
        path = files.pickle("file.pkl", {"train": [((["a"], rows, rows), 1.0, "v"), ((many, rows, rows), nan, "w")]})
    else:
        frames = [[0.0, 1.0]] * 5
        items = [(([], rows, rows, ["a"]), 1.0, "v"), ((many, frames, frames, many, 1, 1), nan, "w")]
        path = files.pickle("train.pkl", items)
    items_of, array_of = content.items_of, content.array_of
    monkeypatch.setattr(content, "items_of", lambda v: pytest.fail("it was read") if len(v) > 1 else items_of(v))
    monkeypatch.setattr(
        content, "array_of", lambda v: pytest.fail("it was read") if isinstance(v, list) else array_of(v)
    )
    report = read_corpus(path).report
    assert report.counts == {"train": 1}
    assert list(report.dropped) == ["its label is not a number"]


@pytest.mark.parametrize("choice", ["folds", "none"])
def test_what_is_left_out_after_it_was_read_is_charged(choice: str, files: Any, tmp_path: Path) -> None:
    rows, one = np.zeros((1000, 1000)), np.zeros((1, 1000))
    items = [((["a"], one, one), 0.5, "v"), *[((["a"], rows, rows), 0.5, f"w[{k}]") for k in range(100)]]
    path, folds = files.pickle("mag.pkl", {"train": items}), tmp_path / "folds.json"
    folds.write_text(json.dumps({"train": ["v"]}))
    choices: Any = {"folds": folds} if choice == "folds" else {"visual": "none", "acoustic": "none"}
    with pytest.raises(DataError, match="many times larger"):
        read_corpus(path, **choices)


@pytest.mark.parametrize("kind", ["mag", "mmsa", "array"])
def test_halves_of_characters_are_replaced(
    kind: str, files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, texts = np.ones((1, 1, 2)), ["w\udc80 x"]
    root: Any = {"raw_text": texts, "id": ["a\ud800"], "annotations": ["good\udfff"], "vision": rows}
    if kind == "mag":
        root = [((["w\udc80", "x"], np.ones((2, 2)), np.ones((2, 2))), 0.5, "a\ud800")]
    elif kind == "array":
        root |= {"raw_text": np.array(texts), "id": np.array(root["id"])}
    path = files.pickle("file.pkl", {"x\udc80": root})
    label = [] if kind == "mag" else ["--label", "annotations"]
    assert main(["inspect", str(path), *label]) == 0
    assert main(["convert", str(path), str(tmp_path / "c"), *label]) == 0
    capsys.readouterr().out.encode()
    for source in (path, tmp_path / "c"):
        corpus = read_corpus(source, label=label[1] if label and source == path else None)
        (example,) = corpus.splits["x\ufffd"]
        assert (example.id, example.words) == ("a\ufffd", ("w\ufffd", "x"))
        assert corpus.classes in (None, ("good\ufffd",))


def test_a_label_that_is_an_object_is_refused_without_showing_it(tmp_path: Path) -> None:
    tower: Any = ()
    for _ in range(40):
        tower = (tower, tower)
    for label in (tower, [[]], {}, b"1"):
        path = tmp_path / "mmsa.pkl"
        part = {"raw_text": ["a"], "id": ["v"], "classification_labels": [label], "regression_labels": [label]}
        path.write_bytes(pickle.dumps({"train": part}, 4))
        for name in ("classification_labels", "regression_labels"):
            with pytest.raises(DataError, match=f"holds a {type(label).__name__}"):
                read_corpus(path, label=name)


def test_a_shared_list_of_labels_is_not_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, rows = [0.5] * 2000, np.ones((1, 2))
    path = tmp_path / "mag.pkl"
    path.write_bytes(pickle.dumps({"train": [((["a"], rows, rows), labels, "v")]}, 4))
    with pytest.raises(DataError, match="too many columns"):
        read_corpus(path)
    monkeypatch.setattr(content, "array_of", lambda value: pytest.fail("it was looked through"))
    assert content.few_of(labels, 64) is None


def test_keys_that_are_numbers_are_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mmsa.pkl"
    path.write_bytes(pickle.dumps({"train": {"raw_text": ["a"], "id": ["v"], 5: 1}}, 4))
    with pytest.raises(DataError, match="regression_labels"):
        read_corpus(path)


@pytest.mark.parametrize("error", [RecursionError, MemoryError, TypeError, KeyError])
def test_what_recognition_and_readers_raise_is_an_error_of_the_file(
    error: type, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    path = files.pickle("mag.pkl", files.mag())
    for name in ("recognise", "mag_source", "example_of"):
        with monkeypatch.context() as patch:
            patch.setattr(mag, name, fail)
            with pytest.raises(DataError, match="Do not use"):
                read_corpus(path)


@pytest.mark.parametrize("order", "<>")
def test_characters_beyond_unicode_are_refused(order: str) -> None:
    array = np.array([0x10FFFF, 0x110000], dtype=f"{order}u4").view(f"{order}U1")
    assert pickles.loads(pickle.dumps(array[:1], 4)).load().tolist() == ["\U0010ffff"]
    with pytest.raises(records.UnsafePickleError, match="no character"):
        pickles.loads(pickle.dumps(array, 4)).load()


@pytest.mark.parametrize("place", [b"-1", b"-9"])
def test_negative_references_are_refused(place: bytes) -> None:
    with pytest.raises(records.UnsafePickleError, match="negative"):
        pickles.loads(b"K\x01p0\n0K\x02p" + place + b"\n.")


def test_a_nested_pickle_in_an_object_array_stays_bytes(tmp_path: Path) -> None:
    file = tmp_path / "pwned"
    inner = CALLS["os.system"](str(file))
    found = pickles.loads(pickle.dumps(np.array([inner, "x"], dtype=object), 4))
    assert plain(found) == [inner, "x"]
    assert not file.exists()


def test_refused_files_leave_nothing_behind() -> None:
    files = [data for data in FORMS.values() if len(data) < 10_000]

    def read_all() -> None:
        for data in files:
            with pytest.raises(records.UnsafePickleError):
                pickles.loads(data)

    read_all()
    gc.collect()
    tracemalloc.start()
    read_all()
    gc.collect()
    begin = tracemalloc.get_traced_memory()[0]
    for _ in range(20):
        read_all()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - begin
    tracemalloc.stop()
    assert grown < 50_000  # 2,000 readings: a leak of one object each would show


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_one_error(protocol: int, files: Any) -> None:
    data = pickle.dumps({"train": [((["a"], np.ones((1, 2)), np.ones((1, 2))), np.ones((1, 1)), "v[0]")]}, protocol)
    assert len(data) > 200
    for end in range(len(data)):
        with pytest.raises(records.UnsafePickleError):
            pickles.loads(data[:end])


# Fuzzing


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False)
INERT = (type(None), bool, int, float, str, bytes, memoryview, list, tuple, dict, records.Array, records.LongText)


@contextlib.contextmanager
def bounded(size: int) -> Iterator[None]:
    """A file of ``size`` bytes takes neither much time nor more memory than it warrants."""
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("reading took 5 seconds"))
    signal.setitimer(signal.ITIMER_REAL, 5)
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        assert peak <= limits.MEMORY_FACTOR * size + limits.MEMORY_FLOOR


def check(data: bytes) -> None:
    """A file is read to inert parts, or refused with one error; never anything else."""
    try:
        with bounded(len(data)):
            found = pickles.loads(data)
    except records.UnsafePickleError:
        return
    assert isinstance(found, (*INERT, names.Name, records.NumpyType))


OPCODES = st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes])


def test_what_hangs_or_swells_fails_the_fuzzing() -> None:
    with pytest.raises(AssertionError), bounded(10):
        bytes(limits.MEMORY_FLOOR + 200)

    def hang() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        while True:
            pass

    with pytest.raises(pytest.fail.Exception, match="seconds"), bounded(10):
        hang()


@FUZZ
@given(
    st.lists(st.one_of(OPCODES, st.binary(max_size=6), st.sampled_from([b"numpy\n", b"dtype\n", b"\n"])), max_size=60)
)
def test_fuzz_operations(parts: list[bytes]) -> None:
    check(b"".join(parts) + b".")


@FUZZ
@given(st.binary(max_size=300))
def test_fuzz_bytes(data: bytes) -> None:
    check(data)


def _honest_files() -> list[tuple[str, bytes]]:
    rows = np.arange(6.0).reshape(2, 3)
    mag = {s: [((["a", "b"], rows, rows), np.ones((1, 1)), f"{s}[{k}]") for k in range(2)] for s in ("train", "dev")}
    mmsa = {
        s: {
            "raw_text": np.array(["a b", "c"]),
            "id": np.array([f"{s}$_$0", f"{s}$_$1"]),
            "vision": np.ones((2, 3, 2)),
            "audio": np.ones((2, 4, 2)),
            "vision_lengths": [1, 3],
            "audio_lengths": np.array([2, 2], dtype=np.int32),
            "regression_labels": np.array([0.5, -1.0]),
        }
        for s in ("train", "test")
    }
    part = ("a joke", np.ones((2, 91)), np.ones((2, 81)), np.ones((2, 4)))
    funny = {"train": [(part, part, 1, 0), (part, part, 2, 1)]}
    return [
        (f"{n}{p}", pickle.dumps(c, p))
        for p in (0, 2, 4, 5)
        for n, c in (("mag", mag), ("mmsa", mmsa), ("funny", funny))
    ]


HONEST_FILES = _honest_files()


def test_the_fuzzed_files_are_read_unaltered(tmp_path: Path) -> None:
    for name, data in HONEST_FILES:
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(data)
        assert sum(read_corpus(path).report.counts.values()) >= 2


@FUZZ
@given(
    st.sampled_from(HONEST_FILES),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(max_size=3), st.integers(0, 3)), max_size=4),
)
def test_fuzz_altered_files_through_the_readers(
    tmp_path_factory: Any, chosen: tuple[str, bytes], edits: list[Any]
) -> None:
    data = bytearray(chosen[1])
    for place, new, gone in edits:
        at = place % (len(data) + 1)
        data[at : at + gone] = new
    path = tmp_path_factory.getbasetemp() / "fuzz.pkl"
    path.write_bytes(bytes(data))
    try:
        with bounded(len(data)):
            corpus = read_corpus(path)
    except DataError:
        return
    for examples in corpus.splits.values():
        for example in examples:
            assert np.isfinite(example.visual).all()
            assert example.visual.dtype == np.float32
            assert all(isinstance(word, str) for word in example.words)


KEYS = st.sampled_from(
    ["train", "dev", "raw_text", "id", "vision", "audio", "vision_lengths", "text_bert", "labels", "regression_labels"]
) | st.integers(0, 1)
LEAVES = st.one_of(
    st.none(),
    st.integers(-2, 3),
    st.sampled_from([0.5, float("nan"), "a b", "", "v_0", b"x", 1 << 70]),
    st.sampled_from(
        [np.ones((1, 2)), np.ones((1, 3, 2)), np.ones(1), np.float64(2), np.array(["a"]), np.zeros((0, 2))]
    ),
    st.sampled_from([np.array([None, "x"], dtype=object), np.array(3), np.ones((1, 3, 3), dtype=np.int64)]),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple), st.dictionaries(KEYS, inner, max_size=6)
    ),
    max_leaves=25,
)
FEATURES = st.tuples(TREES, TREES, TREES) | st.tuples(TREES, TREES, TREES, TREES)
ROOTS = st.one_of(
    st.dictionaries(KEYS, TREES, min_size=1, max_size=3),
    st.fixed_dictionaries({"raw_text": TREES, "id": TREES}, optional={"vision": TREES, "regression_labels": TREES}).map(
        lambda part: {"train": part}
    ),
    st.fixed_dictionaries({"vision": TREES, "audio": TREES, "labels": TREES, "id": TREES}).map(lambda p: {"train": p}),
    st.lists(st.tuples(FEATURES, TREES, TREES), min_size=1, max_size=2).map(lambda items: {"train": items}),
    st.lists(st.tuples(FEATURES, FEATURES, TREES, TREES), min_size=1, max_size=2).map(lambda items: {"dev": items}),
)


@FUZZ
@given(ROOTS, st.sampled_from(["fuzz2.pkl", "train.pkl"]), st.booleans(), st.sampled_from([None, "id", "2", "labels"]))
def test_fuzz_structures_through_the_readers(
    tmp_path_factory: Any, root: Any, name: str, labels: bool, label: str | None
) -> None:
    folder = tmp_path_factory.getbasetemp() / "structures"
    folder.mkdir(exist_ok=True)
    table = folder / "words.tsv"
    table.write_text("id\ttext\nv_0\thello\n")
    path = folder / name
    path.write_bytes(pickle.dumps(root["train"] if name == "train.pkl" and "train" in root else root, 4))
    try:
        with bounded(path.stat().st_size):
            corpus = read_corpus(path, label=label, labels=labels, words=str(table))
    except DataError:
        return
    assert all(labels or e.label is None for examples in corpus.splits.values() for e in examples)
