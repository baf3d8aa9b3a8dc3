"""A whole layer of BERT with CMS attention in one call of compiled C++ (``kernels/cpu/layer.cpp``), without gradients.

For a few utterances Python between a layer's operators takes longer than the threads of the one wait for the next: they
go to sleep, and each operator wakes them up again.
"""

import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.ops.attention.cpu import ABSENT, CALL
from cmsbert_fast.ops.attention.types import ACTIVATIONS
from cmsbert_fast.ops.autocast import autocast_dtype
from cmsbert_fast.ops.autograd import register_operator
from cmsbert_fast.ops.dispatch import choose_backend

MOST_ROWS = 512  # above, the time between operators no longer counts, and the tensors within are too many to keep


class Parameters(NamedTuple):
    """A layer's, float32.

    Attributes:
        dense: Weight and bias of query, key, value, of attention's output, and of the feed-forward part's two layers.
        norms: Weight and bias of the two norms.
        epsilons: Of the two norms.
    """

    dense: list[Tensor]
    norms: list[Tensor]
    epsilons: list[float]


class Shift(NamedTuple):
    """What a modality gives to a layer (Eq. 1-4), float32. All None: it is absent.

    Attributes:
        gate_weight, gate_bias: W_g (1, D + d_m) and b (1,).
        weight: W_v or W_a, (D, d_m).
        frames: (F, d_m).
        cu_seqlens: (B + 1,) int32, of the frames.
    """

    gate_weight: Tensor | None = None
    gate_bias: Tensor | None = None
    weight: Tensor | None = None
    frames: Tensor | None = None
    cu_seqlens: Tensor | None = None


NO_SHIFT = Shift()


def takes(x: Tensor, heads: tuple[int, int], backend: str) -> bool:
    """Whether layers that read x, (T, D), run here: where its products and attention would be compiled C++ too."""
    return (
        x.dtype == torch.float32
        and 0 < x.shape[0] <= MOST_ROWS
        and autocast_dtype(x.device) is None
        and choose_backend("linear", x, backend) == "cpu"
        and choose_backend("attention", x.unflatten(-1, heads), backend) == "cpu"
    )


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
    """The layer's output, (T, D); None where a tensor is not float32.

    Args:
        x: (T, D), packed sequences, one after the other.
        parameters: Of the layer.
        visual, acoustic: The modalities.
        cu_seqlens: (B + 1,) int32, of the tokens.
        heads: Number of heads.
        activation: Of the gates.
    """
    tensors = (*parameters.dense, *parameters.norms, *visual[:4], *acoustic[:4])
    if any(tensor is not None and tensor.dtype != torch.float32 for tensor in tensors):
        return None
    return torch.ops.cmsbert_fast.bert_layer(x, *parameters, *visual, *acoustic, cu_seqlens, heads, activation)


_LAYER = struct.Struct(f"=3q12q{'2qd' * 2}4q{CALL.format.removeprefix('=')}")  # ``Layer`` of the C++
_HEADS = (0,) * 12  # of attention's call: made by the C++, as are the outputs
_OUTPUTS = (0,) * 7


def _forward(x: Tensor, dense: list[Tensor], norms: list[Tensor], epsilons: list[float], *others: Any) -> Tensor:
    *shifts, cu_seqlens, heads, activation = others
    # Copies, where they are made, live until the call returns.
    x, cu_seqlens = x.contiguous(), cu_seqlens.contiguous()
    dense, norms = ([tensor.contiguous() for tensor in tensors] for tensors in (dense, norms))
    modalities = [_contiguous(Shift(*shifts[:5])), _contiguous(Shift(*shifts[5:]))]
    rows, width = x.shape
    head_size = width // heads
    out = _forward_fake(x)
    call = _LAYER.pack(
        x.data_ptr(),
        out.data_ptr(),
        dense[8].shape[0],
        *map(Tensor.data_ptr, dense),
        *(norms[0].data_ptr(), norms[1].data_ptr(), epsilons[0]),
        *(norms[2].data_ptr(), norms[3].data_ptr(), epsilons[1]),
        *(0 if tensor is None else tensor.data_ptr() for shift in modalities for tensor in shift[:2]),
        *_HEADS,
        *(cu_seqlens.data_ptr(), cu_seqlens.shape[0] - 1, rows, heads, head_size),
        head_size**-0.5,
        *(ACTIVATIONS.index(activation), False, 0),
        0.0,
        *_OUTPUTS,
        torch.get_num_threads(),
        library.parallel_loop(),
        *_layout(modalities[0]),
        *_layout(modalities[1]),
    )
    if library.run("bert_layer", call) == 1:
        raise ValueError("cu_seqlens must start at 0, never fall, and end at or below the number of rows.")
    return out


def _contiguous(shift: Shift) -> Shift:
    return Shift(*(None if tensor is None else tensor.contiguous() for tensor in shift))


def _layout(shift: Shift) -> tuple[int, ...]:
    """``Modality`` of the C++."""
    if shift.frames is None or shift.weight is None or shift.cu_seqlens is None:
        return ABSENT
    frames, weight = shift.frames, shift.weight
    of_gates, of_gradients = (0,) * 4, (0,) * 4
    strides = (frames.data_ptr(), frames.stride(0), weight.data_ptr(), weight.stride(0))
    return (*of_gates, *strides, shift.cu_seqlens.data_ptr(), *frames.shape, *of_gradients)


def _forward_fake(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_SHIFTS = ", ".join(f"Tensor? {field}_{modality}" for modality in "va" for field in Shift._fields)

register_operator(
    f"bert_layer(Tensor x, Tensor[] dense, Tensor[] norms, float[] epsilons, {_SHIFTS}, Tensor cu_seqlens, int heads,"
    " str activation) -> Tensor",
    _forward,
    _forward_fake,
    keys=("CPU",),
    differentiable="the layer's modules",
)
