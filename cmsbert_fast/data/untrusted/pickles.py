"""Untrusted pickles, read without running anything in them.

Arrays are views of the memory-mapped file: nothing is copied before a reader asks for it, whatever the size.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from cmsbert_fast.data.example import DataError, unreadable
from cmsbert_fast.data.untrusted.files import open_regular
from cmsbert_fast.data.untrusted.first_bytes import LENGTH, check_first_bytes
from cmsbert_fast.data.untrusted.machine import Machine
from cmsbert_fast.data.untrusted.records import UnsafePickleError


def loads(data: bytes | mmap.mmap) -> Any:
    """What a pickle holds: None, bool, int, float, str, bytes, list, tuple, dict, and `Array` or `LongText` records.

    Bytes keys of dictionaries become text. Long bytes are memoryviews of ``data``.

    Raises:
        UnsafePickleError: The pickle is damaged or holds something outside the allow-list; nothing was run.
    """
    try:
        return Machine(data).run()
    except (IndexError, ValueError, TypeError, OverflowError, struct.error, UnicodeError, Warning) as error:
        raise UnsafePickleError(f"it is damaged ({type(error).__name__}: {error!s:.100})") from error


def load(path: str | Path) -> Any:
    """`loads` for a memory-mapped file; its name is part of every error."""
    return load_mapped(path)[0]


def load_mapped(path: str | Path) -> tuple[Any, mmap.mmap]:
    """`load`, and the map that the arrays are views of."""
    path = Path(path)
    try:
        with open_regular(path) as file:
            check_first_bytes(path.name, file.read(LENGTH))
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except PermissionError as error:
        raise unreadable(path.name) from error
    except (OSError, ValueError) as error:
        raise DataError(f"Check {path.name}: it is empty or cannot be read ({error}).") from error
    try:
        return loads(data), data
    except UnsafePickleError as error:
        raise UnsafePickleError(f"Do not use {path.name}: {error}. Nothing in it was run.") from error


def is_pickle(path: Path) -> bool:
    """Whether a file may be a pickle: by its first bytes (protocol 2 and later) or its suffix."""
    with open_regular(path) as file:
        head = file.read(2)
    return (len(head) == 2 and head[0] == 0x80 and head[1] <= 5) or path.suffix.lower() in (".pkl", ".pickle", ".p")
