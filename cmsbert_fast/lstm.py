"""One-layer LSTM over packed sequences (Eq. 11): cuDNN's or ATen's own, without padding and without graph breaks."""

from typing import Any

import torch
from torch import Tensor, nn

from cmsbert_fast.packing import Packing


def lstm(module: nn.LSTM, frames: Tensor, packing: Packing) -> Tensor:
    """h_m = LSTM(frames), each sequence from a zero state.

    Args:
        module: One layer, one direction, with biases; its parameters are used.
        frames: (F, d_m).
        packing: Which rows belong to which sequence.

    Returns:
        (F, d) in the parameters' dtype; 0 at rows of no sequence.
    """
    weights: list[Tensor] = list(module.parameters())  # weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0
    # Recurrence amplifies rounding: under autocast the LSTM keeps the parameters' dtype.
    with torch.autocast(frames.device.type, enabled=False):
        frames = frames.to(weights[0].dtype)
        if torch.compiler.is_compiling():
            # TorchDynamo breaks the graph at an LSTM, so it is handed one opaque operator.
            return torch.ops.cmsbert_fast.lstm(frames, packing.cu_seqlens, *weights)
        return _lstm(frames, packing.cu_seqlens, *weights)


def _lstm(
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> Tensor:
    lengths = cu_seqlens.diff().cpu().long()
    # A PackedSequence holds the time steps one after the other, the longest sequence first within each.
    ordered, order = lengths.sort(descending=True, stable=True)
    longest = int(ordered[0])
    if longest == 0:
        # Adding 0 * parameter keeps every parameter in the graph: DistributedDataParallel waits for all of them.
        anchor = sum((weight.sum() for weight in (weight_ih, weight_hh, bias_ih, bias_hh)), frames.new_zeros(()))
        return frames.new_zeros(frames.shape[0], weight_hh.shape[1]) + 0 * anchor
    steps = torch.arange(longest)[:, None]
    rows = (cu_seqlens[:-1].cpu().long()[order] + steps)[steps < ordered].to(frames.device)
    batch_sizes = (steps < ordered).sum(dim=1)
    state = frames.new_zeros(1, int(batch_sizes[0]), weight_hh.shape[1])
    hidden, _, _ = torch.lstm(
        frames[rows],
        batch_sizes,
        (state, state),
        (weight_ih, weight_hh, bias_ih, bias_hh),
        True,  # biases
        1,  # layers
        0.0,  # dropout
        torch.is_grad_enabled(),
        False,  # bidirectional
    )
    return hidden.new_zeros(frames.shape[0], hidden.shape[1]).index_copy(0, rows, hidden)


@torch.library.custom_op("cmsbert_fast::lstm", mutates_args=())
def _lstm_op(
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> Tensor:
    return _lstm(frames, cu_seqlens, weight_ih, weight_hh, bias_ih, bias_hh)


@_lstm_op.register_fake
def _(
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> Tensor:
    return frames.new_empty(frames.shape[0], weight_hh.shape[1])


@torch.library.custom_op("cmsbert_fast::lstm_backward", mutates_args=())
def _lstm_backward_op(
    grad: Tensor,
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (frames, weight_ih, weight_hh, bias_ih, bias_hh)]
        hidden = _lstm(leaves[0], cu_seqlens, *leaves[1:])
    grads = torch.autograd.grad(hidden, leaves, grad, allow_unused=True, materialize_grads=True)
    return tuple(grad.contiguous() for grad in grads)  # type: ignore[return-value]


@_lstm_backward_op.register_fake
def _(
    grad: Tensor,
    frames: Tensor,
    cu_seqlens: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in (frames, weight_ih, weight_hh, bias_ih, bias_hh))


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    frames, cu_seqlens, *weights = inputs
    ctx.save_for_backward(frames, cu_seqlens, *weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    frames, cu_seqlens, *weights = ctx.saved_tensors
    grads = torch.ops.cmsbert_fast.lstm_backward(grad, frames, cu_seqlens, *weights)
    return (grads[0], None, *grads[1:])


_lstm_op.register_autograd(_backward, setup_context=_save_for_backward)
