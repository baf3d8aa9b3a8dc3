"""The "triton" backend of :func:`cmsbert_fast.ops.bias_gelu.api.bias_gelu`, behind two registered operators."""

from typing import Any

import torch
from torch import Tensor

from cmsbert_fast.ops.autograd import once_differentiable, register_operator
from cmsbert_fast.ops.capability import HAS_TRITON

if HAS_TRITON:
    from cmsbert_fast.kernels import bias_gelu as kernels


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + b), checked by the caller."""
    return _BiasGelu.apply(x, bias)


def _forward(x: Tensor, bias: Tensor) -> Tensor:
    with torch.cuda.device_of(x):  # Triton launches on the current device
        return kernels.forward(x, bias)


def _forward_fake(x: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _backward(d_out: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):
        return kernels.backward(d_out, x, bias)


def _backward_fake(d_out: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[1:], dtype=torch.float32)


_KEYS = ("CUDA", "CPU")  # the CPU only ever by interpretation
register_operator(
    "bias_gelu_forward(Tensor x, Tensor bias) -> Tensor",
    _forward,
    _forward_fake,
    keys=_KEYS,
    differentiable="cmsbert_fast.ops.bias_gelu.api.bias_gelu",
)
register_operator(
    "bias_gelu_backward(Tensor d_out, Tensor x, Tensor bias) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
    keys=_KEYS,
)


class _BiasGelu(torch.autograd.Function):
    """The two operators as one differentiable function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        return torch.ops.cmsbert_fast.bias_gelu_forward(x, bias)

    @staticmethod
    @once_differentiable("bias_gelu")
    def backward(ctx: Any, saved: tuple[Tensor, ...], d_out: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = saved
        d_x, d_bias = torch.ops.cmsbert_fast.bias_gelu_backward(d_out, x, bias)
        return d_x, d_bias.to(bias.dtype)
