"""The LSTM in PyTorch: cuDNN's over a PackedSequence or a padded batch, and the operator's recurrence for any device
and dtype.

The recurrence takes and fills the same tensors as that of :mod:`cmsbert_fast.ops.lstm.cpu`.
"""

import torch
from torch import Tensor

from cmsbert_fast.ops.lstm.steps import previous, slices, time_steps
from cmsbert_fast.packing import Packing, pad, unpad, valid_positions


def cudnn_lstm(
    frames: Tensor, cu_seqlens: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> Tensor:
    """cuDNN's LSTM (off the GPU: ATen's) on a PackedSequence made without padding: (F, d_m) -> (F, d)."""
    rows, batch_sizes = time_steps(cu_seqlens, frames.device)
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    if not len(batch_sizes):
        return _nothing(frames, *weights)
    state = frames.new_zeros(1, int(batch_sizes[0]), weight_hh.shape[1])
    hidden, _, _ = torch.lstm(
        frames[rows],
        batch_sizes,
        (state, state),
        weights,
        *_one_layer(),
    )
    return hidden.new_zeros(frames.shape[0], hidden.shape[1]).index_copy(0, rows, hidden)


def padded_cudnn_lstm(
    frames: Tensor, packing: Packing, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> Tensor:
    """:func:`cudnn_lstm` where only the device knows the lengths: every sequence takes ``packing.max_length`` steps.

    Nothing waits for the device, and what is launched depends on shapes alone: a CUDA graph can hold it.
    """
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    batch = packing.cu_seqlens.shape[0] - 1
    if not (batch and packing.max_length and frames.shape[0]):
        return _nothing(frames, *weights)
    rest = ~valid_positions(packing)[..., None]
    padded = pad(frames, packing).masked_fill(rest, 0).transpose(0, 1)
    state = frames.new_zeros(1, batch, weight_hh.shape[1])
    hidden, _, _ = torch.lstm(
        padded,
        (state, state),
        weights,
        *_one_layer(),
        False,  # batch first
    )
    return unpad(hidden.transpose(0, 1), packing, frames.shape[0])


def _one_layer() -> tuple[bool, int, float, bool, bool]:
    """What torch.lstm is told of one layer in one direction: biases, layers, dropout, training, bidirectional."""
    return True, 1, 0.0, torch.is_grad_enabled(), False


def _nothing(frames: Tensor, *weights: Tensor) -> Tensor:
    """Zeros (F, d) for a batch without time steps.

    Adding 0 * parameter keeps every parameter in the graph: DistributedDataParallel waits for all of them.
    """
    anchor = sum((weight.sum() for weight in weights), frames[:0].sum())
    return frames.new_zeros(frames.shape[0], weights[1].shape[1]) + 0 * anchor


def forward(batch_sizes: Tensor, weight_hh: Tensor, gates: Tensor, hidden: Tensor, cells: Tensor) -> None:
    """Fills ``hidden`` and ``cells`` (F, d); ``gates`` (F, 4d), the products with the frames, become activated."""
    size = weight_hh.shape[1]
    h = c = None
    for step in slices(batch_sizes):
        z = gates[step]
        alive = len(z)
        if h is not None:
            z.addmm_(h[:alive], weight_hh.T)
        z[:, : 2 * size].sigmoid_()
        z[:, 2 * size : 3 * size].tanh_()
        z[:, 3 * size :].sigmoid_()
        i, f, g, o = z.chunk(4, dim=1)
        new = torch.mul(i, g, out=cells[step])
        c = new if c is None else new.addcmul_(f, c[:alive])
        h = torch.mul(o, c.tanh(), out=hidden[step])


def backward(batch_sizes: Tensor, weight_hh: Tensor, gates: Tensor, cells: Tensor, d_hidden: Tensor) -> Tensor:
    """Gradients of the gates before activation (F, 4d) from those of hidden states (F, d), which are overwritten."""
    steps = slices(batch_sizes)
    grad_gates = gates.new_empty(len(d_hidden), gates.shape[1])
    grad_h = grad_c = None
    for step, before in zip(reversed(steps), reversed(previous(steps)), strict=True):
        i, f, g, o = gates[step].chunk(4, dim=1)
        d_i, d_f, d_g, d_o = grad_gates[step].chunk(4, dim=1)
        tanh_c = cells[step].tanh()
        d_h = d_hidden[step]
        if grad_h is not None:  # sequences that end at this step have no gradient from later ones
            d_h[: len(grad_h)] += grad_h
        d_c = torch.addcmul(d_h * o, d_h * o, tanh_c * tanh_c, value=-1)
        if grad_c is not None:
            d_c[: len(grad_c)] += grad_c
        torch.mul(d_h * tanh_c, o - o * o, out=d_o)
        torch.mul(d_c * g, i - i * i, out=d_i)
        torch.mul(d_c * i, 1 - g * g, out=d_g)
        if before is None:
            d_f.zero_()
        else:
            torch.mul(d_c * cells[before], f - f * f, out=d_f)
            grad_h, grad_c = grad_gates[step] @ weight_hh, d_c * f
    return grad_gates


def transposed_product(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """x^T y."""
    return (x.T @ y).to(dtype)
