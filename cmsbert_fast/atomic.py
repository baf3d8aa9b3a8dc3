"""Atomic writing: files and folders appear whole, and only once they are on disk."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Replaces ``path`` with what ``write`` puts into a draft, once it is on disk; on an error, leaves no draft."""
    draft = draft_of(path)
    try:
        write(draft)
        sync(draft)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def draft_of(path: Path) -> Path:
    """The temporary file or folder next to ``path``; a killed process leaves it behind."""
    return path.with_name(f".{path.name}.tmp")


def replace_folder(folder: Path, write: Callable[[Path], Any]) -> None:
    """Lets ``write`` fill a temporary folder, then moves its files into ``folder``.

    Each file is replaced atomically, but not all at once. A file whose content never changes, such as the configuration
    next to weights, therefore always matches the others.
    """
    temporary = draft_of(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    for path in (*temporary.rglob("*"), temporary):
        sync(path)
    if not folder.exists():
        os.replace(temporary, folder)
    else:
        for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        shutil.rmtree(temporary)
    sync(folder)
    sync(folder.parent)


def link(path: Path, other: Path) -> None:
    """Gives a file another name; copies it where the file system knows one name only."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
