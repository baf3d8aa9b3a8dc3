"""The precision of a forward pass, and of what it returns."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context a forward pass of this precision ("fp32" or "bf16") runs in."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def upcast(values: Tensor) -> Tensor:
    """float32 for half precision; other dtypes as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
