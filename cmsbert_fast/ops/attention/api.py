"""CMS attention, the public operator: what it means and which backend runs it.

Example: two sequences of 3 and 2 tokens with 4 and 1 frames of the face::

    q, k, v = torch.randn(3, 5, 2, 8)                       # 5 tokens, 2 heads of 8
    face = ModalityShift(torch.randn(5), torch.randn(5), torch.randn(5, 47), torch.randn(16, 47),
                         cu_seqlens=torch.tensor([0, 4, 5], dtype=torch.int32), max_length=4)
    z = cms_attention(q, k, v, face, cu_seqlens=torch.tensor([0, 3, 5], dtype=torch.int32), max_seqlen=3)
"""

import functools
from collections.abc import Callable

from torch import Tensor

from cmsbert_fast import reference
from cmsbert_fast.ops.attention import cpu, triton
from cmsbert_fast.ops.attention import torch as plain
from cmsbert_fast.ops.attention.checks import check, check_query, packing_of
from cmsbert_fast.ops.attention.types import Call, ModalityShift
from cmsbert_fast.ops.autocast import autocast_dtype, cast
from cmsbert_fast.ops.dispatch import choose_backend
from cmsbert_fast.packing import Packing, pad, unpad, valid_positions


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
    All floating tensors share one dtype and device; autocast casts them as PyTorch's own operators, so not float64.
    Differentiable in every floating tensor. The compiled backends copy an operand whose last stride is not 1.

    Args:
        query, key, value: X W + b before the shift, split into heads: (T, H, d_h), the sequences one after the other
            (packed form, has ``cu_seqlens`` and ``max_seqlen``), or (B, N, H, d_h) (padded form).
        visual, acoustic: What each modality adds; None = absent.
        cu_seqlens: (B + 1,) int32, packed form only: starts at 0 and never falls. Its values are checked on the CPU;
            on a GPU that would wait for the device. Rows from ``cu_seqlens[-1]`` on belong to no sequence.
        max_seqlen: The longest sequence's length, or any larger number; packed form only. Smaller ones are refused.
            The Triton backend cannot read lengths without waiting for the GPU: there an assertion on the device ends
            the process's use of it (PyTorch: "device-side assert triggered"). Likewise a modality's ``max_length``.
        attention_mask: (B, N) bool, True = valid, any pattern; padded form only. None = all valid.
        activation: "relu", "sigmoid" or "tanh" (sigma of Eq. 1 and 2).
        scale: Factor of the scores; None = 1 / sqrt(d_h).
        dropout_p: Dropout probability on the attention probabilities.
        backend: See :mod:`cmsbert_fast.ops.dispatch`, whose ``choose_backend`` says which one runs.

    Returns:
        z in the shape and dtype of ``query``; exactly 0 at invalid tokens.

    Raises:
        TypeError: a tensor's dtype is not what it must be (that of cu_seqlens: ValueError).
        ValueError: a shape, device, option or combination of arguments does not fit.
    """
    packing = packing_of(cu_seqlens, max_seqlen)
    query, key, value, visual, acoustic = _autocast(query, key, value, visual, acoustic)
    check_query(query, packed=packing is not None)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    call = Call(query, key, value, visual, acoustic, packing, attention_mask, activation, scale, dropout_p)
    check(call)
    return _BACKENDS[choose_backend("attention", query, backend)](call)


def _autocast(
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


_Padded = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]  # a modality as the reference takes it


def _reference(call: Call) -> Tensor:
    """The "reference" backend: packed input is padded, because that is the form the paper's equations have."""
    query, key, value, packing = call.query, call.key, call.value, call.packing
    visual, acoustic, mask = _padded(call.visual, packing), _padded(call.acoustic, packing), call.attention_mask
    if packing is not None:
        query, key, value = (pad(x, packing) for x in (query, key, value))
        mask = valid_positions(packing)
    options = call.activation, call.scale, call.dropout_p
    z = reference.cms_attention(query, key, value, visual, acoustic, mask, *options)
    return z if packing is None else unpad(z, packing, call.query.shape[0])


def _padded(shift: ModalityShift | None, tokens: Packing | None) -> _Padded | None:
    if shift is None:
        return None
    if tokens is None:
        return shift.token_gate, shift.frame_gate, shift.frames, shift.weight, shift.mask
    frames = shift.packing
    return (
        pad(shift.token_gate, tokens),
        pad(shift.frame_gate, frames),
        pad(shift.frames, frames),
        shift.weight,
        valid_positions(frames),
    )


_BACKENDS: dict[str, Callable[[Call], Tensor]] = {
    "reference": _reference,
    "torch": plain.cms_attention,
    "triton": triton.cms_attention,
    "varlen": functools.partial(triton.cms_attention, varlen=True),
    "cpu": cpu.cms_attention,
}
