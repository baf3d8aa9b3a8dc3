"""Triton engine of the pairwise contrastive loss (Eq. 17-19, 23): NVIDIA (sm_80 and later) and AMD (CDNA) from one
source.

See :mod:`cmsbert_fast.ops.contrastive.torch` for the mathematics, :class:`Block` and the functions of an engine; this
module adds :func:`forward` and :func:`backward` for one process. |S_i| comes from sorted labels by bisection; up to
``SMALL`` rows every program compares its labels with all instead, as sorting alone would be more launches than the
loss.

Work. A pass is n^2 d multiply-adds. With three modalities: forward 3 passes, one similarity tile a pair, which gives
the row sums of one direction and the column sums of the other; backward 12, two recomputations and two products a pair,
each writing rows that no other program writes, so that nothing is added atomically and every bit is reproducible.
Together 15 passes, 30 n^2 d floating-point operations.

Roofline. d = 768, bfloat16, H100 (989 TFLOP/s, 3.35 TB/s): 30 n^2 d operations bound the time from below by
23 us * (n / 1000)^2; the least traffic, embeddings read twice and gradients written, is 9 n d numbers, 4 us * (n /
1000). The backward pass also writes its tiles of G and reads them back, 6 n^2 numbers each way: 384 multiply-adds a
byte, where the machine balances at 148. So arithmetic is the bound, except below n of about 1000, where launches are:
two forward and two backward up to ``SMALL`` rows.

Memory beyond inputs and gradients: forward, at most 16 partial sums a row, pair and role; backward, a strip of G, 256
rows (more while it fits in ``STRIP_BYTES``) by n columns by six directions, and float32 sums of one strip. All O(n);
but up to ``SMALL`` rows one partial sum a tile, and one strip that holds all of G, six n x n matrices: 25 MB in float32
at most.

Names: ``o_`` offsets, ``m_`` masks, ``p_`` pointers, ``b_`` tiles; shapes stand beside tiles.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmsbert_fast.ops.contrastive import torch as contrastive_torch
from cmsbert_fast.ops.contrastive.torch import LABEL_TOLERANCE, Block, finish, pairs, target_weight

__all__ = [
    "backward",
    "count_related",
    "finish",
    "forward",
    "gradients",
    "inverse_norms",
    "make_block",
    "statistics",
]

HIP = 0  # in place of a compute capability
SMALL = 1024  # rows up to which forward and backward are two launches each
MAX_GROUPS = 16  # groups of row blocks and of column blocks; each row keeps one partial sum a group
STRIP_BYTES = 64 * 2**20
MIN_STRIP = 256
PROGRAMS = 264  # enough to fill the machine: two for each of an H100's processors

# Counts of tiles and the like: no kernel is compiled anew because one of them is 1 or a multiple of 16. The numbers of
# rows are not among them: a multiple of 16 makes loads of labels, norms and sums wide, and spares registers.
_COUNTS = [
    "diagonal", "steps", "groups", "row_groups", "column_groups", "row_blocks", "column_blocks", "radial_tiles",
    "blocks",
]  # fmt: skip


@triton.jit
def _pointer(index, first, second, third):
    """The index-th of three pointers."""
    chosen = first
    if index == 1:
        chosen = second
    if index == 2:
        chosen = third
    return chosen


@triton.jit
def _stride(index, first, second, third):
    """The index-th of three strides, of which Triton may have made constants."""
    return tl.where(index == 0, first, tl.where(index == 1, second, third)).to(tl.int64)


@triton.jit
def _load_labels(p, m, reach, CLASSES: tl.constexpr):
    """Labels, those of different signs moved apart by more than ``reach`` (as contrastive_torch.spread_labels)."""
    y = tl.load(p, mask=m, other=0)
    if not CLASSES:
        y += tl.where(y > 0, 2.0 * reach, 0.0) - tl.where(y < 0, 2.0 * reach, 0.0)
    return y


@triton.jit
def _related(y_i, y_j, reach, CLASSES: tl.constexpr):
    """Whether j is in S_i (Eq. 23), j = i included; false for NaN."""
    if CLASSES:
        related = y_i == y_j
    else:
        related = tl.abs(y_i - y_j) <= reach
    return related


@triton.jit
def _temperature(temperature, LEARNED: tl.constexpr):
    if LEARNED:
        tau = tl.load(temperature).to(tl.float32)
    else:
        tau = temperature
    return tau


@triton.jit
def _at_most_0(x):
    return tl.where(x > 0, 0.0, x)  # unlike a minimum, keeps NaN on a GPU


@triton.jit
def _products(
    p_a,
    p_b,
    stride_a,
    stride_b,
    o_a,
    o_b,
    m_a,
    m_b,
    d,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
    NORMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """<a_i, b_j> of one tile in float32, and with NORMS the squared norms of its rows and columns."""
    o_k = tl.arange(0, BK)
    p_a += o_a.to(tl.int64)[:, None] * stride_a + o_k[None, :]
    p_b += o_b.to(tl.int64)[None, :] * stride_b + o_k[:, None]
    b_s = tl.zeros([BM, BN], tl.float32)
    b_aa = tl.zeros([BM], tl.float32)
    b_bb = tl.zeros([BN], tl.float32)
    for k in range(0, d, BK):
        if EVEN:
            b_a = tl.load(p_a, mask=m_a[:, None], other=0.0)  # [BM, BK]
            b_b = tl.load(p_b, mask=m_b[None, :], other=0.0)  # [BK, BN]
        else:
            m_k = k + o_k < d
            b_a = tl.load(p_a, mask=m_a[:, None] & m_k[None, :], other=0.0)
            b_b = tl.load(p_b, mask=m_b[None, :] & m_k[:, None], other=0.0)
        b_s = tl.dot(b_a, b_b, b_s, input_precision=PRECISION)
        if NORMS:
            b_aa += tl.sum(b_a.to(tl.float32) * b_a.to(tl.float32), 1)
            b_bb += tl.sum(b_b.to(tl.float32) * b_b.to(tl.float32), 0)
        p_a += BK
        p_b += BK
    return b_s, b_aa, b_bb


@triton.jit
def _inverse_norm(squared):
    # max(|z|, 1e-12), torch.nn.functional.normalize's
    return 1.0 / tl.maximum(tl.sqrt(squared), 1e-12)


@triton.jit
def _weight(p_labels, y, n, reach, smoothing, B: tl.constexpr, BL: tl.constexpr, CLASSES: tl.constexpr):
    """(1 - beta) / |S_i| of a block of rows by comparing with all labels: for small n only."""
    count = tl.zeros([B], tl.float32)
    for start in range(0, n, BL):
        o_l = start + tl.arange(0, BL)
        y_l = _load_labels(p_labels + o_l, o_l < n, reach, CLASSES)
        hit = _related(y[:, None], y_l[None, :], reach, CLASSES) & (o_l < n)[None, :]  # [B, BL]
        count += tl.sum(hit.to(tl.float32), 1)
    others = count - 1.0  # |S_i| excludes i
    return tl.where(others > 0, (1.0 - smoothing) / tl.maximum(others, 1.0), 0.0)


@triton.jit(do_not_specialize=_COUNTS)
def _norm_kernel(p_0, p_1, p_2, stride_0, stride_1, stride_2, p_inverse, n, d, BM: tl.constexpr, BK: tl.constexpr):
    modality = tl.program_id(1)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_k = tl.arange(0, BK)
    p = _pointer(modality, p_0, p_1, p_2)
    p += o_m.to(tl.int64)[:, None] * _stride(modality, stride_0, stride_1, stride_2) + o_k[None, :]
    squared = tl.zeros([BM], tl.float32)
    for k in range(0, d, BK):
        b_z = tl.load(p, mask=(o_m < n)[:, None] & (k + o_k < d)[None, :], other=0.0).to(tl.float32)  # [BM, BK]
        squared += tl.sum(b_z * b_z, 1)
        p += BK
    tl.store(p_inverse + modality.to(tl.int64) * n + o_m, _inverse_norm(squared), mask=o_m < n)


@triton.jit(do_not_specialize=_COUNTS)
def _count_kernel(p_labels, p_sorted, p_count, rows, n, reach, steps, B: tl.constexpr):
    """How many of n sorted labels are related to each label: the ends of their run, by bisection (O(n log n) in all).

    Compares as the tiles do, rounding included, so that targets sum to 1 at the edge too.
    """
    o_i = tl.program_id(0) * B + tl.arange(0, B)
    m_i = o_i < rows
    y = _load_labels(p_labels + o_i, m_i, reach, False)
    low = tl.zeros([B], tl.int32)
    high = tl.zeros([B], tl.int32) + n
    low_end = low
    high_end = high
    for _ in range(steps):
        middle = (low + high) // 2
        y_m = _load_labels(p_sorted + middle, m_i & (middle < n), reach, False)
        # Sorted, NaN comes last: at or after the first related label?
        reached = (y - y_m <= reach) | (y_m != y_m)
        going = low < high
        low = tl.where(going & (reached == 0), middle + 1, low)
        high = tl.where(going & reached, middle, high)
        middle = (low_end + high_end) // 2
        y_m = _load_labels(p_sorted + middle, m_i & (middle < n), reach, False)
        inside = y_m - y <= reach
        going = low_end < high_end
        low_end = tl.where(going & inside, middle + 1, low_end)
        high_end = tl.where(going & (inside == 0), middle, high_end)
    count = tl.where(y == y, tl.maximum(low_end - low, 0), 0)
    tl.store(p_count + o_i, count, mask=m_i)


@triton.jit(do_not_specialize=_COUNTS)
def _statistics_kernel(
    p_rows_0,
    p_rows_1,
    p_rows_2,
    p_columns_0,
    p_columns_1,
    p_columns_2,
    stride_rows_0,
    stride_rows_1,
    stride_rows_2,
    stride_columns_0,
    stride_columns_1,
    stride_columns_2,
    p_row_labels,
    p_column_labels,
    p_row_inverse,  # (M, n_rows); PREPARE: written
    p_column_inverse,  # (M, n_columns)
    p_row_weight,  # (n_rows,); PREPARE: written
    p_column_weight,  # (n_columns,)
    stride_row_inverse,
    stride_column_inverse,
    temperature,
    p_row_max,  # (P, column groups, n_rows)
    p_row_sum,
    p_column_max,  # (P, row groups, n_columns)
    p_column_sum,
    p_attraction,  # (P, row groups, column groups)
    n_rows,
    n_columns,
    d,
    diagonal,  # row i and column i + diagonal are the same example
    row_blocks,  # blocks in a group
    column_blocks,
    reach,
    smoothing,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
    LABELS: tl.constexpr,  # 0 none, 1 numbers, 2 classes
    LEARNED: tl.constexpr,
    PREPARE: tl.constexpr,  # norms and weights are made here, not read: square, one block a group
    PRECISION: tl.constexpr,
):
    """Online log-sum-exps of rows and columns over a group of tiles, and the sum of target times similarity."""
    i_rows, i_columns, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row_groups, column_groups = tl.num_programs(0), tl.num_programs(1)
    a = pair // 2
    b = 1 + (pair + 1) // 2
    p_a = _pointer(a, p_rows_0, p_rows_1, p_rows_2)
    p_b = _pointer(b, p_columns_0, p_columns_1, p_columns_2)
    stride_a = _stride(a, stride_rows_0, stride_rows_1, stride_rows_2)
    stride_b = _stride(b, stride_columns_0, stride_columns_1, stride_columns_2)
    p_row_max += (pair * column_groups + i_columns).to(tl.int64) * n_rows
    p_row_sum += (pair * column_groups + i_columns).to(tl.int64) * n_rows
    p_column_max += (pair * row_groups + i_rows).to(tl.int64) * n_columns
    p_column_sum += (pair * row_groups + i_rows).to(tl.int64) * n_columns
    inverse_tau = 1.0 / _temperature(temperature, LEARNED)

    first_row = i_rows * row_blocks * BM
    last_row = tl.minimum(first_row + row_blocks * BM, n_rows)
    first_column = i_columns * column_blocks * BN
    last_column = tl.minimum(first_column + column_blocks * BN, n_columns)
    attraction = tl.zeros([BM], tl.float32)
    for row in range(first_row, last_row, BM):
        o_i = row + tl.arange(0, BM)
        m_i = o_i < n_rows
        w_i = tl.zeros([BM], tl.float32)
        if LABELS > 0:
            y_i = _load_labels(p_row_labels + o_i, m_i, reach, LABELS == 2)
            if PREPARE:
                w_i = _weight(p_row_labels, y_i, n_rows, reach, smoothing, BM, 64, LABELS == 2)
            else:
                w_i = tl.load(p_row_weight + o_i, mask=m_i, other=0.0)
        if PREPARE:
            tl.store(p_row_weight + o_i, w_i, mask=m_i & (pair == 0) & (i_columns == 0))
        # Twice the target of the example itself, less what the comparison of its label with itself will add.
        own = 2.0 * tl.where(w_i > 0, smoothing, 1.0) - 2.0 * w_i
        row_max = tl.full([BM], float("-inf"), tl.float32)
        row_sum = tl.zeros([BM], tl.float32)
        for column in range(first_column, last_column, BN):
            o_j = column + tl.arange(0, BN)
            m_j = o_j < n_columns
            b_s, b_aa, b_bb = _products(
                p_a, p_b, stride_a, stride_b, o_i, o_j, m_i, m_j, d, BM, BN, BK, EVEN, PREPARE, PRECISION
            )
            if PREPARE:
                inverse_i = _inverse_norm(b_aa)
                inverse_j = _inverse_norm(b_bb)
                # One program writes each: modality 0 as rows of the first pair, 1 and 2 as columns of the first two.
                tl.store(p_row_inverse + o_i, inverse_i, mask=m_i & (pair == 0) & (i_columns == 0))
                tl.store(p_row_inverse + b * stride_row_inverse + o_j, inverse_j, mask=m_j & (pair < 2) & (i_rows == 0))
            else:
                inverse_i = tl.load(p_row_inverse + a.to(tl.int64) * stride_row_inverse + o_i, mask=m_i, other=0.0)
                inverse_j = tl.load(
                    p_column_inverse + b.to(tl.int64) * stride_column_inverse + o_j, mask=m_j, other=0.0
                )
            b_s = b_s * (inverse_i[:, None] * inverse_j[None, :]) * inverse_tau  # [BM, BN]; 0 outside the rectangle

            b_t = tl.where(o_i[:, None] + diagonal == o_j[None, :], own[:, None], 0.0)  # t_ij + t_ji
            if LABELS > 0:
                y_j = _load_labels(p_column_labels + o_j, m_j, reach, LABELS == 2)
                if PREPARE:
                    w_j = _weight(p_row_labels, y_j, n_rows, reach, smoothing, BN, 64, LABELS == 2)
                else:
                    w_j = tl.load(p_column_weight + o_j, mask=m_j, other=0.0)
                related = _related(y_i[:, None], y_j[None, :], reach, LABELS == 2)
                b_t += tl.where(related, w_i[:, None] + w_j[None, :], 0.0)
            attraction += tl.sum(b_s * b_t, 1)
            b_s += tl.where(m_i, 0.0, float("-inf"))[:, None] + tl.where(m_j, 0.0, float("-inf"))[None, :]

            top = tl.maximum(row_max, tl.max(b_s, 1))
            row_sum = row_sum * tl.exp(row_max - top) + tl.sum(tl.exp(b_s - top[:, None]), 1)
            row_max = top

            seen = m_j & (row > first_row)
            column_max = tl.load(p_column_max + o_j, mask=seen, other=float("-inf"))
            column_sum = tl.load(p_column_sum + o_j, mask=seen, other=0.0)
            top = tl.maximum(column_max, tl.max(b_s, 0))
            column_sum = column_sum * tl.exp(column_max - top) + tl.sum(tl.exp(b_s - top[None, :]), 0)
            # Threads that hold the same column must all have read before one of them writes.
            tl.debug_barrier()
            tl.store(p_column_max + o_j, top, mask=m_j)
            tl.store(p_column_sum + o_j, column_sum, mask=m_j)
        tl.store(p_row_max + o_i, row_max, mask=m_i)
        tl.store(p_row_sum + o_i, row_sum, mask=m_i)
        # The next row block reads the column sums that other threads of this program wrote.
        tl.debug_barrier()
    tl.store(p_attraction + (pair * row_groups + i_rows) * column_groups + i_columns, tl.sum(attraction))


@triton.jit(do_not_specialize=_COUNTS)
def _merge_kernel(p_max, p_sum, p_lse, n, groups, B: tl.constexpr):
    """Merges the partial log-sum-exps of a block of rows."""
    pair = tl.program_id(1).to(tl.int64)
    o = tl.program_id(0) * B + tl.arange(0, B)
    m = o < n
    p_max += pair * groups * n + o
    p_sum += pair * groups * n + o
    top = tl.load(p_max, mask=m, other=0.0)
    total = tl.load(p_sum, mask=m, other=1.0)
    for _ in range(1, groups):
        p_max += n
        p_sum += n
        part_max = tl.load(p_max, mask=m, other=0.0)
        part_sum = tl.load(p_sum, mask=m, other=1.0)
        new = tl.maximum(top, part_max)
        total = total * tl.exp(top - new) + part_sum * tl.exp(part_max - new)
        top = new
    tl.store(p_lse + pair * n + o, top + tl.log(total), mask=m)


@triton.jit
def _merge_all(p_max, p_sum, p_lse, n, groups, P: tl.constexpr, B: tl.constexpr, G: tl.constexpr):
    """Merges and stores the log-sum-exps of all rows of all pairs in one program; [B], the sums of them.

    Nobody else runs meanwhile: what counts is how often it waits for memory, so G partial sums are read at a time.
    """
    o_g = tl.arange(0, G)
    total = tl.zeros([B], tl.float32)
    for start in range(0, P * n, B):
        o = start + tl.arange(0, B)
        o_row = tl.minimum(o, P * n - 1)
        o_row += o_row // n * (groups - 1) * n  # of the pair's first group
        top = tl.full([B], float("-inf"), tl.float32)
        b_sum = tl.zeros([B], tl.float32)
        for group in range(0, groups, G):
            m_g = group + o_g < groups
            o_part = (group + o_g)[:, None] * n + o_row[None, :]
            b_max = tl.load(p_max + o_part, mask=m_g[:, None], other=float("-inf"))  # [G, B]
            b_part = tl.load(p_sum + o_part, mask=m_g[:, None], other=0.0)
            new = tl.maximum(top, tl.max(b_max, 0))
            b_sum = b_sum * tl.exp(top - new) + tl.sum(b_part * tl.exp(b_max - new[None, :]), 0)
            top = new
        lse = top + tl.log(b_sum)
        tl.store(p_lse + o, lse, mask=o < P * n)
        total += tl.where(o < P * n, lse, 0.0)
    return total


@triton.jit(do_not_specialize=_COUNTS)
def _loss_kernel(
    p_row_max,
    p_row_sum,
    p_column_max,
    p_column_sum,
    p_attraction,
    p_lse,  # (2P, n)
    p_loss,
    n,
    row_groups,
    column_groups,
    P: tl.constexpr,
    B: tl.constexpr,
):
    """Small n, one program: all log-sum-exps and the loss."""
    total = _merge_all(p_row_max, p_row_sum, p_lse, n, column_groups, P, B, 8)
    total += _merge_all(p_column_max, p_column_sum, p_lse + P * n, n, row_groups, P, B, 8)
    tiles = P * row_groups * column_groups
    for start in range(0, tiles, B):
        o = start + tl.arange(0, B)
        total -= tl.load(p_attraction + o, mask=o < tiles, other=0.0)
    tl.store(p_loss, tl.sum(total) / n)


@triton.jit(do_not_specialize=_COUNTS)
def _gradient_tile_kernel(
    p_rows_0,
    p_rows_1,
    p_rows_2,
    p_columns_0,
    p_columns_1,
    p_columns_2,
    stride_rows_0,
    stride_rows_1,
    stride_rows_2,
    stride_columns_0,
    stride_columns_1,
    stride_columns_2,
    p_row_labels,
    p_column_labels,
    p_row_inverse,  # (M, n_rows)
    p_column_inverse,  # (M, n_columns)
    p_row_weight,  # (n_rows,)
    p_column_weight,  # (n_columns,)
    p_row_lse,  # (2P, n_rows), rows with stride row_lse_stride
    p_column_lse,  # (2P, n_columns)
    stride_row_inverse,
    stride_column_inverse,
    stride_row_lse,
    stride_column_lse,
    temperature,
    p_g,  # (2P, strip, width)
    p_radial,  # (2P, column tiles, strip)
    start,  # the strip's first row
    n_rows,
    n_columns,
    d,
    diagonal,
    strip,
    width,
    reach,
    smoothing,
    P: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
    LABELS: tl.constexpr,
    LEARNED: tl.constexpr,
    SCALE: tl.constexpr,  # float16 holds G scaled, or small probabilities would be lost
    FOLD: tl.constexpr,  # G_ij / |b_j| is stored, not G_ij: the product then takes b as it is
    PRECISION: tl.constexpr,
):
    """G_ij = exp(s - rowlse_i) + exp(s - columnlse_j) - (t_ij + t_ji) of a strip of rows, for every direction."""
    i_column, i_row, direction = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = direction % P
    low = pair // 2
    high = 1 + (pair + 1) // 2
    a = tl.where(direction < P, low, high)
    b = tl.where(direction < P, high, low)
    opposite = (direction + P) % (2 * P)
    p_a = _pointer(a, p_rows_0, p_rows_1, p_rows_2)
    p_b = _pointer(b, p_columns_0, p_columns_1, p_columns_2)
    stride_a = _stride(a, stride_rows_0, stride_rows_1, stride_rows_2)
    stride_b = _stride(b, stride_columns_0, stride_columns_1, stride_columns_2)

    o_strip = i_row * BM + tl.arange(0, BM)
    o_i = start + o_strip
    o_j = i_column * BN + tl.arange(0, BN)
    m_i = o_i < n_rows
    m_j = o_j < n_columns
    b_c, _, _ = _products(p_a, p_b, stride_a, stride_b, o_i, o_j, m_i, m_j, d, BM, BN, BK, EVEN, False, PRECISION)
    inverse_i = tl.load(p_row_inverse + a.to(tl.int64) * stride_row_inverse + o_i, mask=m_i, other=0.0)
    inverse_j = tl.load(p_column_inverse + b.to(tl.int64) * stride_column_inverse + o_j, mask=m_j, other=0.0)
    b_c = b_c * (inverse_i[:, None] * inverse_j[None, :])  # [BM, BN], cosines
    b_s = b_c * (1.0 / _temperature(temperature, LEARNED))
    lse_i = tl.load(p_row_lse + direction.to(tl.int64) * stride_row_lse + o_i, mask=m_i, other=0.0)
    lse_j = tl.load(p_column_lse + opposite.to(tl.int64) * stride_column_lse + o_j, mask=m_j, other=0.0)
    # No similarity exceeds its log-sum-exp; but outside the rectangle it is 0, where every true one may be far below,
    # and its exponential would overflow.
    b_g = tl.exp(_at_most_0(b_s - lse_i[:, None])) + tl.exp(_at_most_0(b_s - lse_j[None, :]))

    w_i = tl.zeros([BM], tl.float32)
    if LABELS > 0:
        w_i = tl.load(p_row_weight + o_i, mask=m_i, other=0.0)
        w_j = tl.load(p_column_weight + o_j, mask=m_j, other=0.0)
        y_i = _load_labels(p_row_labels + o_i, m_i, reach, LABELS == 2)
        y_j = _load_labels(p_column_labels + o_j, m_j, reach, LABELS == 2)
        related = _related(y_i[:, None], y_j[None, :], reach, LABELS == 2)
        b_g -= tl.where(related, w_i[:, None] + w_j[None, :], 0.0)
    own = 2.0 * tl.where(w_i > 0, smoothing, 1.0) - 2.0 * w_i
    b_g -= tl.where(o_i[:, None] + diagonal == o_j[None, :], own[:, None], 0.0)

    p_radial += (direction * tl.num_programs(0) + i_column).to(tl.int64) * strip
    tl.store(p_radial + o_strip, tl.sum(b_g * b_c, 1))
    if FOLD:
        b_g = b_g * inverse_j[None, :]
    p_g += (direction * strip + o_strip).to(tl.int64)[:, None] * width + o_j[None, :]
    tl.store(p_g, (b_g * SCALE).to(p_g.dtype.element_ty))


@triton.jit(do_not_specialize=_COUNTS)
def _gradient_product_kernel(
    p_columns_0,
    p_columns_1,
    p_columns_2,
    stride_columns_0,
    stride_columns_1,
    stride_columns_2,
    p_column_inverse,
    stride_column_inverse,
    p_g,  # (2P, strip, width)
    p_out_0,  # FINAL: gradients (n, d); else (splits, M, strip, d) in float32
    p_out_1,
    p_out_2,
    p_radial,  # (2P, column tiles, strip)
    p_grad,
    temperature,
    p_temperature_gradient,
    n_columns,
    d,
    strip,
    width,
    radial_tiles,
    blocks,  # column blocks in a split
    M: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    LEARNED: tl.constexpr,
    SCALE: tl.constexpr,
    FOLD: tl.constexpr,
    FINAL: tl.constexpr,  # small n: rows and columns are the same block, one strip holds it, no splits
    PRECISION: tl.constexpr,
):
    """sum_b sum_j G_ij b_j for a strip of rows; FINAL also goes through the normalisation and adds up the
    temperature's."""
    P: tl.constexpr = M * (M - 1) // 2
    i_d, i_row = tl.program_id(0), tl.program_id(1)
    a = tl.program_id(2) % M
    split = tl.program_id(2) // M
    o_i = i_row * BM + tl.arange(0, BM)
    o_d = i_d * BN + tl.arange(0, BN)
    m_d = o_d < d
    b_raw = tl.zeros([BM, BN], tl.float32)
    radial = tl.zeros([BM], tl.float32)
    for other in tl.static_range(M - 1):
        b = tl.where(other < a, other, other + 1)
        direction = a + b - 1 + tl.where(a < b, 0, P)
        p_b = _pointer(b, p_columns_0, p_columns_1, p_columns_2)
        stride_b = _stride(b, stride_columns_0, stride_columns_1, stride_columns_2)
        p_g_i = p_g + (direction * strip + o_i).to(tl.int64)[:, None] * width
        first = split * blocks * BK
        for column in range(first, tl.minimum(first + blocks * BK, n_columns), BK):
            o_j = column + tl.arange(0, BK)
            m_j = o_j < n_columns
            b_g = tl.load(p_g_i + o_j[None, :])  # [BM, BK]; finite beyond the last column
            p_z = p_b + o_j.to(tl.int64)[:, None] * stride_b + o_d[None, :]
            b_z = tl.load(p_z, mask=m_j[:, None] & m_d[None, :], other=0.0)  # [BK, BN]
            if not FOLD:
                p_j = p_column_inverse + b.to(tl.int64) * stride_column_inverse + o_j
                inverse_j = tl.load(p_j, mask=m_j, other=0.0)
                b_z = (b_z.to(tl.float32) * inverse_j[:, None]).to(b_z.dtype)
            b_raw = tl.dot(b_g, b_z, b_raw, input_precision=PRECISION)
        if FINAL:
            for first_tile in range(0, radial_tiles, 16):
                o_t = first_tile + tl.arange(0, 16)
                p_parts = p_radial + (direction * radial_tiles + o_t)[:, None] * strip + o_i[None, :]
                radial += tl.sum(tl.load(p_parts, mask=(o_t < radial_tiles)[:, None], other=0.0), 0)  # [16, BM]
    b_raw = b_raw * (1.0 / SCALE)

    if FINAL:
        tau = _temperature(temperature, LEARNED)
        scale = tl.load(p_grad).to(tl.float32) / (n_columns * tau)
        m_i = o_i < n_columns
        m_o = m_i[:, None] & m_d[None, :]
        p_a = _pointer(a, p_columns_0, p_columns_1, p_columns_2)
        stride_a = _stride(a, stride_columns_0, stride_columns_1, stride_columns_2)
        b_z = tl.load(p_a + o_i.to(tl.int64)[:, None] * stride_a + o_d[None, :], mask=m_o, other=0.0).to(tl.float32)
        inverse_i = tl.load(p_column_inverse + a * stride_column_inverse + o_i, mask=m_i, other=0.0)
        # A clamped norm is a constant: nothing flows through it.
        along = tl.where(inverse_i < 0.9999e12, radial * inverse_i, 0.0)
        b_out = (b_raw - b_z * along[:, None]) * (scale * inverse_i)[:, None]
        p_out = _pointer(a, p_out_0, p_out_1, p_out_2) + o_i.to(tl.int64)[:, None] * d + o_d[None, :]
        tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=m_o)
        if (i_d == 0) & (i_row == 0) & (a == 0):
            temperature_gradient = 0.0
            if LEARNED:
                # Each pair's two directions have the same sum: half of all. One program adds, many numbers at a time.
                total = tl.zeros([4096], tl.float32)
                count = 2 * P * radial_tiles * strip
                for at in range(0, count, 4096):
                    o = at + tl.arange(0, 4096)
                    total += tl.load(p_radial + o, mask=o < count, other=0.0)
                temperature_gradient = -0.5 * scale / tau * tl.sum(total)
            tl.store(p_temperature_gradient, temperature_gradient)
    else:
        p_out = p_out_0 + ((split * M + a) * strip + o_i).to(tl.int64)[:, None] * d + o_d[None, :]
        tl.store(p_out, b_raw, mask=m_d[None, :] & (o_i < strip)[:, None])


