"""Whole layers of BERT with CMS attention in one call of compiled C++, without gradients.

With few rows, Python takes longer between two operators than idle threads spin: they sleep, and every operator wakes
them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmsbert_fast.kernels.cpu.attention_call import ACTIVATIONS
from cmsbert_fast.ops.autocast import autocast_dtype
from cmsbert_fast.ops.bert_layers import cpu  # noqa: F401  # registers the operator
from cmsbert_fast.ops.bert_layers.types import TENSORS, Layer, Stream
from cmsbert_fast.ops.dispatch import choose_backend

_PLAIN = (Tensor, nn.Parameter)  # other classes may hold no numbers to compute with


def takes(x: Tensor, backend: str) -> bool:
    """Whether a backend runs layers on x, (T, D), in one call."""
    return choose_backend("bert_layers", x, backend) == "cpu"


def bert_layers(
    x: Tensor,
    layers: Sequence[Layer],
    visual: Stream,
    acoustic: Stream,
    cu_seqlens: Tensor,
    *,
    heads: int,
    activation: str,
) -> Tensor | None:
    """The last layer's output, (T, D), where :func:`takes` is true.

    Where autocast casts to bfloat16, the operands of linear layers are rounded to it; all else is float32.

    None where the operators should run instead, which have other forms or say what is wrong: a tensor is missing, is
    not plain float32 memory on the CPU or has another shape than BERT's, or an option or ``cu_seqlens`` is not what
    :func:`cmsbert_fast.cms_attention` takes. Under autocast, the weights of all linear layers may be in its dtype.

    Args:
        x: (T, D), packed sequences, one after the other.
        layers: One or more, each reading the output of the one before.
        visual, acoustic: The modalities.
        cu_seqlens: (B + 1,) int32, of the tokens.
        heads: Number of heads.
        activation: Of the gates.

    Raises:
        ValueError: ``cu_seqlens`` of tokens, or of frames that a layer uses, does not start at 0, falls, or ends above
            the number of rows.
    """
    if activation not in ACTIVATIONS or not layers or x.ndim != 2 or not _is_plain(x, x.shape):
        return None
    if not (0 < heads <= x.shape[1] and x.shape[1] % heads == 0):
        return None
    streams, lengths = (visual, acoustic), cu_seqlens.shape
    if not _are_lengths(cu_seqlens, lengths) or not all(_stream_fits(stream, lengths) for stream in streams):
        return None
    dtype = autocast_dtype(x.device) or torch.float32
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    kept = dtype if getattr(layers[0].query.weight, "dtype", None) is dtype else torch.float32
    dtypes = [kept, torch.float32] * len(layers[0].dense) + [torch.float32] * (TENSORS - 2 * len(layers[0].dense))
    tensors: list[Tensor | None] = []
    for layer in layers:
        of_layer = layer.tensors
        shapes = _shapes(layer, x.shape[1], streams)
        if not all(_fits(*each) for each in zip(of_layer, shapes, dtypes, strict=True)):
            return None
        tensors += of_layer
    epsilons = [norm.epsilon for layer in layers for norm in layer.norms]
    return torch.ops.cmsbert_fast.bert_layers(
        x, tensors, epsilons, *visual, *acoustic, cu_seqlens, heads, activation, dtype
    )


def _shapes(layer: Layer, width: int, streams: tuple[Stream, Stream]) -> list[tuple[int, ...] | None]:
    """The shapes of a layer's tensors, in order; None where there must be no tensor."""
    inner = layer.intermediate.bias
    size = inner.shape[0] if isinstance(inner, Tensor) and inner.ndim == 1 else 0
    vector, square = (width,), (width, width)
    shapes: list[tuple[int, ...] | None] = [*[square, vector] * 4, (size, width), (size,), (width, size), *[vector] * 5]
    for shift, stream in zip(layer.shifts, streams, strict=True):
        if shift.weight is None or stream.frames is None:
            shapes += [None] * 3
        else:
            depth = stream.frames.shape[1]
            shapes += [(1, width + depth), (1,), (width, depth)]
    return shapes


def _fits(tensor: Any, shape: tuple[int, ...] | None, dtype: torch.dtype) -> bool:
    return tensor is None if shape is None else _is_plain(tensor, shape, dtype)


def _stream_fits(stream: Stream, lengths: tuple[int, ...]) -> bool:
    frames, cu_seqlens = stream
    if frames is None:
        return cu_seqlens is None
    if frames.ndim != 2 or not frames.shape[1]:
        return False
    return _is_plain(frames, frames.shape) and _are_lengths(cu_seqlens, lengths)


def _is_plain(tensor: Any, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> bool:
    return (
        type(tensor) in _PLAIN
        and tensor.dtype is dtype
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.shape == shape
    )


def _are_lengths(tensor: Any, shape: tuple[int, ...]) -> bool:
    if type(tensor) is not Tensor or tensor.dtype is not torch.int32 or not tensor.is_cpu or len(shape) != 1:
        return False
    return tensor.shape == shape and shape[0] > 1 and tensor.is_contiguous()
