"""CMS attention in its best plain-PyTorch form: the sum over frames runs in the frames' own dimensions.

``a_i = W_v m_i + ...`` with ``m_i = 1/N_v sum_j act(p_i + r_j) V_j`` (SPEC 8, from Eq. 3 and 4 by linearity): two small
batched products replace the N x N_v x D tensor, and scaled_dot_product_attention does Eq. 5-7.

Packed sequences on a CPU run in groups of equal lengths, so that nothing is computed on padding. On a GPU, where the
host would have to wait for the lengths, and while torch.compile traces, they are padded to the longest.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from cmsbert_fast.ops.attention.types import Call, ModalityShift
from cmsbert_fast.packing import Packing, pad, unpad, valid_positions

ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


def cms_attention(call: Call) -> Tensor:
    """The "torch" backend of :func:`cmsbert_fast.cms_attention`."""
    query, key, value, packing = call.query, call.key, call.value, call.packing
    if packing is not None and query.device.type == "cpu" and not torch.compiler.is_compiling():
        groups = equal_lengths(packing, call.visual, call.acoustic)
        if groups:
            return _in_groups(groups, call)
    rows, heads = query.shape[0], query.shape[-2:]
    mask = call.attention_mask if packing is None else valid_positions(packing)
    shifts = [
        F.linear(_mean_frame(modality, call.activation, packing, mask, rows), modality.weight)
        for modality in (call.visual, call.acoustic)
        if modality is not None
    ]
    if shifts:
        a = sum(shifts[1:], shifts[0]).unflatten(-1, heads)
        query, key, value = query + a, key + a, value + a
    if packing is not None:
        query, key, value = (pad(x, packing) for x in (query, key, value))
    bias = None
    if mask is not None:
        invalid = ~mask[:, :, None, None]
        # Padding may hold anything, NaN too, and must not reach the gradients either.
        query, key, value = (x.masked_fill(invalid, 0) for x in (query, key, value))
        # Half the lowest number, not -inf: a sequence without tokens must not turn into NaN, nor float16 overflow.
        lowest = torch.finfo(query.dtype).min / 2
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, lowest)[:, None, None]
    z = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=bias,
        dropout_p=call.dropout_p,
        scale=call.scale,
    ).transpose(1, 2)
    if packing is not None:
        return unpad(z, packing, rows)
    return z if mask is None else z.masked_fill(invalid, 0)


def equal_lengths(packing: Packing, *modalities: ModalityShift | None) -> list[list[Tensor]]:
    """Groups of sequences that have the same number of tokens and of each modality's frames, on the CPU.

    Returns:
        For each group its rows of the tokens, (G, N), and of each modality's frames, (G, N_m); (G, 0) for None.
        Sequences without tokens are in no group.
    """
    ends = [packing.cu_seqlens.tolist()]
    ends += [[0] * len(ends[0]) if m is None else m.packing.cu_seqlens.tolist() for m in modalities]
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for bounds in zip(*(pairwise(x) for x in ends), strict=True):
        lengths = tuple(end - begin for begin, end in bounds)
        if lengths[0]:
            groups.setdefault(lengths, []).append(tuple(begin for begin, _ in bounds))
    return [
        [torch.tensor(b)[:, None] + torch.arange(n) for b, n in zip(zip(*begins, strict=True), lengths, strict=True)]
        for lengths, begins in groups.items()
    ]


def _in_groups(groups: list[list[Tensor]], call: Call) -> Tensor:
    """Each group in the padded form, without padding; everything is gathered once, and groups are slices."""
    order, *frame_orders = (torch.cat([rows.flatten() for rows in column]) for column in zip(*groups, strict=True))

    def split(tensor: Tensor, order: Tensor, kind: int) -> list[Tensor]:
        parts = tensor.index_select(0, order).split([group[kind].numel() for group in groups])
        return [part.unflatten(0, group[kind].shape) for part, group in zip(parts, groups, strict=True)]

    queries, keys, values = (split(x, order, 0) for x in (call.query, call.key, call.value))
    shifts: list[list[ModalityShift | None]] = []
    modalities = zip((call.visual, call.acoustic), frame_orders, strict=True)
    for kind, (modality, frame_order) in enumerate(modalities, start=1):
        if modality is None:
            shifts.append([None] * len(groups))
            continue
        parts = zip(
            split(modality.token_gate, order, 0),
            split(modality.frame_gate, frame_order, kind),
            split(modality.frames, frame_order, kind),
            strict=True,
        )
        shifts.append([ModalityShift(*own, modality.weight) for own in parts])
    whole = call._replace(packing=None, attention_mask=None)
    z = [
        cms_attention(whole._replace(query=q, key=k, value=v, visual=face, acoustic=voice)).flatten(0, 1)
        for q, k, v, face, voice in zip(queries, keys, values, *shifts, strict=True)
    ]
    contiguous = torch.zeros_like(call.query, memory_format=torch.contiguous_format)
    return contiguous.index_copy(0, order, torch.cat(z))


def _mean_frame(
    modality: ModalityShift, activation: str, packing: Packing | None, token_mask: Tensor | None, rows: int
) -> Tensor:
    """m_i = 1/N_m sum_j act(p_i + r_j) V_j in the form of the tokens: (rows, d_m) packed, (B, N, d_m) padded."""
    token_gate, frame_gate, frames, mask = modality.token_gate, modality.frame_gate, modality.frames, modality.mask
    if packing is not None:
        frame_packing = modality.packing
        token_gate = pad(token_gate, packing)
        frame_gate, frames = pad(frame_gate, frame_packing), pad(frames, frame_packing)
        mask = valid_positions(frame_packing)
    if token_mask is not None:
        token_gate = token_gate.masked_fill(~token_mask, 0)
    if mask is None:
        count = torch.full((1,), max(frames.shape[1], 1), device=frames.device)
    else:
        count = mask.sum(dim=1).clamp(min=1)
        frame_gate, frames = frame_gate.masked_fill(~mask, 0), frames.masked_fill(~mask[..., None], 0)
    gates = ACTIVATIONS[activation](token_gate[:, :, None] + frame_gate[:, None])  # (B, N, N_m)
    # In float16 the sum may overflow where the mean does not, and single frames over a large count would underflow:
    # a part of the count divides the frames, which are fewer numbers than the gates, and the rest divides the sum.
    early, late = (x.to(frames.dtype)[:, None, None] for x in (count.clamp(max=64), (count / 64).clamp(min=1)))
    mean = gates @ (frames / early) / late
    return mean if packing is None else unpad(mean, packing, rows)