class Tile(NamedTuple):
    """Tile sizes of one kernel, and how it is compiled."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int


def choose_tile(kernel: str, rows: int, d: int, element_size: int, architecture: int) -> Tile:
    """The tile of the kernels "statistics", "tile" (of G) and "product".

    Keyed on size classes only, never tuned at run time. ``tests/kernels/test_contrastive_compile.py`` compiles the
    choices for every architecture and holds registers, spills and shared memory to a budget.

    Args:
        rows: the longer side of the rectangle.
        d: embedding size; unless a multiple of 16, loads cannot be wide, and large tiles would spill.
        element_size: in bytes; float32 takes half as deep tiles in the same shared memory.
        architecture: as :func:`_architecture` gives it.
    """
    half = element_size == 2
    deep = 64 if half else 32
    stages = 2 if architecture == HIP else 3
    if rows <= 256:
        if kernel == "product":
            return Tile(32, 64, 64, 4, 2)
        if kernel == "statistics":
            return Tile(32, 32, 128 if half else 32, 8, 2)
        # Masked along d, float32 spills in the deeper one.
        return Tile(32, 32, 2 * deep if half or d % 16 == 0 else deep, 4, 2)
    if kernel == "statistics" and not half and rows <= SMALL:
        return Tile(32, 64, deep, 8, stages)  # 64 rows spill up to 512 bytes a thread on sm_80
    masked = kernel == "statistics" and half and rows > SMALL and d % deep != 0  # along d: spills 544 bytes on sm_90
    if d % 16 != 0 or masked:
        return Tile(64, 64, deep, 8, 2)
    if rows <= SMALL:
        return Tile(64, 64, deep, 8 if kernel == "statistics" else 4, stages)
    # Warp-group products want wide tiles; elsewhere the epilogue's vectors of columns leave no registers for them.
    wide = kernel == "product" or (half and architecture == 90)
    return Tile(128, 128 if wide else 64, deep, 8, stages)


def _architecture(device: torch.device) -> int:
    """Compute capability, 90 for 9.0; ``HIP`` on AMD; the oldest one in the interpreter."""
    if torch.version.hip is not None:
        return HIP
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _precision(device: torch.device) -> str:
    """How products of float32 are taken: to float32's precision unless PyTorch was told otherwise."""
    if _architecture(device) == HIP:
        return "ieee"
    # Unlike get_float32_matmul_precision this can be read whichever of PyTorch's two interfaces the user set it with.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def _labels(labels: Tensor | None) -> tuple[Tensor | None, int]:
    if labels is None:
        return None, 0
    if labels.is_floating_point():
        return labels.float().contiguous(), 1
    return labels.to(torch.int64).contiguous(), 2


