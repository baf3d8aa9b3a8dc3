"""PyTorch's attention over packed sequences: what ``torch.nn.attention.varlen`` calls, with the log-sum-exp."""

import torch
from torch import Tensor


def attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T scale) v of each sequence, by flash attention; NVIDIA GPUs, 16 bits.

    Args:
        query, key, value: (T, H, d_h), d_h a multiple of 8 and its stride 1.
        cu_seqlens: (B + 1,) int32.
        longest: The longest sequence's length, or more.
        scale: Factor of the scores.

    Returns:
        (T, H, d_h), and the natural log-sum-exp of the scores, (H, T) in float32. Rows of no sequence are not written.
    """
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, cu_seqlens, cu_seqlens, longest, longest, 0.0, False, False, scale=scale
    )
    return out, lse
