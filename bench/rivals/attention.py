"""Other ways to compute CMS attention, padded, and what text-only BERT computes instead."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cmsbert_fast import ModalityShift


def lean_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visual: ModalityShift,
    acoustic: ModalityShift,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """CMS attention, padded, with nothing but what valid tokens need: padding may hold anything finite, and gets
    anything. The low-rank identity of SPEC 8, one mask for scaled_dot_product_attention."""
    a = None
    for shift in (visual, acoustic):
        own = F.linear(mean_frames(shift), shift.weight)
        a = own if a is None else a + own
    assert a is not None
    a = a.unflatten(-1, query.shape[-2:])
    keys = None if attention_mask is None else attention_mask[:, None, None]
    q, k, v = ((x + a).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2)


def mean_frames(shift: ModalityShift) -> Tensor:
    """Gated mean over a padded modality's frames, for every token: (B, N, d_m)."""
    gates = torch.relu(shift.token_gate[:, :, None] + shift.frame_gate[:, None])
    if shift.mask is None:
        gates = gates / shift.frames.shape[1]
    else:
        mask = shift.mask.to(gates.dtype)
        gates = gates * (mask / mask.sum(dim=1, keepdim=True).clamp(min=1))[:, None]
    return gates @ shift.frames


Buckets = list[tuple[Tensor, int]]


def make_buckets(lengths: Sequence[int], device: torch.device, count: int = 4) -> Buckets:
    """What a collator can know: the sequences of similar length, and the longest of each group."""
    groups = np.array_split(np.argsort(lengths, kind="stable"), count)
    return [(torch.tensor(rows, device=device), max(lengths[i] for i in rows)) for rows in groups if len(rows)]


def bucketed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visual: ModalityShift,
    acoustic: ModalityShift,
    attention_mask: Tensor | None = None,
    *,
    buckets: Buckets,
) -> Tensor:
    """:func:`lean_attention` of a few groups of similar length, each padded to its own longest sequence."""
    parts = []
    for rows, longest in buckets:

        def cut(x: Tensor | None, rows: Tensor = rows, longest: int = longest) -> Tensor | None:
            return None if x is None else x.index_select(0, rows)[:, :longest]

        shifts = [ModalityShift(*map(cut, m[:3]), m.weight, mask=cut(m.mask)) for m in (visual, acoustic)]
        z = lean_attention(cut(query), cut(key), cut(value), *shifts, cut(attention_mask))
        parts.append(F.pad(z, (0, 0, 0, 0, 0, query.shape[1] - longest)))
    return torch.cat(parts).index_select(0, torch.cat([rows for rows, _ in buckets]).argsort())


def augmented_weight(weight: Tensor, visual: ModalityShift, acoustic: ModalityShift) -> Tensor:
    """[W, S_v, S_a] of W (3 D, D): S, shared by query, key and value, stands in W's rows three times."""
    shared = torch.cat([visual.weight, acoustic.weight], dim=1).repeat(3, 1)
    return torch.cat([weight, shared], dim=1)


def augmented_attention(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    heads: int,
    visual: ModalityShift,
    acoustic: ModalityShift,
    attention_mask: Tensor | None = None,
    *,
    rows: Tensor,
    buckets: Buckets,
) -> Tensor:
    """Projections and CMS attention with the shift inside the projections' one product, on the valid tokens only:
    [h, mean_v, mean_a] [W, S_v, S_a]^T.

    ``hidden`` is packed, (T, D); ``rows`` (T,) is where its tokens lie in the padded batch, flattened. Where lengths
    differ, attention runs in buckets. Returns z, padded.
    """
    means = [mean_frames(shift).flatten(0, 1) for shift in (visual, acoustic)]
    if attention_mask is not None:
        means = [mean.index_select(0, rows) for mean in means]
    qkv = F.linear(torch.cat([hidden, *means], dim=1), augmented_weight(weight, visual, acoustic), bias)
    shape = visual.token_gate.shape
    if attention_mask is None:
        q, k, v = qkv.unflatten(0, shape).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    padded = qkv.new_zeros(shape.numel(), qkv.shape[1]).index_copy(0, rows, qkv).unflatten(0, shape)
    parts = []
    for chosen, longest in buckets:
        own = padded.index_select(0, chosen)[:, :longest]
        q, k, v = own.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        keys = attention_mask.index_select(0, chosen)[:, None, None, :longest]
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2)
        parts.append(F.pad(z, (0, 0, 0, 0, 0, shape[1] - longest)))
    return torch.cat(parts).index_select(0, torch.cat([chosen for chosen, _ in buckets]).argsort())


def text_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, eager: bool) -> Tensor:
    """What text-only BERT does instead, padded: no shift. Hugging Face's sdpa, or its eager form."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if not eager:
        keys = None if mask is None else mask[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2)
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + (1.0 - mask[:, None, None].to(q.dtype)) * torch.finfo(q.dtype).min
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)
