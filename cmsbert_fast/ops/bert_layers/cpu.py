"""The "cpu" backend of layers of BERT: ``kernels/cpu/layers.cpp`` behind a registered operator."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.kernels.cpu.attention_call import ABSENT, ACTIVATIONS, CALL, modality_layout, run_on_sequences
from cmsbert_fast.ops.autograd import register_operator
from cmsbert_fast.ops.bert_layers.types import TENSORS

_LAYERS = struct.Struct(f"=5q{CALL.format.removeprefix('=')}")  # ``LayersCall`` of the C++
_LAYER = struct.Struct("=q14qd2qd6q")  # ``Layer``
_INNER_BIAS = 9  # where ``Layer.tensors`` has intermediate.bias
_HEADS, _OUTPUTS, _GATES = (0,) * 12, (0,) * 7, (0, 0, 0, 0)  # fields of attention's call that the C++ fills in


def _forward(
    x: Tensor,
    tensors: Sequence[Tensor | None],
    epsilons: Sequence[float],
    visual: Tensor | None,
    cu_seqlens_visual: Tensor | None,
    acoustic: Tensor | None,
    cu_seqlens_acoustic: Tensor | None,
    cu_seqlens: Tensor,
    heads: int,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    # Copies, where they are made, live until the call returns.
    x, cu_seqlens = x.contiguous(), cu_seqlens.contiguous()
    tensors = _contiguous(*tensors)
    visual_stream, acoustic_stream = _contiguous(visual, cu_seqlens_visual), _contiguous(acoustic, cu_seqlens_acoustic)
    rows, width = x.shape
    head_size = width // heads
    out = torch.empty_like(x)
    starts = range(0, len(tensors), TENSORS)
    assert starts, "without layers nothing would be written"
    weight = tensors[0]
    assert weight is not None
    assert weight.dtype in (torch.float32, dtype)
    calls = [
        _LAYERS.pack(
            *(x.data_ptr(), out.data_ptr(), len(starts), dtype == torch.bfloat16, weight.dtype == torch.bfloat16),
            *_HEADS,
            *(cu_seqlens.data_ptr(), cu_seqlens.shape[0] - 1, rows, heads, head_size),
            head_size**-0.5,
            *(ACTIVATIONS.index(activation), False, 0),
            0.0,
            *_OUTPUTS,
            torch.get_num_threads(),
            library.parallel_loop(),
            *_layout(*visual_stream),
            *_layout(*acoustic_stream),
        )
    ]
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    for start, of_norms in zip(starts, zip(epsilons[::2], epsilons[1::2], strict=True), strict=True):
        of_layer = addresses[start : start + TENSORS]
        inner_bias = tensors[start + _INNER_BIAS]
        assert inner_bias is not None
        dense_and_norm, second_norm, shifts = of_layer[:14], of_layer[14:16], of_layer[16:]
        calls.append(_LAYER.pack(inner_bias.shape[0], *dense_and_norm, of_norms[0], *second_norm, of_norms[1], *shifts))
    run_on_sequences("bert_layers", b"".join(calls))
    return out


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _layout(frames: Tensor | None, cu_seqlens: Tensor | None) -> tuple[int, ...]:
    if frames is None or cu_seqlens is None:
        return ABSENT
    return modality_layout(_GATES, frames, None, cu_seqlens)


def _forward_fake(x: Tensor, *others: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


register_operator(
    "bert_layers(Tensor x, Tensor?[] tensors, float[] epsilons, Tensor? visual, Tensor? cu_seqlens_visual, "
    "Tensor? acoustic, Tensor? cu_seqlens_acoustic, Tensor cu_seqlens, int heads, str activation, "
    "ScalarType dtype) -> Tensor",
    _forward,
    _forward_fake,
    keys=("CPU",),
    differentiable="cmsbert_fast.CMSBertModel",
)
