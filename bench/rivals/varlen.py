"""PyTorch's attention over packed sequences (``torch.nn.attention.varlen``) under CMS attention's shift, and alone.

It wants a GPU and 16 bits, and knows no dropout. Mean frames are computed in padded form, as plain PyTorch has to.
"""

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.rivals.attention import augmented_weight, mean_frames
from cmsbert_fast import ModalityShift


def why_not_varlen(example: Tensor) -> str | None:
    """Why it cannot run for queries like the example; None where it can."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return "this PyTorch has no varlen attention"
    if example.device.type != "cuda" or example.dtype not in (torch.float16, torch.bfloat16):
        return "varlen attention runs in 16 bits on GPUs only"
    return None


def text_varlen(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """Attention without a shift: (T, H, d_h)."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(query, key, value, cu_seqlens, cu_seqlens, longest, longest)


def lean_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visual: ModalityShift,
    acoustic: ModalityShift,
    rows: Tensor,
    cu_seqlens: Tensor,
    longest: int,
) -> Tensor:
    """CMS attention of packed queries, keys and values (T, H, d_h) and padded modalities.

    ``rows`` (T,) is where the tokens lie in the padded batch, flattened.
    """
    of_visual, of_acoustic = (F.linear(_packed_means(shift, rows), shift.weight) for shift in (visual, acoustic))
    a = (of_visual + of_acoustic).unflatten(-1, query.shape[-2:])
    return text_varlen(query + a, key + a, value + a, cu_seqlens, longest)


def augmented_varlen(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    heads: int,
    visual: ModalityShift,
    acoustic: ModalityShift,
    rows: Tensor,
    cu_seqlens: Tensor,
    longest: int,
) -> Tensor:
    """As :func:`bench.rivals.attention.augmented_attention`, all of it packed: (T, D) -> (T, H, d_h)."""
    means = [_packed_means(shift, rows) for shift in (visual, acoustic)]
    qkv = F.linear(torch.cat([hidden, *means], dim=1), augmented_weight(weight, visual, acoustic), bias)
    return text_varlen(*qkv.unflatten(1, (3, heads, -1)).unbind(1), cu_seqlens, longest)


def _packed_means(shift: ModalityShift, rows: Tensor) -> Tensor:
    return mean_frames(shift).flatten(0, 1).index_select(0, rows)