def _three(values: list) -> list:
    """Kernels take three modalities; a missing third is never touched."""
    return values if len(values) == 3 else [*values, values[0]]


def _rows_contiguous(embeddings: Sequence[Tensor]) -> list[Tensor]:
    return [z if z.stride(1) == 1 or z.shape[1] == 1 else z.contiguous() for z in embeddings]


def _options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages}


class _Operands(NamedTuple):
    """What the kernels of one rectangle take from its blocks."""

    rows: list[Tensor]
    columns: list[Tensor]
    row_labels: Tensor | None
    column_labels: Tensor | None
    kind: int
    diagonal: int
    size: int  # decides the tiles

    @property
    def embeddings(self) -> list:
        """Pointers and strides, as the kernels' signatures begin."""
        return [
            *_three(self.rows),
            *_three(self.columns),
            *_three([z.stride(0) for z in self.rows]),
            *_three([z.stride(0) for z in self.columns]),
            self.row_labels,
            self.column_labels,
        ]


def _operands(rows: Block, columns: Block) -> _Operands:
    row_labels, kind = _labels(rows.labels)
    square = rows.embeddings is columns.embeddings
    z = _rows_contiguous(rows.embeddings)
    return _Operands(
        z,
        z if square else _rows_contiguous(columns.embeddings),
        row_labels,
        row_labels if square else _labels(columns.labels)[0],
        kind,
        rows.offset - columns.offset,
        max(rows.rows, columns.rows),
    )


