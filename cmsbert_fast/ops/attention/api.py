"""CMS attention, the public operator: what it means, what it accepts, and which backend runs it."""

from operator import sub

import torch
from torch import Tensor

from cmsbert_fast import reference
from cmsbert_fast.ops.attention import cpu as attention_cpu
from cmsbert_fast.ops.attention import torch as attention_torch
from cmsbert_fast.ops.attention import triton as attention_triton
from cmsbert_fast.ops.attention.types import ModalityShift
from cmsbert_fast.ops.autocast import autocast_dtype, cast
from cmsbert_fast.ops.dispatch import choose_backend
from cmsbert_fast.packing import Packing, pad, unpad, valid_positions

ACTIVATIONS = tuple(reference.ACTIVATIONS)


def cms_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visual: ModalityShift | None = None,
    acoustic: ModalityShift | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    attention_mask: Tensor | None = None,
    activation: str = "relu",
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Self-attention whose queries, keys and values are shifted by the whole utterance's face and voice (Eq. 1-7)::

        a_i = 1/N_v sum_j act(p^v_i + r^v_j) W_v V_j  +  1/N_a sum_j act(p^a_i + r^a_j) W_a A_j
        z   = softmax((q + a)(k + a)^T * scale) (v + a)

    The means run over each sequence's own valid frames; a sequence without frames, or a modality that is None, adds 0.
    Two forms of input:

    * packed: ``query`` is (T, H, d_h), the sequences one after the other, with ``cu_seqlens`` and ``max_seqlen``;
    * padded: ``query`` is (B, N, H, d_h), with ``attention_mask`` where some tokens are padding.

    All floating tensors share one dtype and device; under autocast they are cast to its dtype, except float64, as in
    PyTorch's own operators. Differentiable in every floating tensor.
    :func:`cmsbert_fast.ops.dispatch.choose_backend` says which backend runs; the compiled ones copy an operand, or a
    gradient, whose last stride is not 1.

    Args:
        query, key, value: X W + b before the shift, split into heads.
        visual, acoustic: What each modality adds; None = absent.
        cu_seqlens: (B + 1,) int32, packed form only: starts at 0 and never falls. Its values are checked on the CPU;
            on a GPU that would wait for the device. Rows from ``cu_seqlens[-1]`` on belong to no sequence.
        max_seqlen: The longest sequence's length, or any larger number; packed form only.
        attention_mask: (B, N) bool, True = valid, any pattern; padded form only. None = all valid.
        activation: "relu", "sigmoid" or "tanh" (sigma of Eq. 1 and 2).
        scale: Factor of the scores; None = 1 / sqrt(d_h).
        dropout_p: Dropout probability on the attention probabilities.
        backend: See :mod:`cmsbert_fast.ops.dispatch`.

    Returns:
        z in the shape and dtype of ``query``; exactly 0 at invalid tokens.

    Raises:
        TypeError: a tensor's dtype is not what it must be (that of cu_seqlens: ValueError).
        ValueError: a shape, device, option or combination of arguments does not fit.

    Example:
        Two sequences of 3 and 2 tokens with 4 and 1 frames of the face::

            q, k, v = torch.randn(3, 5, 2, 8)                       # 5 tokens, 2 heads of 8
            face = ModalityShift(torch.randn(5), torch.randn(5), torch.randn(5, 47), torch.randn(16, 47),
                                 cu_seqlens=torch.tensor([0, 4, 5], dtype=torch.int32), max_length=4)
            z = cms_attention(q, k, v, face, cu_seqlens=torch.tensor([0, 3, 5], dtype=torch.int32), max_seqlen=3)
    """
    query, key, value, visual, acoustic = _cast_for_autocast(query, key, value, visual, acoustic)
    _check(query, key, value, visual, acoustic, cu_seqlens, max_seqlen, attention_mask, activation, dropout_p)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    packing = None
    if cu_seqlens is not None:
        assert max_seqlen is not None
        packing = Packing(cu_seqlens, max_seqlen)
    run = {
        "reference": _reference,
        "torch": attention_torch.cms_attention,
        "triton": attention_triton.cms_attention,
        "cpu": attention_cpu.cms_attention,
    }[choose_backend("attention", query, backend)]
    return run(query, key, value, visual, acoustic, packing, attention_mask, activation, scale, dropout_p)


def _reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visual: ModalityShift | None,
    acoustic: ModalityShift | None,
    packing: Packing | None,
    attention_mask: Tensor | None,
    activation: str,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """The "reference" backend: packed input is padded, because that is the form the paper's equations have."""

    def padded(modality: ModalityShift | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None] | None:
        if modality is None or packing is None:
            return modality and (*modality[:4], modality.mask)
        frames = modality.packing
        return (
            pad(modality.token_gate, packing),
            pad(modality.frame_gate, frames),
            pad(modality.frames, frames),
            modality.weight,
            valid_positions(frames),
        )

    rows = query.shape[0]
    if packing is not None:
        query, key, value = (pad(x, packing) for x in (query, key, value))
        attention_mask = valid_positions(packing)
    z = reference.cms_attention(
        query, key, value, padded(visual), padded(acoustic), attention_mask, activation, scale, dropout_p
    )
    return z if packing is None else unpad(z, packing, rows)


