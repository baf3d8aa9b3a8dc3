"""A whole layer of BERT with CMS attention in one call of compiled C++, without gradients.

For a few utterances Python between a layer's operators takes longer than the threads of the one wait for the next: they
go to sleep, and each operator wakes them up again.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cmsbert_fast.ops.bert_layer import cpu
from cmsbert_fast.ops.bert_layer.types import Parameters, Shift
from cmsbert_fast.ops.dispatch import choose_backend

_PLAIN = (Tensor, nn.Parameter)  # other classes may hold no numbers to compute with


def takes(x: Tensor, backend: str) -> bool:
    """Whether layers that read x, (T, D), may run in one call: where a backend does that."""
    return choose_backend("bert_layer", x, backend) == "cpu"


def bert_layer(
    x: Tensor,
    parameters: Parameters,
    visual: Shift,
    acoustic: Shift,
    cu_seqlens: Tensor,
    *,
    heads: int,
    activation: str,
) -> Tensor | None:
    """The layer's output, (T, D), where :func:`takes` is true.

    None where its operators one after another are wanted, which have other forms or say what is wrong: where a tensor
    is absent, is not plain float32 memory on the CPU or has another shape than BERT's, or where ``cu_seqlens`` is not
    what :func:`cmsbert_fast.cms_attention` takes.

    Args:
        x: (T, D), packed sequences, one after the other.
        parameters: Of the layer.
        visual, acoustic: The modalities.
        cu_seqlens: (B + 1,) int32, of the tokens.
        heads: Number of heads.
        activation: Of the gates.

    Raises:
        ValueError: ``cu_seqlens`` falls, or ends above the number of rows.
    """
    if not _fits(x, parameters, (visual, acoustic), cu_seqlens):
        return None
    return cpu.bert_layer(x, parameters, visual, acoustic, cu_seqlens, heads, activation)


def _fits(x: Tensor, parameters: Parameters, shifts: tuple[Shift, Shift], cu_seqlens: Tensor) -> bool:
    dense, norms, _ = parameters
    inner = dense[8]
    if inner is None or inner.ndim != 2 or x.ndim != 2:
        return False
    width, size = x.shape[1], inner.shape[0]
    square, row = (width, width), (width,)
    expected = [square, row] * 4 + [(size, width), (size,), (width, size), row] + [row] * 4
    if not all(map(_is_plain, (x, *dense, *norms), (x.shape, *expected))):
        return False
    lengths = cu_seqlens.shape
    if not _are_lengths(cu_seqlens, lengths):
        return False
    for shift in shifts:
        if all(tensor is None for tensor in shift):
            continue
        gate_weight, gate_bias, weight, frames, of_frames = shift
        if frames is None or frames.ndim != 2 or not _are_lengths(of_frames, lengths):
            return False
        frame_size = frames.shape[1]
        shapes = ((1, width + frame_size), (1,), (width, frame_size), frames.shape)
        if not frame_size or not all(map(_is_plain, (gate_weight, gate_bias, weight, frames), shapes)):
            return False
    return True


def _is_plain(tensor: Any, shape: tuple[int, ...]) -> bool:
    return type(tensor) in _PLAIN and tensor.dtype is torch.float32 and tensor.is_cpu and tensor.shape == shape


def _are_lengths(tensor: Any, shape: tuple[int, ...]) -> bool:
    if type(tensor) is not Tensor or tensor.dtype is not torch.int32 or not tensor.is_cpu or len(shape) != 1:
        return False
    return tensor.shape == shape and shape[0] > 1 and tensor.is_contiguous()
