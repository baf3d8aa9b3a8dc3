"""What :func:`cmsbert_fast.cms_attention` accepts; everything else is refused here, before a backend runs."""

from operator import sub
from typing import Any

import torch
from torch import Tensor

from cmsbert_fast.ops.attention.types import ACTIVATIONS, Call, ModalityShift
from cmsbert_fast.packing import Packing

_VISUAL = ("visual.token_gate", "visual.frame_gate", "visual.frames", "visual.weight")
_ACOUSTIC = ("acoustic.token_gate", "acoustic.frame_gate", "acoustic.frames", "acoustic.weight")


def packing_of(cu_seqlens: Tensor | None, max_seqlen: int | None) -> Packing | None:
    """The two arguments of the packed form as one; None for the padded form, which has neither."""
    if cu_seqlens is None:
        if max_seqlen is not None:
            raise ValueError("max_seqlen belongs to the packed form; give cu_seqlens with it, or leave it out.")
        return None
    if max_seqlen is None:
        raise ValueError("The packed form needs both cu_seqlens and max_seqlen.")
    return Packing(cu_seqlens, max_seqlen)


def check_query(query: Tensor, packed: bool) -> None:
    """Refuses a query of another form or kind."""
    if query.dim() != (3 if packed else 4):
        raise ValueError(
            f"query has shape {tuple(query.shape)}; give (T, H, d_h) with cu_seqlens and max_seqlen, or (B, N, H, d_h) "
            "without cu_seqlens."
        )
    if not query.is_floating_point():
        raise TypeError(f"query is {query.dtype}; it must be a floating dtype.")


def check(call: Call) -> None:
    """Refuses a call, of which :func:`check_query` has passed the query."""
    query = call.query
    for name, tensor in (("key", call.key), ("value", call.value)):
        if tensor.shape != query.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be query's, {tuple(query.shape)}.")
    if call.activation not in ACTIVATIONS:
        raise ValueError(f"activation={call.activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}.")
    if not 0 <= call.dropout_p < 1:
        raise ValueError(f"dropout_p={call.dropout_p} is out of range; give a probability in [0, 1).")
    if call.packing is not None:
        _check_lengths(call.packing.cu_seqlens, call.packing.max_length, "cu_seqlens", "max_seqlen", query, "query")
        if call.attention_mask is not None:
            raise ValueError("attention_mask belongs to the padded form; with cu_seqlens leave it out.")
    elif call.attention_mask is not None:
        _check_mask("attention_mask", call.attention_mask, query.shape[:2], query.device)
    for name, modality in (("visual", call.visual), ("acoustic", call.acoustic)):
        if modality is not None:
            _check_shapes(name, modality, query)
            if call.packing is None:
                _check_padded(name, modality, query)
            else:
                _check_packed(name, modality, call.packing)
    _check_same_kind(call)


def _check_shapes(name: str, modality: ModalityShift, query: Tensor) -> None:
    lead, (heads, head_size), frames = query.shape[:-2], query.shape[-2:], modality.frames.shape
    if len(frames) != len(lead) + 1 or not frames[-1]:
        raise ValueError(
            f"{name}.frames has shape {tuple(frames)}; give (F, d_m) with packed tokens, (B, N_m, d_m) with padded "
            "ones, d_m >= 1; an absent modality is None."
        )
    for field, tensor, shape in (
        ("token_gate", modality.token_gate, lead),
        ("frame_gate", modality.frame_gate, frames[:-1]),
        ("weight", modality.weight, (heads * head_size, frames[-1])),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{name}.{field} has shape {tuple(tensor.shape)}; it must be {tuple(shape)}.")


def _check_packed(name: str, modality: ModalityShift, tokens: Packing) -> None:
    if modality.cu_seqlens is None or modality.max_length is None:
        raise ValueError(f"The packed form needs both {name}.cu_seqlens and {name}.max_length.")
    cu_seqlens = modality.cu_seqlens
    names = f"{name}.cu_seqlens", f"{name}.max_length"
    _check_lengths(cu_seqlens, modality.max_length, *names, modality.frames, f"{name}.frames")
    if cu_seqlens.shape != tokens.cu_seqlens.shape:
        raise ValueError(
            f"{name}.cu_seqlens holds {cu_seqlens.shape[0] - 1} sequences but cu_seqlens holds "
            f"{tokens.cu_seqlens.shape[0] - 1}; give as many of both."
        )
    if modality.mask is not None:
        raise ValueError(f"{name}.mask belongs to the padded form; with cu_seqlens leave it out.")


def _check_padded(name: str, modality: ModalityShift, query: Tensor) -> None:
    if modality.cu_seqlens is not None or modality.max_length is not None:
        raise ValueError(f"{name}.cu_seqlens belongs to the packed form; give cu_seqlens for the tokens too.")
    if modality.frames.shape[0] != query.shape[0]:
        raise ValueError(f"{name}.frames holds {modality.frames.shape[0]} sequences but query {query.shape[0]}.")
    if modality.mask is not None:
        _check_mask(f"{name}.mask", modality.mask, modality.frames.shape[:2], query.device)


def _check_lengths(
    cu_seqlens: Tensor, max_length: int, name: str, length_name: str, values: Tensor, values_name: str
) -> None:
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(
            f"{name} is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; give int32 of shape (B + 1,), B >= 1."
        )
    if not cu_seqlens.is_contiguous():
        raise ValueError(f"{name} has stride {cu_seqlens.stride(0)}; give {name}.contiguous().")
    if cu_seqlens.device != values.device:
        raise ValueError(
            f"{name} is on {cu_seqlens.device} but {values_name} is on {values.device}; move them to one device."
        )
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        ends = cu_seqlens.tolist()
        lengths = list(map(sub, ends[1:], ends))
        if ends[0] != 0 or min(lengths) < 0 or ends[-1] > values.shape[0]:
            raise ValueError(
                f"{name} must start at 0, never fall, and end at or below the {values.shape[0]} rows of {values_name}."
            )
        if max(lengths) > max_length:
            raise ValueError(f"{length_name}={max_length}, but {name} holds a sequence of {max(lengths)} rows.")


def _check_mask(name: str, mask: Tensor, shape: torch.Size, device: torch.device) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} is {mask.dtype}; give booleans, True = valid.")
    if mask.shape != shape:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}; it must be {tuple(shape)}.")
    if mask.device != device:
        raise ValueError(f"{name} is on {mask.device} but query is on {device}; move them to one device.")


def _check_same_kind(call: Call) -> None:
    """Refuses floating tensors of several dtypes or devices."""
    query = call.query
    floating: list[tuple[str, Any]] = [("key", call.key), ("value", call.value)]
    for names, modality in ((_VISUAL, call.visual), (_ACOUSTIC, call.acoustic)):
        if modality is not None:
            floating += zip(names, modality, strict=False)  # its first four fields
    for name, tensor in floating:
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name} is {tensor.dtype} but query is {query.dtype}; give all of them one dtype.")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device} but query is on {query.device}; move them to one device.")
