"""A whole layer of BERT with CMS attention in one call of compiled C++, without gradients.

With few rows, Python takes longer between two operators than idle threads spin: they sleep, and every operator wakes
them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cmsbert_fast.kernels.cpu.attention_call import ACTIVATIONS
from cmsbert_fast.ops.bert_layer import cpu  # noqa: F401  # registers the operator
from cmsbert_fast.ops.bert_layer.types import Parameters, Shift
from cmsbert_fast.ops.dispatch import choose_backend

_PLAIN = (Tensor, nn.Parameter)  # other classes may hold no numbers to compute with


def takes(x: Tensor, backend: str) -> bool:
    """Whether a backend runs layers on x, (T, D), in one call."""
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

    None where the operators should run instead, which have other forms or say what is wrong: a tensor is missing, is
    not plain float32 memory on the CPU or has another shape than BERT's, or an option or ``cu_seqlens`` is not what
    :func:`cmsbert_fast.cms_attention` takes.

    Args:
        x: (T, D), packed sequences, one after the other.
        parameters: Of the layer.
        visual, acoustic: The modalities.
        cu_seqlens: (B + 1,) int32, of the tokens.
        heads: Number of heads.
        activation: Of the gates.

    Raises:
        ValueError: ``cu_seqlens`` of tokens or frames does not start at 0, falls, or ends above the number of rows.
    """
    if not _fits(x, parameters, (visual, acoustic), cu_seqlens) or activation not in ACTIVATIONS:
        return None
    if not (0 < heads <= x.shape[1] and x.shape[1] % heads == 0):
        return None
    dense = [tensor for layer in parameters.dense for tensor in layer]
    norms = [tensor for norm in parameters.norms for tensor in (norm.weight, norm.bias)]
    epsilons = [norm.epsilon for norm in parameters.norms]
    return torch.ops.cmsbert_fast.bert_layer(
        x, dense, norms, epsilons, *visual.tensors, *acoustic.tensors, cu_seqlens, heads, activation
    )


def _fits(x: Tensor, parameters: Parameters, shifts: tuple[Shift, Shift], cu_seqlens: Tensor) -> bool:
    inner = parameters.intermediate.bias
    if x.ndim != 2 or inner is None or inner.ndim != 1:
        return False
    width, size = x.shape[1], inner.shape[0]
    if not _is_plain(x, x.shape):
        return False
    shapes = [(width, width)] * 4 + [(size, width), (width, size)]
    for dense, (n, depth) in zip(parameters.dense, shapes, strict=True):
        if not (_is_plain(dense.weight, (n, depth)) and _is_plain(dense.bias, (n,))):
            return False
    if not all(_is_plain(norm.weight, (width,)) and _is_plain(norm.bias, (width,)) for norm in parameters.norms):
        return False
    lengths = cu_seqlens.shape
    return _are_lengths(cu_seqlens, lengths) and all(_shift_fits(shift, width, lengths) for shift in shifts)


def _shift_fits(shift: Shift, width: int, lengths: tuple[int, ...]) -> bool:
    if all(tensor is None for tensor in shift.tensors):
        return True
    if shift.frames is None or shift.frames.ndim != 2 or not shift.frames.shape[1]:
        return False
    size = shift.frames.shape[1]
    return (
        _is_plain(shift.gate.weight, (1, width + size))
        and _is_plain(shift.gate.bias, (1,))
        and _is_plain(shift.weight, (width, size))
        and _is_plain(shift.frames, shift.frames.shape)
        and _are_lengths(shift.cu_seqlens, lengths)
    )


def _is_plain(tensor: Any, shape: tuple[int, ...]) -> bool:
    return (
        type(tensor) in _PLAIN
        and tensor.dtype is torch.float32
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.shape == shape
    )


def _are_lengths(tensor: Any, shape: tuple[int, ...]) -> bool:
    if type(tensor) is not Tensor or tensor.dtype is not torch.int32 or not tensor.is_cpu or len(shape) != 1:
        return False
    return tensor.shape == shape and shape[0] > 1 and tensor.is_contiguous()
