"""The linear layer, y = x W^T + b, and its gradients on the fastest product that the machine has.

PyTorch's float32 products go to MKL, which on AMD's CPUs uses half of AVX-512's vector units, and reads weights for few
rows more slowly than memory gives them; the "cpu" backend does neither
(:func:`~cmsbert_fast.ops.capability.why_not_own_products`).
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmsbert_fast.ops.autocast import autocast_dtype, cast_dtype
from cmsbert_fast.ops.dispatch import choose_backend
from cmsbert_fast.ops.linear import cpu

LEAST_WORK = 2**20  # multiply-adds below which PyTorch's shorter way to its product is faster


class Options(Protocol):
    """What the layer reads of a model's configuration, at every call."""

    backend: str


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """torch.nn.functional.linear on the backend's products: y = x W^T + b.

    The floating tensors share a dtype, and autocast casts them, as for PyTorch's own; where it casts to bfloat16, the
    "cpu" backend rounds operands within the product, and the weight's gradient has the weight's own dtype at once.

    Args:
        x: (..., d_in).
        weight: (d_out, d_in).
        bias: (d_out,), or None.
        backend: See :mod:`cmsbert_fast.ops.dispatch`; only "auto" and "cpu" run compiled C++.

    Returns:
        (..., d_out).
    """
    dtype = autocast_dtype(x.device)
    if not _takes(x, weight, bias, dtype, backend):
        return F.linear(x, weight, bias)
    return cpu.linear(x, weight, bias, dtype or x.dtype)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """GELU of :func:`linear`, (..., d_out), with its arguments: x (1 + erf(x / sqrt(2))) / 2.

    Without gradients, the "cpu" backend computes it in the product's tail, in float32.
    """
    dtype = autocast_dtype(x.device)
    if torch.is_grad_enabled() or not _takes(x, weight, bias, dtype, backend):
        return F.gelu(linear(x, weight, bias, backend))
    return cpu.linear_gelu(x, weight, bias, dtype or x.dtype)


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None, backend: str) -> bool:
    """Whether the "cpu" backend runs."""
    return choose_backend("linear", x, backend) == "cpu" and _fits(x, weight, bias, dtype)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> bool:
    """Whether the "cpu" backend takes these operands, which autocast makes ``dtype``; for others PyTorch's layer
    answers, or says what is wrong.

    torch.compile, for which sizes may be symbols, takes the product whatever they are.
    """
    common = cast_dtype(x, dtype)
    if cast_dtype(weight, dtype) != common or (bias is not None and cast_dtype(bias, dtype) != common):
        return False
    # Quantised by torchao, or sparse: its memory holds no numbers to multiply with.
    if hasattr(weight, "__tensor_flatten__") or weight.layout is not torch.strided:
        return False
    if x.ndim < 2 or weight.ndim != 2 or x.shape[-1] != weight.shape[1] or weight.device != x.device:
        return False
    return torch.compiler.is_compiling() or x.numel() * weight.shape[0] >= LEAST_WORK


class Linear(nn.Linear):
    """torch.nn.Linear on :func:`linear`'s products; arguments, parameters and initialisation are its own.

    Attributes:
        options: Holds the backend's name; None = "auto". :func:`use_fast_linear` sets it.
    """

    options: Options | None = None

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, "auto" if self.options is None else self.options.backend)


_REPLACED = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)  # the latter in MultiheadAttention


def use_fast_linear(module: nn.Module, options: Options) -> None:
    """Replaces every torch.nn.Linear below ``module`` by :class:`Linear`, keeping its parameters, so that no checkpoint
    changes; layers of this class get the options."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and type(child) in _REPLACED:
                with torch.device("meta"):
                    layer = Linear(child.in_features, child.out_features, child.bias is not None)
                layer.weight, layer.bias = child.weight, child.bias
                setattr(parent, name, layer.train(child.training))
    for child in module.modules():
        if isinstance(child, Linear):
            child.options = options