def _run_statistics(
    rows: Block, columns: Block, temperature: Tensor | float, smoothing: float, threshold: float, prepare: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches :func:`_statistics_kernel`; returns partial (max, sum) of rows and of columns, and of the attraction."""
    given = _operands(rows, columns)
    z, modalities, d = given.rows[0], len(given.rows), given.rows[0].shape[1]
    tile = choose_tile("statistics", given.size, d, z.element_size(), _architecture(z.device))
    row_tiles, column_tiles = triton.cdiv(rows.rows, tile.BM), triton.cdiv(columns.rows, tile.BN)
    row_blocks = 1 if prepare else triton.cdiv(row_tiles, MAX_GROUPS)
    column_blocks = 1 if prepare else triton.cdiv(column_tiles, MAX_GROUPS)
    row_groups, column_groups = triton.cdiv(row_tiles, row_blocks), triton.cdiv(column_tiles, column_blocks)
    n_pairs = len(pairs(modalities))
    new = rows.inverse_norm.new_empty
    row_partial = new(2, n_pairs, column_groups, rows.rows)
    column_partial = new(2, n_pairs, row_groups, columns.rows)
    attraction = new(n_pairs, row_groups, column_groups)
    _statistics_kernel[row_groups, column_groups, n_pairs](
        *given.embeddings,
        rows.inverse_norm,
        columns.inverse_norm,
        rows.weight,
        columns.weight,
        rows.inverse_norm.stride(0),
        columns.inverse_norm.stride(0),
        temperature,
        row_partial[0],
        row_partial[1],
        column_partial[0],
        column_partial[1],
        attraction,
        rows.rows,
        columns.rows,
        d,
        given.diagonal,
        row_blocks,
        column_blocks,
        threshold + LABEL_TOLERANCE,
        smoothing,
        BM=tile.BM,
        BN=tile.BN,
        BK=tile.BK,
        EVEN=d % tile.BK == 0,
        LABELS=given.kind,
        LEARNED=isinstance(temperature, Tensor),
        PREPARE=prepare,
        PRECISION=_precision(z.device),
        **_options(tile),
    )
    return row_partial, column_partial, attraction


def _merge_partials(partial: Tensor) -> Tensor:
    """(2, P, groups, n) partial maxima and sums -> (P, n) log-sum-exps."""
    _, n_pairs, groups, n = partial.shape
    lse = partial.new_empty(n_pairs, n)
    _merge_kernel[triton.cdiv(n, 256), n_pairs](partial[0], partial[1], lse, n, groups, B=256)
    return lse


def statistics(
    rows: Block, columns: Block, temperature: Tensor, smoothing: float, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`cmsbert_fast.ops.contrastive.torch.statistics`."""
    if rows.rows == 0 or columns.rows == 0:
        return contrastive_torch.statistics(rows, columns, temperature, smoothing, threshold)
    row, column, attraction = _run_statistics(rows, columns, temperature, smoothing, threshold, prepare=False)
    return _merge_partials(row), _merge_partials(column), attraction.sum()


def inverse_norms(embeddings: Sequence[Tensor]) -> Tensor:
    """As :func:`cmsbert_fast.ops.contrastive.torch.inverse_norms`, in one launch."""
    z = _rows_contiguous(embeddings)
    n, d = z[0].shape
    out = z[0].new_empty(len(z), n, dtype=torch.float32)
    if n > 0:
        grid = (triton.cdiv(n, 16), len(z))
        _norm_kernel[grid](*_three(z), *_three([e.stride(0) for e in z]), out, n, d, BM=16, BK=256, num_warps=4)
    return out


def count_related(labels: Tensor, columns: Tensor, threshold: float) -> Tensor:
    """As :func:`cmsbert_fast.ops.contrastive.torch.count_related`."""
    if not labels.is_floating_point() or labels.numel() == 0:
        return contrastive_torch.count_related(labels, columns, threshold)
    ordered = columns.float().sort().values
    count = torch.empty(labels.shape, dtype=torch.int64, device=labels.device)
    steps = ordered.numel().bit_length()
    grid = (triton.cdiv(labels.numel(), 256),)
    reach = threshold + LABEL_TOLERANCE
    _count_kernel[grid](
        labels.float().contiguous(), ordered, count, labels.numel(), ordered.numel(), reach, steps, B=256
    )
    return count


def make_block(embeddings: Sequence[Tensor], labels: Tensor | None, smoothing: float, threshold: float) -> Block:
    """As :func:`cmsbert_fast.ops.contrastive.torch.make_block`."""
    inverse_norm = inverse_norms(embeddings)
    if labels is None or labels.numel() == 0:
        weight = inverse_norm.new_zeros(embeddings[0].shape[0])
    else:
        weight = target_weight(count_related(labels, labels, threshold) - 1, smoothing, torch.float32)
    return Block(tuple(embeddings), labels, inverse_norm, weight)


class _Strip(NamedTuple):
    """How much of the backward pass is alive at a time."""

    rows: int
    width: int  # of G: n_columns, padded
    splits: int  # of the products' sums over columns


def _plan(n_rows: int, n_columns: int, d: int, modalities: int, element_size: int, tile: Tile, product: Tile) -> _Strip:
    """Strips high enough to fill the machine, low enough for O(n) memory."""
    width = triton.cdiv(n_columns, max(tile.BN, product.BK)) * max(tile.BN, product.BK)
    directions = modalities * (modalities - 1)
    high = max(STRIP_BYTES // (directions * width * element_size), MIN_STRIP)
    step = max(tile.BM, product.BM)
    rows = triton.cdiv(min(high, n_rows), step) * step
    programs = modalities * triton.cdiv(rows, product.BM) * triton.cdiv(d, product.BN)
    blocks = triton.cdiv(n_columns, product.BK)
    wanted = triton.cdiv(PROGRAMS, programs) if programs < PROGRAMS // 2 else 1
    return _Strip(rows, width, max(1, min(wanted, 8, blocks // 8)))


def _run_gradients(
    rows: Block,
    columns: Block,
    temperature: Tensor | float,
    smoothing: float,
    threshold: float,
    final: tuple[list[Tensor], Tensor, Tensor] | None = None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Strip after strip: (its rows, raw (splits, M, strip, d), radial parts (2P, tiles, strip)); two launches each.

    ``final``: (gradients, upstream gradient, temperature's gradient) of the square that one strip holds; they are
    written.
    """
    assert rows.lse is not None
    assert columns.lse is not None
    given = _operands(rows, columns)
    z, modalities, d = given.rows[0], len(given.rows), given.rows[0].shape[1]
    tile = choose_tile("tile", given.size, d, z.element_size(), _architecture(z.device))
    product = choose_tile("product", given.size, d, z.element_size(), _architecture(z.device))
    plan = _plan(rows.rows, columns.rows, d, modalities, z.element_size(), tile, product)
    n_pairs = len(pairs(modalities))
    column_tiles = plan.width // tile.BN
    g = z.new_empty(2 * n_pairs, plan.rows, plan.width)
    radial = rows.inverse_norm.new_empty(2 * n_pairs, column_tiles, plan.rows)
    if final is None:
        splits, raw = plan.splits, rows.inverse_norm.new_empty(plan.splits, modalities, plan.rows, d)
        outputs, grad, temperature_gradient = [raw] * 3, None, None
    else:
        splits, raw = 1, radial  # not returned
        outputs, grad, temperature_gradient = _three(final[0]), final[1], final[2]
    # float16 loses probabilities below 6e-5 and overflows with 1/|b|.
    half = z.dtype == torch.float16
    shared = {
        "SCALE": 4096.0 if half else 1.0,
        "FOLD": not half,
        "LEARNED": isinstance(temperature, Tensor),
        "PRECISION": _precision(z.device),
    }
    for start in range(0, rows.rows, plan.rows):
        _gradient_tile_kernel[column_tiles, plan.rows // tile.BM, 2 * n_pairs](
            *given.embeddings,
            rows.inverse_norm,
            columns.inverse_norm,
            rows.weight,
            columns.weight,
            rows.lse,
            columns.lse,
            rows.inverse_norm.stride(0),
            columns.inverse_norm.stride(0),
            rows.lse.stride(0),
            columns.lse.stride(0),
            temperature,
            g,
            radial,
            start,
            rows.rows,
            columns.rows,
            d,
            given.diagonal,
            plan.rows,
            plan.width,
            threshold + LABEL_TOLERANCE,
            smoothing,
            P=n_pairs,
            BM=tile.BM,
            BN=tile.BN,
            BK=tile.BK,
            EVEN=d % tile.BK == 0,
            LABELS=given.kind,
            **shared,
            **_options(tile),
        )
        grid = (triton.cdiv(d, product.BN), plan.rows // product.BM, modalities * splits)
        _gradient_product_kernel[grid](
            *_three(given.columns),
            *_three([column.stride(0) for column in given.columns]),
            columns.inverse_norm,
            columns.inverse_norm.stride(0),
            g,
            *outputs,
            radial,
            grad,
            temperature,
            temperature_gradient,
            columns.rows,
            d,
            plan.rows,
            plan.width,
            column_tiles,
            triton.cdiv(triton.cdiv(columns.rows, product.BK), splits),
            M=modalities,
            BM=product.BM,
            BN=product.BN,
            BK=product.BK,
            FINAL=final is not None,
            **shared,
            **_options(product),
        )
        yield slice(start, min(start + plan.rows, rows.rows)), raw, radial


def _strips(
    rows: Block, columns: Block, temperature: Tensor | float, smoothing: float, threshold: float
) -> Iterator[tuple[slice, list[Tensor], Tensor]]:
    """Strip after strip: (its rows, M raw gradients (rows, d), radial (M, rows))."""
    modalities = len(rows.embeddings)
    every = contrastive_torch.directions(modalities)
    for chunk, raw, parts in _run_gradients(rows, columns, temperature, smoothing, threshold):
        count = chunk.stop - chunk.start
        by_direction = parts[:, :, :count].sum(1)
        radial = by_direction.new_zeros(modalities, count)
        for (a, _), part in zip(every, by_direction, strict=True):
            radial[a] += part
        yield chunk, list(raw[:, :, :count].sum(0).unbind(0)), radial


def gradients(
    rows: Block, columns: Block, temperature: Tensor, smoothing: float, threshold: float
) -> tuple[list[Tensor], Tensor]:
    """As :func:`cmsbert_fast.ops.contrastive.torch.gradients`."""
    raw = [z.new_zeros(z.shape, dtype=torch.float32) for z in rows.embeddings]
    radial = torch.zeros_like(rows.inverse_norm)
    if rows.rows == 0 or columns.rows == 0:
        return raw, radial
    for chunk, part, along in _strips(rows, columns, temperature, smoothing, threshold):
        for whole, strip in zip(raw, part, strict=True):
            whole[chunk] = strip
        radial[:, chunk] = along
    return raw, radial


def forward(
    embeddings: Sequence[Tensor],
    labels: Tensor | None,
    temperature: Tensor | None,
    fixed_temperature: float,
    smoothing: float,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss of one process; two launches up to ``SMALL`` rows, no host synchronisation at any size.

    Args:
        embeddings: M tensors (n, d), n >= 1.
        temperature: 0-dim tensor, or None: ``fixed_temperature`` holds.

    Returns:
        loss (), lse (2P, n), inverse_norm (M, n), weight (n,), all float32.
    """
    z = embeddings[0]
    n, modalities = z.shape[0], len(embeddings)
    tau = fixed_temperature if temperature is None else temperature
    if n > SMALL:
        block = make_block(embeddings, labels, smoothing, threshold)
        row, column, attraction = _run_statistics(block, block, tau, smoothing, threshold, prepare=False)
        lse = torch.cat([_merge_partials(row), _merge_partials(column)])
        return (lse.sum() - attraction.sum()) / n, lse, block.inverse_norm, block.weight
    inverse_norm = z.new_empty(modalities, n, dtype=torch.float32)
    block = Block(tuple(embeddings), labels, inverse_norm, z.new_empty(n, dtype=torch.float32))
    row, column, attraction = _run_statistics(block, block, tau, smoothing, threshold, prepare=True)
    n_pairs, row_groups, column_groups = attraction.shape
    lse, loss = inverse_norm.new_empty(2 * n_pairs, n), inverse_norm.new_empty(())
    _loss_kernel[1,](
        row[0],
        row[1],
        column[0],
        column[1],
        attraction,
        lse,
        loss,
        n,
        row_groups,
        column_groups,
        P=n_pairs,
        B=512,
        num_warps=16,
    )
    return loss, lse, inverse_norm, block.weight


def backward(
    grad: Tensor,
    embeddings: Sequence[Tensor],
    labels: Tensor | None,
    temperature: Tensor | None,
    fixed_temperature: float,
    smoothing: float,
    threshold: float,
    lse: Tensor,
    inverse_norm: Tensor,
    weight: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of one process; two launches up to ``SMALL`` rows, no host synchronisation at any size.

    Args:
        grad: 0-dim, of the loss.
        lse, inverse_norm, weight: as :func:`forward` returned them.

    Returns:
        M gradients of the embeddings, in their dtype; the temperature's, 0-dim, float32 (a fixed one's, which nobody
        uses, is 0 up to ``SMALL`` rows).
    """
    n = embeddings[0].shape[0]
    block = Block(tuple(embeddings), labels, inverse_norm, weight, lse)
    tau = fixed_temperature if temperature is None else temperature
    out = [z.new_empty(z.shape) for z in embeddings]
    if n <= SMALL:
        temperature_gradient = inverse_norm.new_empty(())
        for _ in _run_gradients(block, block, tau, smoothing, threshold, (out, grad, temperature_gradient)):
            pass
        return out, temperature_gradient
    scale = grad / (n * tau)
    total = inverse_norm.new_zeros(())
    for chunk, raw, radial in _strips(block, block, tau, smoothing, threshold):
        part = Block(tuple(z[chunk] for z in embeddings), None, inverse_norm[:, chunk], weight[chunk])
        for whole, strip in zip(out, finish(part, raw, radial, scale, out[0].dtype), strict=True):
            whole[chunk] = strip
        total += radial.sum()
    return out, -0.5 * scale / tau * total