def _cast_for_autocast(
    query: Tensor, key: Tensor, value: Tensor, visual: ModalityShift | None, acoustic: ModalityShift | None
) -> tuple[Tensor, Tensor, Tensor, ModalityShift | None, ModalityShift | None]:
    dtype = autocast_dtype(query.device)
    if dtype is None:
        return query, key, value, visual, acoustic

    def cast_shift(modality: ModalityShift | None) -> ModalityShift | None:
        if modality is None:
            return None
        return modality._replace(
            token_gate=cast(modality.token_gate, dtype),
            frame_gate=cast(modality.frame_gate, dtype),
            frames=cast(modality.frames, dtype),
            weight=cast(modality.weight, dtype),
        )

    return cast(query, dtype), cast(key, dtype), cast(value, dtype), cast_shift(visual), cast_shift(acoustic)


# Made once: a call has little to do for one utterance.
_FLOATING = {
    modality: tuple(f"{modality}.{field}" for field in ModalityShift._fields[:4]) for modality in ("visual", "acoustic")
}


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visual: ModalityShift | None,
    acoustic: ModalityShift | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    attention_mask: Tensor | None,
    activation: str,
    dropout_p: float,
) -> None:
    packed = cu_seqlens is not None
    if query.dim() != (3 if packed else 4):
        raise ValueError(
            f"query has shape {tuple(query.shape)}; give (T, H, d_h) with cu_seqlens and max_seqlen, or (B, N, H, d_h) "
            "without cu_seqlens."
        )
    if not query.is_floating_point():
        raise TypeError(f"query is {query.dtype}; it must be a floating dtype.")
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape != query.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be query's, {tuple(query.shape)}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}.")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p={dropout_p} is out of range; give a probability in [0, 1).")
    if packed:
        _check_cu_seqlens("cu_seqlens", cu_seqlens, "max_seqlen", max_seqlen, query, "query")
        if attention_mask is not None:
            raise ValueError("attention_mask belongs to the padded form; with cu_seqlens leave it out.")
    elif max_seqlen is not None:
        raise ValueError("max_seqlen belongs to the packed form; give cu_seqlens with it, or leave it out.")
    elif attention_mask is not None:
        _check_mask("attention_mask", attention_mask, query.shape[:2], query.device)
    floating = {"query": query, "key": key, "value": value}
    for name, modality in (("visual", visual), ("acoustic", acoustic)):
        if modality is not None:
            _check_modality(name, modality, query, cu_seqlens)
            floating.update(zip(_FLOATING[name], modality[:4], strict=True))
    for name, tensor in floating.items():
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name} is {tensor.dtype} but query is {query.dtype}; give all of them one dtype.")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device} but query is on {query.device}; move them to one device.")


def _check_modality(name: str, modality: ModalityShift, query: Tensor, cu_seqlens: Tensor | None) -> None:
    lead = query.shape[:-2]
    hidden = query.shape[-2] * query.shape[-1]
    if modality.frames.dim() != len(lead) + 1 or not modality.frames.shape[-1]:
        raise ValueError(
            f"{name}.frames has shape {tuple(modality.frames.shape)}; give (F, d_m) with packed tokens, (B, N_m, d_m) "
            "with padded ones, d_m >= 1; an absent modality is None."
        )
    expected = {
        "token_gate": tuple(lead),
        "frame_gate": tuple(modality.frames.shape[:-1]),
        "weight": (hidden, modality.frames.shape[-1]),
    }
    for field, shape in expected.items():
        actual = tuple(getattr(modality, field).shape)
        if actual != shape:
            raise ValueError(f"{name}.{field} has shape {actual}; it must be {shape}.")
    if cu_seqlens is not None:
        _check_cu_seqlens(
            f"{name}.cu_seqlens",
            modality.cu_seqlens,
            f"{name}.max_length",
            modality.max_length,
            modality.frames,
            f"{name}.frames",
        )
        assert modality.cu_seqlens is not None
        if modality.cu_seqlens.shape != cu_seqlens.shape:
            raise ValueError(
                f"{name}.cu_seqlens holds {modality.cu_seqlens.shape[0] - 1} sequences but cu_seqlens holds "
                f"{cu_seqlens.shape[0] - 1}; give as many of both."
            )
        if modality.mask is not None:
            raise ValueError(f"{name}.mask belongs to the padded form; with cu_seqlens leave it out.")
        return
    if modality.cu_seqlens is not None or modality.max_length is not None:
        raise ValueError(f"{name}.cu_seqlens belongs to the packed form; give cu_seqlens for the tokens too.")
    if modality.frames.shape[0] != query.shape[0]:
        raise ValueError(f"{name}.frames holds {modality.frames.shape[0]} sequences but query {query.shape[0]}.")
    if modality.mask is not None:
        _check_mask(f"{name}.mask", modality.mask, modality.frames.shape[:2], query.device)


def _check_cu_seqlens(
    name: str, cu_seqlens: Tensor | None, length_name: str, max_length: int | None, values: Tensor, values_name: str
) -> None:
    if cu_seqlens is None or max_length is None:
        raise ValueError(f"The packed form needs both {name} and {length_name}.")
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
