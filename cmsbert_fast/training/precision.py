"""The precision of a forward pass, and of what it returns."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from cmsbert_fast.models.casting import cast_weights
from cmsbert_fast.ops.capability import why_slow_bfloat16


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context a forward pass of this precision ("fp32" or "bf16") runs in."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def held_weights(model: nn.Module, precision: str, device: torch.device) -> AbstractContextManager:
    """The context of many forward passes without gradients: on a CPU, weights are cast once for all of them."""
    once = precision == "bf16" and device.type == "cpu"
    return cast_weights(model, torch.bfloat16) if once else nullcontext()


def precision_warning(precision: str, device: torch.device) -> str | None:
    """A warning if the precision is slow on this device, else None."""
    why = why_slow_bfloat16(device) if precision == "bf16" else None
    return None if why is None else f"warning: {why}; use --precision fp32."


def upcast(values: Tensor) -> Tensor:
    """float32 for half precision; other dtypes as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
