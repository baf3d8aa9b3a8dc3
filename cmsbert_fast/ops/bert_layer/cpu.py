"""The "cpu" backend of a layer of BERT: ``kernels/cpu/layer.cpp`` behind a registered operator."""

import struct
from typing import Any

import torch
from torch import Tensor

from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.kernels.cpu.attention_call import ABSENT, ACTIVATIONS, CALL, modality_layout, run_on_sequences
from cmsbert_fast.ops.autograd import register_operator
from cmsbert_fast.ops.bert_layer.types import Dense, Shift

_LAYER = struct.Struct(f"=3q12q{'2qd' * 2}4q{CALL.format.removeprefix('=')}")  # ``Layer`` of the C++
_HEADS, _OUTPUTS, _GATES = (0,) * 12, (0,) * 7, (0, 0, 0, 0)  # fields of attention's call that the C++ fills in


def _forward(x: Tensor, dense: list[Tensor], norms: list[Tensor], epsilons: list[float], *others: Any) -> Tensor:
    *shifts, cu_seqlens, heads, activation = others
    # Copies, where they are made, live until the call returns.
    x = x.contiguous()
    dense, norms = ([tensor.contiguous() for tensor in tensors] for tensors in (dense, norms))
    visual, acoustic = (_contiguous(*part) for part in (shifts[:5], shifts[5:]))
    *_, intermediate_bias, _, _ = dense
    rows, width = x.shape
    head_size = width // heads
    out = _forward_fake(x)
    of_norms = [(weight.data_ptr(), bias.data_ptr()) for weight, bias in zip(norms[::2], norms[1::2], strict=True)]
    call = _LAYER.pack(
        x.data_ptr(),
        out.data_ptr(),
        intermediate_bias.shape[0],
        *map(Tensor.data_ptr, dense),
        *(field for of_norm in zip(of_norms, epsilons, strict=True) for field in (*of_norm[0], of_norm[1])),
        *(0 if tensor is None else tensor.data_ptr() for shift in (visual, acoustic) for tensor in shift.gate),
        *_HEADS,
        *(cu_seqlens.data_ptr(), cu_seqlens.shape[0] - 1, rows, heads, head_size),
        head_size**-0.5,
        *(ACTIVATIONS.index(activation), False, 0),
        0.0,
        *_OUTPUTS,
        torch.get_num_threads(),
        library.parallel_loop(),
        *_layout(visual),
        *_layout(acoustic),
    )
    run_on_sequences("bert_layer", call)
    return out


def _contiguous(*tensors: Tensor | None) -> Shift:
    weight, bias, *others = (None if tensor is None else tensor.contiguous() for tensor in tensors)
    return Shift(Dense(weight, bias), *others)


def _layout(shift: Shift) -> tuple[int, ...]:
    if shift.frames is None:
        return ABSENT
    return modality_layout(_GATES, shift.frames, shift.weight, shift.cu_seqlens)


def _forward_fake(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_FIELDS = ("gate_weight", "gate_bias", "weight", "frames", "cu_seqlens")
_SHIFTS = ", ".join(f"Tensor? {field}_{modality}" for modality in "va" for field in _FIELDS)

register_operator(
    f"bert_layer(Tensor x, Tensor[] dense, Tensor[] norms, float[] epsilons, {_SHIFTS}, Tensor cu_seqlens, int heads,"
    " str activation) -> Tensor",
    _forward,
    _forward_fake,
    keys=("CPU",),
    differentiable="cmsbert_fast.CMSBertModel",
)
