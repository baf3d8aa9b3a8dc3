"""What each row needs before rows meet columns: 1 / |z|, and how many labels are related to its own (Eq. 23).

One launch each. Norms read the embeddings once; counting is O(n log n), by bisection in sorted labels.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmsbert_fast.kernels.contrastive.call import COUNTS, Side, side
from cmsbert_fast.kernels.contrastive.primitives import inverse_norm, load_labels, operand


@triton.jit(do_not_specialize=COUNTS)
def _norm_kernel(rows: Side, d, BM: tl.constexpr, BK: tl.constexpr):
    """Writes ``rows.inverse_norm``."""
    modality = tl.program_id(1)
    o_i = tl.program_id(0) * BM + tl.arange(0, BM)
    o_k = tl.arange(0, BK)
    p_z, s_z, o_z, m_i = operand(rows, modality, o_i)
    p_z += o_z[:, None] * s_z + o_k[None, :]
    squared = tl.zeros([BM], tl.float32)
    for k in range(0, d, BK):
        b_z = tl.load(p_z, mask=m_i[:, None] & (k + o_k < d)[None, :], other=0.0).to(tl.float32)  # [BM, BK]
        squared += tl.sum(b_z * b_z, 1)
        p_z += BK
    p_out = rows.inverse_norm + modality.to(tl.int64) * rows.norm_stride + o_i
    tl.store(p_out, inverse_norm(squared), mask=m_i)


@triton.jit(do_not_specialize=COUNTS)
def _count_kernel(p_labels, p_sorted, p_count, p_weight, rows, n, reach, shared, steps, B: tl.constexpr):
    """How many of n sorted labels are related to each label: the ends of their run. Or, where ``p_weight`` is given,
    ``shared`` divided by how many there are besides itself; 0 where there are none.

    Compares as the tiles do, rounding included, so that targets sum to 1 at the edge too.
    """
    o_i = tl.program_id(0) * B + tl.arange(0, B)
    m_i = o_i < rows
    y = load_labels(p_labels + o_i, m_i, reach)
    low = tl.zeros([B], tl.int32)
    high = tl.zeros([B], tl.int32) + n
    low_end = low
    high_end = high
    for _ in range(steps):
        middle = (low + high) // 2
        y_m = load_labels(p_sorted + middle, m_i & (middle < n), reach)
        # Sorted, NaN comes last: at or after the first related label?
        reached = (y - y_m <= reach) | (y_m != y_m)
        going = low < high
        low = tl.where(going & (reached == 0), middle + 1, low)
        high = tl.where(going & reached, middle, high)
        middle = (low_end + high_end) // 2
        y_m = load_labels(p_sorted + middle, m_i & (middle < n), reach)
        inside = y_m - y <= reach
        going = low_end < high_end
        low_end = tl.where(going & inside, middle + 1, low_end)
        high_end = tl.where(going & (inside == 0), middle, high_end)
    count = tl.where(y == y, tl.maximum(low_end - low, 0), 0)
    if p_weight is not None:
        others = tl.maximum(count - 1, 0)
        tl.store(p_weight + o_i, tl.where(others > 0, shared / tl.maximum(others, 1).to(tl.float32), 0.0), mask=m_i)
    else:
        tl.store(p_count + o_i, count, mask=m_i)


def inverse_norms(embeddings: Sequence[Tensor]) -> Tensor:
    """1 / max(|z|, 1e-12) of M tensors (n, d): (M, n), float32."""
    n, d = embeddings[0].shape
    out = embeddings[0].new_empty(len(embeddings), n, dtype=torch.float32)
    if n > 0:
        grid = (triton.cdiv(n, 16), len(embeddings))
        _norm_kernel[grid](rows=side(embeddings, None, out, None), d=d, BM=16, BK=256, num_warps=4)
    return out


def count_related(labels: Tensor, ordered: Tensor, reach: float) -> Tensor:
    """How many of ``ordered`` have a label's sign and differ from it by at most ``reach``: (n,), int64.

    Args:
        labels: (n,), n >= 1, scores.
        ordered: (n_columns,), scores in float32, sorted, NaN last.
    """
    count = torch.empty(labels.shape, dtype=torch.int64, device=labels.device)
    _count(labels.float().contiguous(), ordered, reach, count=count)
    return count


def target_weights(labels: Tensor, reach: float, smoothing: float) -> Tensor:
    """(1 - beta) / |S_i| of each label, 0 where S_i is empty: (n,), float32.

    Args:
        labels: (n,), n >= 1, scores, sorted, NaN last.
        smoothing: beta.
    """
    labels = labels.float()
    weight = torch.empty_like(labels)
    _count(labels, labels, reach, weight=weight, shared=1.0 - smoothing)
    return weight


def _count(
    labels: Tensor,
    ordered: Tensor,
    reach: float,
    count: Tensor | None = None,
    weight: Tensor | None = None,
    shared: float = 0.0,
) -> None:
    _count_kernel[triton.cdiv(labels.numel(), 256),](
        p_labels=labels,
        p_sorted=ordered,
        p_count=count,
        p_weight=weight,
        rows=labels.numel(),
        n=ordered.numel(),
        reach=reach,
        shared=shared,
        steps=ordered.numel().bit_length(),
        B=256,
    )
