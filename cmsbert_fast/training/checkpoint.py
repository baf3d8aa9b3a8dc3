"""Checkpoints: the whole state of a run in one file, replaced atomically.

A killed run leaves the previous file or the new one, never a part of one. The one before is kept too: where the newest
is damaged, which its checksum tells, the run continues from that. The file holds only tensors, numbers, strings
and containers of them: ``torch.load(weights_only=True)`` reads it.
"""

import contextlib
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmsbert_fast import atomic
from cmsbert_fast.data.untrusted.files import open_regular, unpacked_size
from cmsbert_fast.training import checksums, entries
from cmsbert_fast.training.errors import UsageError

FILE_NAME = "checkpoint.pt"
BEFORE = "checkpoint-before.pt"
_MARK = b"sha256:"  # before the digest of all bytes above it, at the end of the file; readers of archives pass over it
FORMAT = 2
_STATELESS_FORMAT = 1  # like 2 without "state" and "reported": nu, then the only state, was in the model


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` to ``folder/checkpoint.pt``, and keeps the one before; returns once it is on disk."""
    path = folder / FILE_NAME

    def write(draft: Path) -> None:
        torch.save({"format": FORMAT, **state}, draft)
        found = checksums.digest(draft)
        with open(draft, "ab") as file:
            file.write(_MARK + found.encode())
        if path.exists():
            atomic.replace_file(folder / BEFORE, lambda before: atomic.link(path, before))

    atomic.replace_file(path, write)


def load(folder: Path) -> dict[str, Any] | None:
    """The state saved in ``folder``, on the CPU; None if there is no checkpoint yet.

    Where the file is damaged, it is the state of the checkpoint before, and "damaged" says so in a sentence.

    Raises:
        UsageError: Both are damaged, or the file is from another version.
    """
    path, before = folder / FILE_NAME, folder / BEFORE
    if not path.exists():
        return None
    try:
        return _read(path)
    except _Damaged as error:
        with contextlib.suppress(_Damaged):
            if before.exists():
                sentence = f"{path} is damaged ({error}); the run continues from {before.name}, the checkpoint before."
                return {**_read(before), "damaged": sentence}
        raise UsageError(
            f"{path} is not a readable checkpoint ({error}), and there is no undamaged one before it; remove it to "
            "start over."
        ) from None


def load_whole(folder: Path) -> dict[str, Any] | None:
    """:func:`load`, with every entry that training writes.

    Raises:
        UsageError: As there, or an entry is missing or of another type.
    """
    state = load(folder)
    fault = None if state is None else entries.fault_of(state)
    if fault is not None:
        raise UsageError(f"{folder / FILE_NAME} is not a readable checkpoint ({fault}); remove it to start over.")
    return state


class _Damaged(Exception):
    """A file is no checkpoint, or not the one that was written."""


def _read(path: Path) -> dict[str, Any]:
    """The state in a file; one of an earlier version has no checksum.

    Raises:
        _Damaged: It cannot be read, or its checksum is another.
        UsageError: It is from another version.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size - len(_MARK) - 64
            file.seek(max(0, size))
            end = file.read()
        if end.startswith(_MARK) and end != _MARK + checksums.digest(path, size).encode():
            raise _Damaged("its checksum is another")
        if unpacked_size(path) > path.stat().st_size:
            raise _Damaged("it holds more than its size")
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state["format"]
    except _Damaged:
        raise
    except Exception as error:  # torch has no common class for damaged files
        raise _Damaged(type(error).__name__) from None
    if not isinstance(state, dict) or type(version) is not int:
        raise _Damaged("it has no format")
    if version not in (FORMAT, _STATELESS_FORMAT):
        raise UsageError(f"{path} was written by another version of this program; continue with that, or start over.")
    return _with_state(state) if version == _STATELESS_FORMAT else state


def _with_state(old: dict[str, Any]) -> dict[str, Any]:
    """A state of format 1 in the present one."""
    model = old.get("model")
    nu = model.get("nu") if isinstance(model, dict) else None
    if not isinstance(nu, torch.Tensor) or nu.numel() != 1:
        return {**old, "state": None, "reported": {}}
    return {**old, "state": {"initial": False}, "reported": {"nu": float(nu)}}


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator in this process."""
    # We do not use the global generator, but libraries do.
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(numpy_state, dict)
    assert numpy_state["bit_generator"] == "MT19937"
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": {
            "keys": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "position": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores every random generator to a state from :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    n = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        ("MT19937", n["keys"].numpy().astype(np.uint32), n["position"], n["has_gauss"], n["gauss"])
    )
    random.setstate(state["python"])


def seed_everything(seed: int) -> None:
    """Seeds every random generator in this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
