"""How many kernels a computation launches on a GPU, counted without one.

A stand-in for Triton's driver notes the launches of our kernels; of PyTorch's operators those are counted that are no
views. They run on the CPU and stand for the same ones of a GPU, with the corrections below. What CUDA adds by itself
(split products, the copy of an unaligned operand) is not known here.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from cmsbert_fast.ops.linear import merged
from tests.kernels import aot

# What neither reads nor writes a number.
FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view")
# Kernels of an operator of several: LayerNorm's input and its parameters; zeros, then a copy into their place.
SEVERAL = {"native_layer_norm_backward": 2, "select_backward": 2, "slice_backward": 2}


class Operators(TorchDispatchMode):
    """PyTorch's operators that would launch something, by name with the number of their kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not func.is_view and name not in FREE:
            self.kernels[name] += SEVERAL.get(name, 1)
        own = _implementations().get(name) if func.namespace == "cmsbert_fast" else None
        if own is None:
            return func(*args, **(kwargs or {}))
        with self:  # what it calls of PyTorch counts too
            return own(*args, **(kwargs or {}))


@functools.cache
def _implementations() -> dict[str, Callable[..., Any]]:
    """What our operators of a layer do, by name."""
    from cmsbert_fast.ops.attention import triton as attention
    from cmsbert_fast.ops.bias_gelu import triton as bias_gelu
    from cmsbert_fast.ops.residual_norm import triton as residual_norm

    modules = {"cms_attention": attention, "bias_gelu": bias_gelu, "residual_norm": residual_norm}
    return {
        f"{name}_{way}": getattr(module, f"_{way}")
        for name, module in modules.items()
        for way in ("forward", "backward")
    }


def _wide_product(d: torch.Tensor, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A product of 16-bit numbers in float32: one kernel of cuBLAS's."""
    narrow = d.t() @ x
    with _disable_current_modes():
        return narrow.to(dtype)


def _wide_product_into(d: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
    narrow = d.t() @ x
    with _disable_current_modes():
        out.copy_(narrow)


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """PyTorch's dropout as a GPU runs it: one kernel, where the CPU takes three."""
    return torch.native_dropout(input, p, training)[0] if training and p else input


def count_launches(call: Callable[[], Any]) -> Counter[str]:
    """The kernels that ``call`` launches, ours and PyTorch's, by name. Ours do not run: their outputs hold anything."""
    with pytest.MonkeyPatch.context() as patch, Operators() as operators:
        patch.setattr(torch.nn.functional, "dropout", _dropout)
        patch.setattr(merged, "wide_product", _wide_product)
        patch.setattr(merged, "_wide_product_into", _wide_product_into)
        launches = aot.record(call)
    return operators.kernels + Counter(launch.name for launch in launches)
