"""The pickle machine without calls: a stack, a memo, and a budget of memory.

Python's unpickler calls what a file names. This one has no calls to make: it interprets the opcodes over the
memory-mapped file and builds numbers, strings, lists (of sets, too), tuples, dictionaries and records of arrays. A name
outside the list in `names`, an opcode that builds objects, a size that the file does not hold, or more objects than its
size warrants end the reading.
"""

import codecs
import mmap
import re
import struct
import sys
from collections.abc import Callable
from typing import Any

from cmsbert_fast.data.untrusted import limits, names
from cmsbert_fast.data.untrusted.records import LongText, UnsafePickleError

_INTEGER = re.compile(rb"-?\d{1,40}L?")
_LONG = 1 << 16  # bytes; longer text stays in the file until it is asked for
_LINE = 512  # bytes of a text argument that is a number or a name
_KEY_LENGTH = 1000  # characters: one key can be decoded, hashed and compared a million times
_KEY = 1 << 20  # whole numbers are their own hash: of a wider range, thousands can be made to collide

_UNSET = object()


class Machine:
    """One pass over one pickle: a stack, a memo, and a budget of memory."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self.view = memoryview(data)
        self.size = len(data)
        self.at = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under the open marks
        self.memo: list[Any] = []
        self.sparse: dict[int, Any] = {}
        self.left = limits.memory_for(self.size)

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
            raise UnsafePickleError(f"it asks for more than {limits.MEMORY_FACTOR} times its size in memory")

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
        what = "a large number" if type(key) is int else f"of type {type(key).__name__}"
        raise UnsafePickleError(f"a dictionary has a key that is {what}")

    def set_items(self, target: Any, items: list[Any]) -> None:
        if type(target) is not dict or len(items) % 2:
            raise UnsafePickleError("it sets items of something other than a dictionary")
        self.spend(60 * len(items))
        for k in range(0, len(items), 2):
            target[self.key(items[k])] = items[k + 1]

    def append(self, target: Any, items: list[Any]) -> None:
        if type(target) is not list:
            raise UnsafePickleError("it appends to something other than a list")
        self.spend(16 * len(items))
        target.extend(items)

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

    # Opcodes

    def reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        self.push(names.call(name, arguments, self), 200)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        names.set_state(target, state)

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
        self.push(names.find(module.decode("latin-1"), name.decode("latin-1")), 48)

    def global_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(names.find(module, name), 48)

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


_BY_CODE: dict[bytes, Callable[[Machine], Any]] = {
    b"(": Machine.mark,
    b"0": Machine.pop,
    b"1": lambda s: s.pop_mark(),
    b"2": lambda s: s.push(s.stack[-1], 0),
    b"F": lambda s: s.push(float(s.line(_LINE)), 24),
    b"I": Machine.int_line,
    b"J": lambda s: s.push(int.from_bytes(s.take(4), "little", signed=True), 32),
    b"K": lambda s: s.push(s.number(1), 0),
    b"L": lambda s: s.integer(s.line(_LINE)),
    b"M": lambda s: s.push(s.number(2), 32),
    b"N": lambda s: s.push(None, 0),
    b"R": Machine.reduce,
    b"S": Machine.string,
    b"T": lambda s: s.binary(s.number(4)),
    b"U": lambda s: s.binary(s.number(1)),
    b"V": Machine.unicode,
    b"X": lambda s: s.text(s.number(4)),
    b"a": Machine.append_one,
    b"b": Machine.build,
    b"c": Machine.global_lines,
    b"d": Machine.dict_mark,
    b"}": lambda s: s.push({}, 72),
    b"e": Machine.append_marked,
    b"g": lambda s: s.recall(s.place()),
    b"h": lambda s: s.recall(s.number(1)),
    b"j": lambda s: s.recall(s.number(4)),
    b"l": Machine.list_mark,
    b"]": lambda s: s.push([], 72),
    b"p": lambda s: s.remember(s.place()),
    b"q": lambda s: s.remember(s.number(1)),
    b"r": lambda s: s.remember(s.number(4)),
    b"s": Machine.set_one,
    b"t": Machine.tuple_mark,
    b")": lambda s: s.push((), 0),
    b"u": Machine.set_marked,
    b"G": lambda s: s.push(struct.unpack(">d", s.take(8))[0], 24),
    b"\x80": Machine.protocol,
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
    b"\x8f": lambda s: s.push([], 72),  # a set: nobody asks it what it holds
    b"\x90": Machine.append_marked,
    b"\x91": Machine.list_mark,
    b"\x8d": lambda s: s.text(s.number(8)),
    b"\x8e": lambda s: s.binary(s.number(8)),
    b"\x93": Machine.global_stack,
    b"\x94": lambda s: s.remember(len(s.memo) + len(s.sparse)),
    b"\x95": lambda s: s.take(8),
    b"\x96": lambda s: s.binary(s.number(8)),
}
_ACTIONS = [_BY_CODE.get(bytes([code])) for code in range(256)]
