"""Bytes, JSON and files, altered at random."""

import json
import os
import random
from pathlib import Path
from typing import Any

NASTY: list[Any] = [None, True, -1, 0, 5, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "x", "\0"]
NASTY += ["\x1b[2J", "x" * 50_000, "../..", "..", "/dev/zero", "\ud800", "1e999", [], [[]], {}, {"a": {}}]
NASTY += [[None] * 1000, ["x"] * 1000]


def altered(data: bytes, dice: random.Random) -> bytes:
    """Bytes that are flipped, cut, repeated or replaced."""
    found = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        if not found:
            break
        place = dice.randrange(len(found))
        how = dice.randrange(6)
        if how == 0:
            found[place] ^= 1 << dice.randrange(8)
        elif how == 1:
            found[place : place + dice.choice((1, 4, 8))] = bytes(dice.choice((0, 255)) for _ in range(4))
        elif how == 2:
            del found[place : place + dice.choice((1, 7, 100))]
        elif how == 3:
            found[place:place] = found[place : place + 200] * dice.choice((1, 50))
        elif how == 4:
            found[place : place + 8] = dice.randrange(1 << 64).to_bytes(8, "little")
        else:
            found = found[: place + 1]
    return bytes(found)


def altered_json(text: str, dice: random.Random) -> str:
    """JSON in which values are replaced, removed, or nested without end."""
    if dice.random() < 0.15:
        return altered(text.encode(), dice).decode("utf-8", "replace")
    if dice.random() < 0.05:
        return "[" * 100_000
    root: Any = json.loads(text)
    for _ in range(dice.choice((1, 1, 2))):
        places: list[tuple[Any, Any]] = []
        left = [root]
        while left:
            value = left.pop()
            keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
            places += [(value, key) for key in keys]
            left += [value[key] for key in keys]
        if not places:
            return json.dumps(dice.choice(NASTY))
        where, key = dice.choice(places)
        if isinstance(where, dict) and dice.random() < 0.2:
            del where[key]
        else:
            where[key] = dice.choice(NASTY)
    return json.dumps(dice.choice((root, root, root, root, [root], dice.choice(NASTY))))


def special(path: Path, dice: random.Random) -> None:
    """A pipe, a device, a folder or a file without end in place of a file."""
    path.unlink(missing_ok=True)
    how = dice.randrange(4)
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.symlink_to("/dev/zero")
    elif how == 2:
        path.mkdir()
    else:
        path.write_bytes(b"")
