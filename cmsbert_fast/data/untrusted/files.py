"""Opening untrusted files: regular ones only, so that no pipe is waited for, and no device read without end."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file for reading; links are followed.

    Raises:
        OSError: It cannot be read, or is a folder, a pipe, a socket or a device.
    """
    # Without waiting for a writer of a pipe, and without becoming a terminal's process.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return open(handle, "rb")


def read_bytes(path: str | Path, most: int) -> bytes:
    """The content of a file of at most ``most`` bytes.

    Raises:
        OSError: It cannot be read, is no regular file, or is longer.
    """
    with open_regular(path) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return found


def text_lines(path: str | Path, most: int) -> Iterator[str]:
    """The lines of a UTF-8 file, each of at most ``most`` bytes.

    Raises:
        OSError: It cannot be read, is no regular file, or a line is longer.
        UnicodeDecodeError: It is no UTF-8.
    """
    with open_regular(path) as file:
        while line := file.readline(most + 1):
            if len(line) > most:
                raise OSError(errno.EFBIG, f"a line has more than {most:,} bytes", str(path))
            yield line.decode("utf-8")


def read_text(path: str | Path, most: int) -> str:
    """`read_bytes` as UTF-8, with line ends as they are.

    Raises:
        OSError: As `read_bytes`.
        UnicodeDecodeError: It is no UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")
