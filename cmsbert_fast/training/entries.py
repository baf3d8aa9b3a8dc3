"""The entries of a checkpoint: whether each is what training writes, before any is used."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_NUMBER = (int, float)
_KINDS: dict[str, type | tuple[type, ...]] = {
    "settings": dict,
    "fingerprint": str,
    "progress": dict,
    "model": dict,
    "state": (dict, type(None)),
    "reported": dict,
    "optimizer": dict,
    "random": list,
    "log_length": int,
}
_PROGRESS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("epoch", "batch", "step", "best_epoch", "stalled"), int),
    "best": (*_NUMBER, type(None)),
    "seconds": _NUMBER,
}
_GENERATOR: dict[str, type] = {"keys": Tensor, "position": int, "has_gauss": int, "gauss": float}


def fault_of(state: Mapping[str, Any]) -> str | None:
    """What is wrong with a checkpoint, in half a sentence; None where nothing is."""
    fault = _fault(state, _KINDS, "it") or _fault(state["progress"], _PROGRESS, "its progress")
    if fault is not None:
        return fault
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state["model"].items()):
        return "its model is not of tensors"
    if not all(isinstance(key, str) and isinstance(value, _NUMBER) for key, value in state["reported"].items()):
        return "what it reports is not of numbers"
    if not all(isinstance(key, str) for key in state["settings"]):
        return "its settings have no names"
    if any(value < 0 for value in (state["log_length"], *map(state["progress"].get, ("epoch", "batch", "step")))):
        return "a count in it is less than 0"
    if not isinstance(state["optimizer"].get("state"), dict) or not _are_dicts(state["optimizer"].get("param_groups")):
        return "its optimizer state is malformed"
    for generators in state["random"]:
        if not isinstance(generators, dict) or not isinstance(generators.get("torch"), Tensor):
            return "its random states are malformed"
        if not isinstance(generators.get("python"), tuple) or not isinstance(generators.get("numpy"), dict):
            return "its random states are malformed"
        if fault := _fault(generators["numpy"], _GENERATOR, "a random state"):
            return fault
    if any(tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() for tensor in _tensors(state)):
        return "a tensor in it is larger than what is stored of it"
    return None


def _fault(found: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]], what: str) -> str | None:
    for name, kind in kinds.items():
        if name not in found:
            return f"{what} has no {name}"
        if not isinstance(found[name], kind) or (isinstance(found[name], bool) and kind is not bool):
            return f"{what} has a {name} that is a {type(found[name]).__name__}"
    return None


def _are_dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _tensors(root: Any) -> Iterator[Tensor]:
    """All tensors of nested dictionaries, lists and tuples; each container is looked at once."""
    left, seen = [root], set()
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)
