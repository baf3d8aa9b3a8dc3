"""The "triton" backend of :func:`cmsbert_fast.ops.residual_norm.api.residual_norm`, behind two registered operators."""

from typing import Any

import torch
from torch import Tensor

from cmsbert_fast.ops.autograd import once_differentiable, register_operator
from cmsbert_fast.ops.capability import HAS_TRITON
from cmsbert_fast.ops.residual_norm.types import Parameters

if HAS_TRITON:
    from cmsbert_fast.kernels import residual_norm as kernels


def residual_norm(
    x: Tensor,
    residual: Tensor,
    parameters: Parameters,
    eps: float,
    rounded: torch.dtype | None,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y in the residual's dtype and in ``rounded``; checked by the caller, who also draws the seed."""
    if rounded == residual.dtype:
        rounded = None
    y, narrow = _ResidualNorm.apply(x, residual, *parameters, eps, rounded, dropout_p, seed)
    return y, y if narrow is None else narrow


def _call(
    x: Tensor, residual: Tensor, parameters: tuple[Tensor, ...], eps: float, dropout_p: float, seed: Tensor | None
) -> "kernels.Call":
    return kernels.Call(x, residual, kernels.Parameters(*parameters), eps, dropout_p, seed)


def _forward(
    x: Tensor,
    residual: Tensor,
    bias: Tensor,
    weight: Tensor,
    shift: Tensor,
    seed: Tensor | None,
    eps: float,
    dropout_p: float,
    rounded: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(x):  # Triton launches on the current device
        call = _call(x, residual, (bias, weight, shift), eps, dropout_p, seed)
        out, narrow, mean, inverse = kernels.forward(call, rounded)
    return out, out.new_empty(0) if narrow is None else narrow, mean, inverse


def _forward_fake(
    x: Tensor,
    residual: Tensor,
    bias: Tensor,
    weight: Tensor,
    shift: Tensor,
    seed: Tensor | None,
    eps: float,
    dropout_p: float,
    rounded: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    narrow = residual.new_empty(0) if rounded is None else residual.new_empty(x.shape, dtype=rounded)
    mean, inverse = (x.new_empty(x.shape[:1], dtype=torch.float32) for _ in range(2))
    return residual.new_empty(x.shape), narrow, mean, inverse


def _backward(
    d_out: Tensor | None,
    d_rounded: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    x: Tensor,
    residual: Tensor,
    bias: Tensor,
    weight: Tensor,
    shift: Tensor,
    seed: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(x):
        call = _call(x, residual, (bias, weight, shift), 0.0, dropout_p, seed)
        return kernels.backward(call, d_out, d_rounded, mean, inverse)


def _backward_fake(
    d_out: Tensor | None,
    d_rounded: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    x: Tensor,
    residual: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    parameters = x.new_empty((3, x.shape[1]), dtype=torch.float32)
    return x.new_empty(x.shape), residual.new_empty(x.shape), parameters


_KEYS = ("CUDA", "CPU")  # the CPU only ever by interpretation
_ROWS = "Tensor x, Tensor residual, Tensor bias, Tensor weight, Tensor shift, Tensor? seed"
register_operator(
    f"residual_norm_forward({_ROWS}, float eps, float dropout_p, ScalarType? rounded) -> "
    "(Tensor out, Tensor rounded, Tensor mean, Tensor inverse)",
    _forward,
    _forward_fake,
    keys=_KEYS,
    differentiable="cmsbert_fast.ops.residual_norm.api.residual_norm",
)
register_operator(
    f"residual_norm_backward(Tensor? d_out, Tensor? d_rounded, Tensor mean, Tensor inverse, {_ROWS}, float dropout_p) "
    "-> (Tensor d_x, Tensor d_residual, Tensor d_parameters)",
    _backward,
    _backward_fake,
    keys=_KEYS,
)


class _ResidualNorm(torch.autograd.Function):
    """The two operators as one differentiable function; without ``rounded`` the second result is None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        bias: Tensor,
        weight: Tensor,
        shift: Tensor,
        eps: float,
        rounded: torch.dtype | None,
        dropout_p: float,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        out, narrow, mean, inverse = torch.ops.cmsbert_fast.residual_norm_forward(
            x, residual, bias, weight, shift, seed, eps, dropout_p, rounded
        )
        ctx.set_materialize_grads(False)
        ctx.dropout_p = dropout_p
        ctx.save_for_backward(mean, inverse, x, residual, bias, weight, shift, seed)
        return out, None if rounded is None else narrow

    @staticmethod
    @once_differentiable("residual_norm")
    def backward(
        ctx: Any, saved: tuple[Tensor, ...], d_out: Tensor | None, d_rounded: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        parameters = saved[4:7]
        d_x, d_residual, d_parameters = torch.ops.cmsbert_fast.residual_norm_backward(
            d_out, d_rounded, *saved, ctx.dropout_p
        )
        of_parameters = (d.to(p.dtype) for d, p in zip(d_parameters, parameters, strict=True))
        return d_x, d_residual, *of_parameters, None, None, None, None
