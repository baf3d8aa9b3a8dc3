"""The LSTM as one registered operator, ``torch.ops.cmsbert_fast.lstm``, with its own backward.

It is opaque to torch.compile, which would break the graph at torch.nn.LSTM. The weights' gradients are one matrix
product each after the last time step. What is saved is in the order of time (:mod:`cmsbert_fast.ops.lstm.steps`). The
recurrence is compiled C++ where the call names the dtype of its products, or else a loop of PyTorch's operators.
"""

from typing import Any

import torch
from torch import Tensor

from cmsbert_fast.ops.autograd import once_differentiable, register_operator
from cmsbert_fast.ops.lstm import cpu
from cmsbert_fast.ops.lstm import torch as plain
from cmsbert_fast.ops.lstm.steps import previous, slices, time_steps


def lstm(frames: Tensor, cu_seqlens: Tensor, *weights: Tensor, products: torch.dtype | None) -> Tensor:
    """Hidden states (F, d) of packed frames (F, d_m), each sequence from a zero state; 0 at rows of no sequence.

    Args:
        weights: W_ih, W_hh, b_ih and b_hh as torch.nn.LSTM has them.
        products: The dtype of the compiled recurrence's products; None = PyTorch's loop.
    """
    return torch.ops.cmsbert_fast.lstm(frames, cu_seqlens, *weights, products)[0]


def _forward(
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    products: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states (F, d); and for backward, in the order of time, hidden states as W_hh was multiplied with them (F,
    d, made even where they are rounded), the activated gates i, f, g, o (F, 4d) and the cells c (F, d)."""
    rows, batch_sizes = time_steps(cu_seqlens, frames.device)
    size = weight_hh.shape[1]
    gates, hidden, cells = (frames.new_zeros(frames.shape[0], columns) for columns in (4 * size, size, size))
    bias, before = bias_ih + bias_hh, gates[: len(rows)]
    if products is None:
        torch.addmm(bias, frames[rows], weight_ih.T, out=before)
    else:
        cpu.product(frames[rows], weight_ih, before, bias)
    operand = hidden
    if products is None:
        plain.forward(batch_sizes, weight_hh, gates, hidden, cells)
    elif products == torch.bfloat16:
        operand = _rounded(hidden)
        cpu.forward(batch_sizes, weight_hh, gates, hidden, cells, operand)
    else:
        cpu.forward(batch_sizes, weight_hh, gates, hidden, cells)
    in_order = torch.zeros_like(hidden).index_copy_(0, rows, hidden[: len(rows)])
    return in_order, operand, gates, cells


def _rounded(hidden: Tensor) -> Tensor:
    """Zeros for the rounded hidden states: of even size, because they are multiplied two and two."""
    rows, size = hidden.shape
    return hidden.new_zeros(rows, size + size % 2, dtype=torch.bfloat16)


def _forward_fake(
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    products: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, size = frames.shape[0], weight_hh.shape[1]
    hidden, gates, cells = (frames.new_empty(rows, columns) for columns in (size, 4 * size, size))
    operand = _rounded(hidden) if products == torch.bfloat16 else torch.empty_like(hidden)
    return hidden, operand, gates, cells


def _backward(
    grad: Tensor,
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_hh: Tensor,
    hidden: Tensor,
    gates: Tensor,
    cells: Tensor,
    products: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the gates before activation (F, 4d), 0 at rows of no sequence, and of both weights."""
    rows, batch_sizes = time_steps(cu_seqlens, grad.device)
    if products is None:
        grad_gates = operand = plain.backward(batch_sizes, weight_hh, gates, cells, grad[rows])
    else:
        grad_gates, operand = cpu.backward(batch_sizes, weight_hh, gates, cells, grad[rows], products)
    steps = slices(batch_sizes)
    before = [torch.arange(step.start, step.stop) for step in previous(steps) if step is not None]
    transposed = plain.transposed_product if products is None else cpu.transposed_product
    if before:
        grad_hh = transposed(operand[steps[0].stop :], hidden[torch.cat(before), : weight_hh.shape[1]], weight_hh.dtype)
    else:
        grad_hh = torch.zeros_like(weight_hh)
    grad_ih = transposed(grad_gates, frames[rows], frames.dtype)  # rows of no sequence may hold NaN
    return torch.zeros_like(gates).index_copy_(0, rows, grad_gates), grad_ih, grad_hh


def _backward_fake(
    grad: Tensor,
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_hh: Tensor,
    hidden: Tensor,
    gates: Tensor,
    cells: Tensor,
    products: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(gates), gates.new_empty(gates.shape[1], frames.shape[1]), torch.empty_like(weight_hh)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    frames, cu_seqlens, weight_ih, weight_hh, _, _, ctx.products = inputs
    _, *kept = output
    ctx.save_for_backward(frames, cu_seqlens, weight_ih, weight_hh, *kept)
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)


@once_differentiable("PackedLSTM", instead="cmsbert_fast.reference.lstm")
def _differentiate(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    frames, cu_seqlens, weight_ih, weight_hh, hidden, gates, cells = saved
    with torch.autocast(grad.device.type, enabled=False):
        grad_gates, grad_ih, grad_hh = torch.ops.cmsbert_fast.lstm_backward(
            grad, frames, cu_seqlens, weight_hh, hidden, gates, cells, ctx.products
        )
        bias = grad_gates.sum(dim=0)
        grad_frames = grad_gates @ weight_ih if ctx.needs_input_grad[0] else None
    return grad_frames, None, grad_ih, grad_hh, bias, bias.clone(), None


register_operator(
    "lstm(Tensor frames, Tensor cu_seqlens, Tensor weight_ih, Tensor weight_hh, Tensor bias_ih, Tensor bias_hh, "
    "ScalarType? products=None) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup_context=_save_for_backward,
    backward=_differentiate,
)
register_operator(
    "lstm_backward(Tensor grad, Tensor frames, Tensor cu_seqlens, Tensor weight_hh, Tensor hidden, Tensor gates, "
    "Tensor cells, ScalarType? products) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
