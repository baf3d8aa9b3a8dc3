"""The lock of a run: two processes must not write one log, checkpoint and best model."""

import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cmsbert_fast.training.errors import Interrupted, UsageError, os_reason

FILE_NAME = ".lock"
TURN = ".turn"
_POLL_SECONDS = 0.1


class Locked(UsageError):
    """Another process trains in the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's folder. The system releases it when the process ends, however that happens.

    A file system without locks has none: then nothing is checked.

    Raises:
        Locked: Another process holds it.
        UsageError: The folder cannot be written.
    """
    path = folder / FILE_NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({os_reason(error)}); choose another --output.") from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UsageError(f"{path} is no file; remove it, or choose another --output.")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            raise Locked(
                f"Another process{f' ({holder})' if holder.isprintable() and holder else ''} trains in {folder}; wait "
                "for it or stop it, or choose another --output."
            ) from None
        except OSError:
            pass
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def turn(folder: Path, stopped: Callable[[], bool] | None = None) -> Iterator[None]:
    """Waits until no other process has its turn in a folder that several write to; not where the disk has no locks.

    Raises:
        Interrupted: ``stopped`` said so meanwhile.
    """
    with open(folder / TURN, "ab") as file:
        with suppress(OSError):
            if stopped is None:
                fcntl.flock(file, fcntl.LOCK_EX)
            while stopped is not None and not _taken(file):
                if stopped():
                    raise Interrupted("Stopped while another process had its turn; the same command continues.")
                time.sleep(_POLL_SECONDS)
        yield


def _taken(file: IO[bytes]) -> bool:
    """Whether the lock of a file could be taken."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
