"""Checkpoints: the whole state of a run in one file, replaced atomically.

A killed run leaves the previous file or the new one, never a part of one. The file holds only tensors, numbers, strings
and containers of them: ``torch.load(weights_only=True)`` reads it.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmsbert_fast import atomic
from cmsbert_fast.training.errors import UsageError

FILE_NAME = "checkpoint.pt"
FORMAT = 2
_STATELESS_FORMAT = 1  # like 2 without "state" and "reported": nu, then the only state, was in the model


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` to ``folder/checkpoint.pt``; returns once it is on disk."""
    atomic.replace_file(folder / FILE_NAME, lambda path: torch.save({"format": FORMAT, **state}, path))


def load(folder: Path) -> dict[str, Any] | None:
    """The state saved in ``folder``, on the CPU; None if there is no checkpoint yet.

    Raises:
        UsageError: The file is damaged or from another version.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state["format"]
    except Exception as error:  # torch has no common class for damaged files
        raise UsageError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); remove it to start over."
        ) from None
    if version == _STATELESS_FORMAT:
        return _with_state(state)
    if version != FORMAT:
        raise UsageError(f"{path} was written by another version of this program; continue with that, or start over.")
    return state


def _with_state(old: dict[str, Any]) -> dict[str, Any]:
    """A state of format 1 in the present one."""
    nu = old["model"].get("nu")
    if nu is None:
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
