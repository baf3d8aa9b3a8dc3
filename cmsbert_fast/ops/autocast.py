"""What autocast makes of an operator's floating operands, as it does for PyTorch's own operators."""

import torch
from torch import Tensor


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast casts to on a device; None where it is off, and on the meta device, which it ignores."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


def cast_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of :func:`cast`'s result."""
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor.dtype
    return dtype


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in autocast's ``dtype``; unchanged for None. Neither integers nor float64 are ever cast."""
    return tensor.to(cast_dtype(tensor, dtype))
