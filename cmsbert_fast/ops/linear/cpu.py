"""The linear layer's products in compiled C++ (``kernels/cpu/linear.cpp``), behind two registered operators.

``torch.ops.cmsbert_fast.linear`` and ``..._backward`` carry them through torch.compile and checkpointing;
:class:`_Linear` ties them together for autograd. Weights are read where they lie: nothing is packed beforehand, cast or
kept between calls.
"""

from typing import Any

import torch
from torch import Tensor

from cmsbert_fast.kernels.cpu.product import matrix_product
from cmsbert_fast.ops.autograd import register_operator


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """y = x W^T + b, (..., d_out).

    Args:
        x: (..., d_in), float32 or bfloat16.
        weight: (d_out, d_in), likewise.
        bias: (d_out,), likewise, or None.
        dtype: That of the result: float32, and then of all operands, or bfloat16, to which x and W are rounded.
    """
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _Linear.apply(x, weight, bias, dtype)
    return torch.ops.cmsbert_fast.linear(x, weight, bias, dtype)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """GELU of :func:`linear`, (..., d_out), without a gradient: in the product's tail."""
    return torch.ops.cmsbert_fast.linear(x, weight, bias, dtype, gelu=True)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gelu: bool = False) -> Tensor:
    out = _forward_fake(x, weight, bias, dtype)
    matrix_product(x.flatten(0, -2), weight, dtype, out.flatten(0, -2), bias, gelu)
    return out


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gelu: bool = False) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, dtype: torch.dtype, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """dx in the dtype of x, and dW in that of W; of no elements where they are not needed."""
    d_x, d_weight = _backward_fake(grad, x, weight, dtype, need_x, need_weight)
    rows = grad.flatten(0, -2)
    if need_x:
        matrix_product(rows, weight.T, dtype, d_x.flatten(0, -2))
    if need_weight:
        matrix_product(rows.T, x.flatten(0, -2).T, dtype, d_weight)
    return d_x, d_weight


def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, dtype: torch.dtype, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else 0), weight.new_empty(weight.shape if need_weight else 0)


register_operator(
    "linear(Tensor input, Tensor weight, Tensor? bias, ScalarType dtype, bool gelu=False) -> Tensor",
    _forward,
    _forward_fake,
    keys=("CPU",),
    differentiable="cmsbert_fast.ops.linear.api.linear",
)
register_operator(
    "linear_backward(Tensor grad, Tensor input, Tensor weight, ScalarType dtype, bool need_input, bool need_weight)"
    " -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
    keys=("CPU",),
)


class _Linear(torch.autograd.Function):
    """The two operators as one differentiable function. Second derivatives are those of PyTorch's operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.dtype, ctx.bias_dtype = dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight)
        return torch.ops.cmsbert_fast.linear(x, weight, bias, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        d_x = d_weight = d_bias = None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            with torch.autocast(grad.device.type, enabled=False):
                d_x = (grad @ weight.to(grad.dtype)).to(x.dtype) if need_x else None
                if need_weight:
                    d_weight = (grad.flatten(0, -2).T @ x.flatten(0, -2).to(grad.dtype)).to(weight.dtype)
        elif need_x or need_weight:
            d_x, d_weight = torch.ops.cmsbert_fast.linear_backward(grad, x, weight, ctx.dtype, need_x, need_weight)
        if need_bias:
            d_bias = grad.flatten(0, -2).sum(dim=0, dtype=ctx.bias_dtype)
        return d_x if need_x else None, d_weight if need_weight else None, d_bias, None
