"""Pickles that are read to exactly what they hold."""

import collections
import io
import pickle
import pickletools
import struct
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data.untrusted import pickles, records
from tests.data.untrusted.plain import PROTOCOLS, plain


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
    begin = time.process_time()
    assert len(pickles.loads(data)) == 20_000
    assert time.process_time() - begin < 12  # 2 s here
