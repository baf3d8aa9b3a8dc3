"""Linear layers whose weights are cast, and laid beside one another, once for forward and backward.

Under autocast PyTorch casts every operand of every product, and every gradient back. Here the weights of a whole BERT
layer become copies in one launch (:func:`cast_copies`), and their gradients leave the product in the parameters' own
dtype: nothing is rounded between. Biases of single products are left to what follows them
(:mod:`cmsbert_fast.ops.bias_gelu`, :mod:`cmsbert_fast.ops.residual_norm`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmsbert_fast.ops.autograd import once_differentiable

ALIGNED = 16  # numbers: rows of a product's result, and copies, begin where wide loads can
_INSTEAD = 'backend="torch"'


class Gate(NamedTuple):
    """A linear layer of one output over [X_i; V_j], in the halves that lie in its weight one after the other.

    Attributes:
        frames: V, (F, d_m), in the dtype of the products.
        weight: (1, D + d_m).
        bias: (1,).
    """

    frames: Tensor
    weight: Tensor
    bias: Tensor


def cast_copies(groups: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """The numbers of each group, one tensor after the other, in ``dtype``: flat, in one allocation and one launch.

    A group of one tensor that has the dtype is the tensor itself. Not differentiable.
    """
    ready = [_flat(group[0]) if len(group) == 1 and group[0].dtype == dtype else None for group in groups]
    made = iter(_copies([group for group, own in zip(groups, ready, strict=True) if own is None], dtype))
    return [next(made) if own is None else own for own in ready]


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)


def _copies(groups: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> list[Tensor]:
    if not groups:
        return []
    sizes = [sum(t.numel() for t in group) for group in groups]
    begins = [0]
    for size in sizes:
        begins.append(begins[-1] + -(-size // ALIGNED) * ALIGNED)
    whole = torch.empty(begins[-1], dtype=dtype, device=groups[0][0].device)
    sources = [_flat(t) for group in groups for t in group]
    targets, copies = [], []
    for group, begin, size in zip(groups, begins, sizes, strict=False):
        copies.append(whole[begin : begin + size])
        targets += copies[-1].split([t.numel() for t in group])
    torch._foreach_copy_(targets, sources)
    return copies


def wide_product(d: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """d^T x, a weight's gradient, summed and returned in ``dtype``: (m, n) of d (T, m) and x (T, n)."""
    if d.dtype == dtype:
        return d.t() @ x
    if _widens(d):
        return torch.mm(d.t(), x, out_dtype=dtype)
    return d.t().to(dtype) @ x.to(dtype)


def _widens(d: Tensor) -> bool:
    """Whether a product of this tensor may have a wider dtype than its operands: cuBLAS alone has such products."""
    return d.is_cuda and torch.version.hip is None


