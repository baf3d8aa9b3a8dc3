"""The "cpu" backend of a layer of BERT: ``kernels/cpu/layer.cpp`` behind a registered operator."""

import struct
from typing import Any

import torch
from torch import Tensor

from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.kernels.cpu.attention_call import ABSENT, ACTIVATIONS, CALL, modality_layout, run
from cmsbert_fast.ops.autograd import register_operator
from cmsbert_fast.ops.bert_layer.types import Parameters, Shift

_LAYER = struct.Struct(f"=3q12q{'2qd' * 2}4q{CALL.format.removeprefix('=')}")  # ``Layer`` of the C++
# Of attention's call: made by the C++.
_HEADS, _OUTPUTS, _GATES = (0,) * 12, (0,) * 7, (0, 0, 0, 0)


def bert_layer(
    x: Tensor,
    parameters: Parameters,
    visual: Shift,
    acoustic: Shift,
    cu_seqlens: Tensor,
    heads: int,
    activation: str,
) -> Tensor:
    """See :func:`cmsbert_fast.ops.bert_layer.api.bert_layer`, which checks what this takes."""
    return torch.ops.cmsbert_fast.bert_layer(x, *parameters, *visual, *acoustic, cu_seqlens, heads, activation)


def _forward(x: Tensor, dense: list[Tensor], norms: list[Tensor], epsilons: list[float], *others: Any) -> Tensor:
    *shifts, cu_seqlens, heads, activation = others
    # Copies, where they are made, live until the call returns.
    x = x.contiguous()
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
    run("bert_layer", call)
    return out


def _contiguous(shift: Shift) -> Shift:
    return Shift(*(None if tensor is None else tensor.contiguous() for tensor in shift))


def _layout(shift: Shift) -> tuple[int, ...]:
    if shift.frames is None:
        return ABSENT
    return modality_layout(_GATES, shift.frames, shift.weight, shift.cu_seqlens)


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
