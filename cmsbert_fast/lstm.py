"""One-layer LSTM over packed sequences (Eq. 11): cuDNN's or ATen's own, without padding and without graph breaks."""

from typing import Any

import torch
from torch import Tensor, nn

from cmsbert_fast.packing import Packing


class PackedLSTM(nn.Module):
    """h_m = LSTM(frames), each sequence from a zero state (Eq. 11).

    Parameters are named, laid out and initialised as torch.nn.LSTM's, a module at which torch.compile breaks the graph.

    Args:
        input_size: d_m.
        hidden_size: d.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.empty(4 * hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(4 * hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.empty(4 * hidden_size))

    def forward(self, frames: Tensor, packing: Packing) -> Tensor:
        """Frames (F, d_m) -> (F, d) in the parameters' dtype; 0 at rows of no sequence."""
        weights = (self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)
        # Recurrence amplifies rounding: under autocast the LSTM keeps the parameters' dtype.
        with torch.autocast(frames.device.type, enabled=False):
            frames = frames.to(self.weight_ih_l0.dtype)
            if torch.compiler.is_compiling():
                return torch.ops.cmsbert_fast.lstm(frames, packing.cu_seqlens, *weights)[0]
            return _lstm(frames, packing.cu_seqlens, *weights)


def _lstm(
    frames: Tensor, cu_seqlens: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> Tensor:
    """Eager: cuDNN's or ATen's LSTM on a PackedSequence made without padding."""
    rows, batch_sizes = _time_steps(cu_seqlens)
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    if not len(batch_sizes):
        # Adding 0 * parameter keeps every parameter in the graph: DistributedDataParallel waits for all of them.
        anchor = sum((weight.sum() for weight in weights), frames[:0].sum())
        return frames.new_zeros(frames.shape[0], weight_hh.shape[1]) + 0 * anchor
    state = frames.new_zeros(1, int(batch_sizes[0]), weight_hh.shape[1])
    hidden, _, _ = torch.lstm(
        frames[rows],
        batch_sizes,
        (state, state),
        weights,
        True,  # biases
        1,  # layers
        0.0,  # dropout
        torch.is_grad_enabled(),
        False,  # bidirectional
    )
    return hidden.new_zeros(frames.shape[0], hidden.shape[1]).index_copy(0, rows, hidden)


def _time_steps(cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The rows in the order of a PackedSequence: step by step, within a step the longest sequence first.

    Returns:
        rows (F,) on the device of ``cu_seqlens``, and batch_sizes (steps,) on the host: how many sequences are alive.
    """
    lengths = cu_seqlens.diff().cpu().long()
    ordered, order = lengths.sort(descending=True, stable=True)
    alive = torch.arange(int(ordered[0]))[:, None] < ordered
    rows = (cu_seqlens[:-1].cpu().long()[order] + torch.arange(int(ordered[0]))[:, None])[alive]
    return rows.to(cu_seqlens.device), alive.sum(dim=1)


# torch.compile is handed one opaque operator, with its own backward: inside an operator autograd does not run.


@torch.library.custom_op("cmsbert_fast::lstm", mutates_args=())
def _lstm_op(
    frames: Tensor, cu_seqlens: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (F, d); for the backward the activated gates i, f, g, o (F, 4d) and the cells c (F, d)."""
    rows, batch_sizes = _time_steps(cu_seqlens)
    size = weight_hh.shape[1]
    gates = torch.addmm(bias_ih + bias_hh, frames, weight_ih.T)
    hidden, cells = frames.new_zeros(frames.shape[0], size), frames.new_zeros(frames.shape[0], size)
    h = c = frames.new_zeros(int(batch_sizes[0]) if len(batch_sizes) else 0, size)
    for step in rows.split(batch_sizes.tolist()):
        z = gates[step].addmm_(h[: len(step)], weight_hh.T)
        z[:, : 2 * size].sigmoid_()
        z[:, 2 * size : 3 * size].tanh_()
        z[:, 3 * size :].sigmoid_()
        i, f, g, o = z.chunk(4, dim=1)
        c = f * c[: len(step)] + i * g
        h = o * c.tanh()
        gates[step], cells[step], hidden[step] = z, c, h
    return hidden, gates, cells


@_lstm_op.register_fake
def _(
    frames: Tensor, cu_seqlens: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows, size = frames.shape[0], weight_hh.shape[1]
    return frames.new_empty(rows, size), frames.new_empty(rows, 4 * size), frames.new_empty(rows, size)


@torch.library.custom_op("cmsbert_fast::lstm_backward", mutates_args=())
def _lstm_backward_op(
    grad: Tensor, cu_seqlens: Tensor, weight_hh: Tensor, hidden: Tensor, gates: Tensor, cells: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the gates before activation (F, 4d), 0 at rows of no sequence, and of ``weight_hh``."""
    rows, batch_sizes = _time_steps(cu_seqlens)
    grad_gates = torch.zeros_like(gates)
    previous_hidden = torch.zeros_like(hidden)
    steps = rows.split(batch_sizes.tolist())
    grad_h = grad_c = hidden.new_zeros(0, hidden.shape[1])
    for index in range(len(steps) - 1, -1, -1):
        step = steps[index]
        before = steps[index - 1][: len(step)] if index else None
        i, f, g, o = gates[step].chunk(4, dim=1)
        # Sequences that end at this step join, with no gradient from later steps.
        joined = (0, 0, 0, len(step) - len(grad_h))
        grad_h = grad[step] + nn.functional.pad(grad_h, joined)
        tanh_c = cells[step].tanh()
        grad_c = grad_h * o * (1 - tanh_c**2) + nn.functional.pad(grad_c, joined)
        previous_c = torch.zeros_like(tanh_c) if before is None else cells[before]
        z = torch.cat(
            [
                grad_c * g * i * (1 - i),
                grad_c * previous_c * f * (1 - f),
                grad_c * i * (1 - g**2),
                grad_h * tanh_c * o * (1 - o),
            ],
            dim=1,
        )
        grad_gates[step] = z
        if before is not None:
            previous_hidden[step] = hidden[before]
        grad_h, grad_c = z @ weight_hh, grad_c * f
    return grad_gates, grad_gates.T @ previous_hidden


@_lstm_backward_op.register_fake
def _(
    grad: Tensor, cu_seqlens: Tensor, weight_hh: Tensor, hidden: Tensor, gates: Tensor, cells: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gates), torch.empty_like(weight_hh)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    frames, cu_seqlens, weight_ih, weight_hh, _, _ = inputs
    ctx.save_for_backward(frames, cu_seqlens, weight_ih, weight_hh, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    frames, cu_seqlens, weight_ih, weight_hh, hidden, gates, cells = ctx.saved_tensors
    grad_gates, grad_hh = torch.ops.cmsbert_fast.lstm_backward(grad, cu_seqlens, weight_hh, hidden, gates, cells)
    bias = grad_gates.sum(dim=0)
    return grad_gates @ weight_ih, None, grad_gates.T @ frames, grad_hh, bias, bias.clone()


_lstm_op.register_autograd(_backward, setup_context=_save_for_backward)