def product(x: Tensor, copy: Tensor, weight: Tensor) -> Tensor:
    """x W^T, (T, d_out), without a bias.

    Args:
        x: (T, d_in).
        copy: The weight in the dtype of x, contiguous, from :func:`cast_copies`.
        weight: The parameter (d_out, d_in), which gets the gradient.
    """
    return _Product.apply(x, copy.view(weight.shape), weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, copy: Tensor, weight: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        ctx.save_for_backward(x, copy)
        return x @ copy.t()

    @staticmethod
    @once_differentiable("the fused layer", instead=_INSTEAD)
    def backward(ctx: Any, saved: tuple[Tensor, ...], d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, copy = saved
        need_x, _, need_weight = ctx.needs_input_grad
        d_x = d_y @ copy if need_x else None
        return d_x, None, wide_product(d_y, x, ctx.dtype) if need_weight else None


def attach(copies: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies in the shapes of their parameters, differentiable in these: one launch casts the gradients."""
    return _Attached.apply(len(copies), *copies, *parameters) if copies else ()


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        parameters = tensors[count:]
        ctx.count, ctx.dtypes = count, [p.dtype for p in parameters]
        return tuple(copy.view(p.shape) for copy, p in zip(tensors[:count], parameters, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cast = [torch.empty_like(g, dtype=dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        torch._foreach_copy_(cast, list(gradients))
        return None, *[None] * ctx.count, *cast


class Merged(NamedTuple):
    """The copies of :func:`project`'s weights.

    Attributes:
        weight: (P, D): the layers' rows, one of each gate, and zeros up to a multiple of ``ALIGNED``.
        bias: (P,).
        of_frames: The half of each gate's weight that is multiplied with its frames, (d_m,).
    """

    weight: Tensor
    bias: Tensor
    of_frames: list[Tensor]


def merged_groups(weights: Sequence[Tensor], biases: Sequence[Tensor], gates: Sequence[Gate]) -> list[list[Tensor]]:
    """What :func:`cast_copies` is to copy for :func:`merge`: two groups, and one for each gate."""
    size = weights[0].shape[1]
    rows = sum(len(w) for w in weights) + len(gates)
    zeros = weights[0].new_zeros(-rows % ALIGNED * size)
    of_gates = [_flat(gate.weight) for gate in gates]
    of_tokens = [*weights, *(w[:size] for w in of_gates), zeros]
    return [
        of_tokens,
        [*biases, *(gate.bias for gate in gates), zeros[: -rows % ALIGNED]],
        *([w[size:]] for w in of_gates),
    ]


def merge(copies: Sequence[Tensor]) -> Merged:
    """The copies of :func:`merged_groups`."""
    weight, bias, *of_frames = copies
    return Merged(weight.view(len(bias), -1), bias, of_frames)


def project(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], gates: Sequence[Gate], copies: Merged
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Several linear layers of the same input, and the gates over [X_i; V_j], in one product of the tokens.

    Returns:
        The layers' outputs (T, d_out); each gate's w_x . X_i + b, (T,), and its w_f . V_j, (F,).
    """
    flat = _Projection.apply(
        copies, len(weights), x, *(g.frames for g in gates), *weights, *(g.weight for g in gates), *biases,
        *(g.bias for g in gates),
    )  # fmt: skip
    split = len(weights), len(weights) + len(gates)
    return list(flat[: split[0]]), list(flat[split[0] : split[1]]), list(flat[split[1] :])


class _Projection(torch.autograd.Function):
    """Arguments: copies, number of layers, x, frames, weights (layers, gates), biases (likewise)."""

    @staticmethod
    def forward(ctx: Any, copies: Merged, layers: int, x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        count = len(copies.of_frames)
        frames, weights = others[:count], others[count : count + layers + count]
        ctx.layers, ctx.dtype, ctx.count = layers, weights[0].dtype, count
        ctx.heights = [len(w) for w in weights]
        ctx.save_for_backward(x, copies.weight, *frames, *copies.of_frames)
        y = torch.addmm(copies.bias, x, copies.weight.t())
        rows = sum(ctx.heights)
        *outputs, of_tokens = y[:, :rows].split([*ctx.heights[:layers], count], dim=1)
        of_frames = [values @ vector for values, vector in zip(frames, copies.of_frames, strict=True)]
        return (*outputs, *of_tokens.unbind(1), *of_frames)

    @staticmethod
    @once_differentiable("the fused layer", instead=_INSTEAD)
    def backward(ctx: Any, saved: tuple[Tensor, ...], *d: Tensor) -> tuple[Tensor | None, ...]:
        layers, count, rows = ctx.layers, ctx.count, sum(ctx.heights)
        x, weight, *others = saved
        frames, vectors = others[:count], others[count:]
        of_layers, of_tokens, of_frames = d[:layers], d[layers : layers + count], d[layers + count :]
        needs_x, needs_frames = ctx.needs_input_grad[2], ctx.needs_input_grad[3 : 3 + count]
        # The last columns may hold any finite numbers: their rows of the weight are 0, their gradients are not read.
        rest = of_layers[0][:, : len(weight) - rows]
        d_y = torch.cat([*of_layers, *(p[:, None] for p in of_tokens), rest], dim=1)
        d_x = d_y @ weight if needs_x else None
        d_frames = [
            r[:, None] * vector if needed else None
            for r, vector, needed in zip(of_frames, vectors, needs_frames, strict=True)
        ]
        d_weights: list[Tensor | None] = [None] * 2 * (layers + count)
        if any(ctx.needs_input_grad[3 + count :]):
            own = d_y[:, :rows]
            d_weight, d_bias = wide_product(own, x, ctx.dtype), own.sum(0, dtype=ctx.dtype)
            heights = ctx.heights
            *d_layers, d_gates = d_weight.split([*heights[:layers], count])
            d_weights = [*d_layers, *_gate_gradients(d_gates, of_frames, frames), *d_bias.split(heights)]
            needed = ctx.needs_input_grad[3 + count :]
            d_weights = [g if wanted else None for g, wanted in zip(d_weights, needed, strict=True)]
        return None, None, d_x, *d_frames, *d_weights


def _gate_gradients(of_tokens: Tensor, of_frames: Sequence[Tensor], frames: Sequence[Tensor]) -> list[Tensor]:
    """The gates' gradients (1, D + d_m) from those of their first halves, (gates, D), and of w_f . V_j, (F,) each."""
    if not frames:
        return []
    size = of_tokens.shape[1]
    whole = of_tokens.new_empty(len(frames), size + max(v.shape[1] for v in frames))
    whole[:, :size] = of_tokens
    gradients = []
    for row, d, values in zip(whole.split(1), of_frames, frames, strict=True):
        width = size + values.shape[1]
        _wide_product_into(d[:, None], values, row[:, size:width])
        gradients.append(row[:, :width])
    return gradients


def _wide_product_into(d: Tensor, x: Tensor, out: Tensor) -> None:
    """:func:`wide_product` written to ``out``, whose dtype it takes."""
    if d.dtype != out.dtype and _widens(d):
        torch.ops.aten.mm.dtype_out(d.t(), x, out.dtype, out=out)
    else:
        out.copy_(wide_product(d, x, out.dtype))
