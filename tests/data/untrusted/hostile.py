"""Hostile pickles: calls, forms and sizes that no data file has."""

import builtins
import codecs
import functools
import importlib
import operator
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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
    "a set of no list": b"\x80\x04cbuiltins\nset\nK\x01\x85R.",
    "a set as an item": b"\x80\x04\x8f\x8fa\x90.",
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
