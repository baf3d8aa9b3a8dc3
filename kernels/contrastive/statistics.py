"""Forward kernels of the contrastive loss: log-sum-exps of rows and columns, and the attraction term.

For every pair (a, b) of modalities, with s_ij = <a_i, b_j> / tau of normalised rows and targets t (Eq. 17, 18, 23)::

    row_lse_i = log sum_j exp(s_ij)      column_lse_j = log sum_i exp(s_ij)      attraction = sum_ij (t_ij + t_ji) s_ij
    loss = (sum row_lse + sum column_lse - sum attraction) / n

Launch plan: one program for each pair and group of tiles. It computes each similarity once, for both directions, and
keeps sums of exponentials: relative to the bound 1 / tau where that is small (``BOUND``), else to a running maximum, as
online log-sum-exps. Two merges follow, one for rows and one for columns: three launches. A square of few rows
(:func:`loss_of_square`) takes two: every tile is a group, the first launch also makes norms and weights (``PREPARE``),
and the second merges everything and gives the loss.

Cost: n^2 d multiply-adds a pair. Memory: one partial sum for each row, pair and group, of at most ``MAX_GROUPS`` groups
(with ``PREPARE``, one group a tile).
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cmsbert_fast.kernels.common import LOG2_E
from cmsbert_fast.kernels.contrastive import call
from cmsbert_fast.kernels.contrastive.call import COUNTS, Scalars, Side
from cmsbert_fast.kernels.contrastive.primitives import (
    inverse_norm,
    is_bounded,
    load_inverse_norm,
    load_labels,
    may_be_related,
    meets_diagonal,
    operand,
    own_target,
    products,
    related,
    temperature,
    weight,
)

MAX_GROUPS = 16  # of row blocks and of column blocks; each row keeps one partial sum a group


class Partial(NamedTuple):
    """Log-sum-exps over each group of tiles to base 2, in parts: ``log2(total) + maximum``; (P, groups, n), float32."""

    maximum: Tensor
    total: Tensor


@triton.jit(do_not_specialize=COUNTS)
def _statistics_kernel(
    rows: Side,  # PREPARE: its norms and weights are written
    columns: Side,
    scalars: Scalars,
    row_parts: Partial,  # (P, column groups, n_rows)
    column_parts: Partial,  # (P, row groups, n_columns)
    p_attraction,  # (P, row groups, column groups)
    d,
    diagonal,  # row i and column i + diagonal are the same example
    row_blocks,  # blocks in a group
    column_blocks,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,  # BK divides d
    PREPARE: tl.constexpr,  # norms and weights are made here, not read: square, one block a group
    SORTED: tl.constexpr,  # labels ascend: far ones are not compared
    BOUND: tl.constexpr,  # see is_bounded
    PRECISION: tl.constexpr,
):
    """Online log-sum-exps of rows and columns over a group of tiles, and the sum of target times similarity."""
    i_rows, i_columns, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row_groups, column_groups = tl.num_programs(0), tl.num_programs(1)
    a = pair // 2
    b = 1 + (pair + 1) // 2
    o_row_parts = (pair * column_groups + i_columns).to(tl.int64) * rows.n
    o_column_parts = (pair * row_groups + i_rows).to(tl.int64) * columns.n
    p_column_max = column_parts.maximum + o_column_parts
    p_column_sum = column_parts.total + o_column_parts
    inverse_tau = 1.0 / temperature(scalars)
    bounded = is_bounded(inverse_tau, BOUND)
    bound = inverse_tau * LOG2_E  # of all similarities to base 2

    first_row = i_rows * row_blocks * BM
    last_row = tl.minimum(first_row + row_blocks * BM, rows.n)
    first_column = i_columns * column_blocks * BN
    last_column = tl.minimum(first_column + column_blocks * BN, columns.n)
    attraction = tl.zeros([BM], tl.float32)
    for row in range(first_row, last_row, BM):
        o_i = row + tl.arange(0, BM)
        m_i = o_i < rows.n
        w_i = tl.zeros([BM], tl.float32)
        if rows.labels is not None:
            y_i = load_labels(rows.labels + o_i, m_i, scalars.reach)
            if PREPARE:
                w_i = weight(rows, y_i, scalars, 64)
            else:
                w_i = tl.load(rows.weight + o_i, mask=m_i, other=0.0)
        if PREPARE:
            tl.store(rows.weight + o_i, w_i, mask=m_i & (pair == 0) & (i_columns == 0))
        own = own_target(w_i, scalars)
        row_max = tl.full([BM], float("-inf"), tl.float32)
        if bounded:
            row_max = tl.zeros([BM], tl.float32) + bound
        row_sum = tl.zeros([BM], tl.float32)
        for column in range(first_column, last_column, BN):
            o_j = column + tl.arange(0, BN)
            m_j = o_j < columns.n
            z_a, z_b = operand(rows, a, o_i), operand(columns, b, o_j)
            b_s, b_aa, b_bb = products(z_a, z_b, d, BK, EVEN, PREPARE, PRECISION)
            if PREPARE:
                inverse_i = inverse_norm(b_aa)
                inverse_j = inverse_norm(b_bb)
                # One program writes each: modality 0 as rows of the first pair, 1 and 2 as columns of the first two.
                tl.store(rows.inverse_norm + o_i, inverse_i, mask=m_i & (pair == 0) & (i_columns == 0))
                p_inverse_j = rows.inverse_norm + b * rows.norm_stride + o_j
                tl.store(p_inverse_j, inverse_j, mask=m_j & (pair < 2) & (i_rows == 0))
            else:
                inverse_i = load_inverse_norm(rows, a, o_i, m_i)
                inverse_j = load_inverse_norm(columns, b, o_j, m_j)
            # Similarities to base 2, [BM, BN]; 0 outside the rectangle
            b_s = b_s * ((inverse_i * (inverse_tau * LOG2_E))[:, None] * inverse_j[None, :])

            # sum_ij (t_ij + t_ji) s_ij, in rows
            if meets_diagonal(row, column, diagonal, BM, BN):
                attraction += tl.sum(tl.where(o_i[:, None] + diagonal == o_j[None, :], b_s, 0.0), 1) * own
            if rows.labels is not None:
                last_i, last_j = tl.minimum(row + BM, rows.n), tl.minimum(column + BN, columns.n)
                if may_be_related(rows, row, last_i, columns, column, last_j, scalars.reach, SORTED):
                    y_j = load_labels(columns.labels + o_j, m_j, scalars.reach)
                    if PREPARE:
                        w_j = weight(rows, y_j, scalars, 64)
                    else:
                        w_j = tl.load(columns.weight + o_j, mask=m_j, other=0.0)
                    b_t = w_i[:, None] + w_j[None, :]
                    attraction += tl.sum(tl.where(related(y_i, y_j, scalars.reach), b_t * b_s, 0.0), 1)

            seen = m_j & (row > first_row)
            if bounded:
                shift_i, shift_j = tl.where(m_i, -bound, float("-inf")), tl.where(m_j, 0.0, float("-inf"))
                b_s = tl.exp2(b_s + (shift_i[:, None] + shift_j[None, :]))
                row_sum += tl.sum(b_s, 1)
                column_sum = tl.load(p_column_sum + o_j, mask=seen, other=0.0) + tl.sum(b_s, 0)
                # Threads that hold the same column must all have read before one of them writes.
                tl.debug_barrier()
                tl.store(p_column_max + o_j, tl.zeros([BN], tl.float32) + bound, mask=m_j)
                tl.store(p_column_sum + o_j, column_sum, mask=m_j)
            else:
                b_s += tl.where(m_i, 0.0, float("-inf"))[:, None] + tl.where(m_j, 0.0, float("-inf"))[None, :]
                top = tl.maximum(row_max, tl.max(b_s, 1))
                row_sum = row_sum * tl.exp2(row_max - top) + tl.sum(tl.exp2(b_s - top[:, None]), 1)
                row_max = top
                column_max = tl.load(p_column_max + o_j, mask=seen, other=float("-inf"))
                column_sum = tl.load(p_column_sum + o_j, mask=seen, other=0.0)
                top = tl.maximum(column_max, tl.max(b_s, 0))
                column_sum = column_sum * tl.exp2(column_max - top) + tl.sum(tl.exp2(b_s - top[None, :]), 0)
                tl.debug_barrier()
                tl.store(p_column_max + o_j, top, mask=m_j)
                tl.store(p_column_sum + o_j, column_sum, mask=m_j)
        tl.store(row_parts.maximum + o_row_parts + o_i, row_max, mask=m_i)
        tl.store(row_parts.total + o_row_parts + o_i, row_sum, mask=m_i)
        # The next row block reads the column sums that other threads of this program wrote.
        tl.debug_barrier()
    tl.store(p_attraction + (pair * row_groups + i_rows) * column_groups + i_columns, tl.sum(attraction) / LOG2_E)


@triton.jit(do_not_specialize=COUNTS)
def _merge_kernel(parts: Partial, p_lse, n, groups, B: tl.constexpr):
    """Merges the partial log-sum-exps of a block of rows."""
    pair = tl.program_id(1).to(tl.int64)
    o = tl.program_id(0) * B + tl.arange(0, B)
    m = o < n
    o_part = pair * groups * n + o
    p_max = parts.maximum + o_part
    p_sum = parts.total + o_part
    top = tl.load(p_max, mask=m, other=0.0)
    total = tl.load(p_sum, mask=m, other=1.0)
    for _ in range(1, groups):
        p_max += n
        p_sum += n
        part_max = tl.load(p_max, mask=m, other=0.0)
        part_sum = tl.load(p_sum, mask=m, other=1.0)
        new = tl.maximum(top, part_max)
        total = total * tl.exp2(top - new) + part_sum * tl.exp2(part_max - new)
        top = new
    tl.store(p_lse + pair * n + o, (top + tl.log2(total)) / LOG2_E, mask=m)


@triton.jit
def _merge_all(parts, p_lse, n, groups, P: tl.constexpr, B: tl.constexpr, G: tl.constexpr):
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
            b_max = tl.load(parts.maximum + o_part, mask=m_g[:, None], other=float("-inf"))  # [G, B]
            b_part = tl.load(parts.total + o_part, mask=m_g[:, None], other=0.0)
            new = tl.maximum(top, tl.max(b_max, 0))
            b_sum = b_sum * tl.exp2(top - new) + tl.sum(b_part * tl.exp2(b_max - new[None, :]), 0)
            top = new
        lse = (top + tl.log2(b_sum)) / LOG2_E
        tl.store(p_lse + o, lse, mask=o < P * n)
        total += tl.where(o < P * n, lse, 0.0)
    return total


@triton.jit(do_not_specialize=COUNTS)
def _loss_kernel(
    row_parts: Partial,
    column_parts: Partial,
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
    total = _merge_all(row_parts, p_lse, n, column_groups, P, B, 8)
    total += _merge_all(column_parts, p_lse + P * n, n, row_groups, P, B, 8)
    tiles = P * row_groups * column_groups
    for start in range(0, tiles, B):
        o = start + tl.arange(0, B)
        total -= tl.load(p_attraction + o, mask=o < tiles, other=0.0)
    tl.store(p_loss, tl.sum(total) / n)


def _partial_statistics(
    rows: Side, columns: Side, scalars: Scalars, diagonal: int, prepare: bool, ordered: bool
) -> tuple[Partial, Partial, Tensor]:
    """Launches :func:`_statistics_kernel`; returns what it calls ``row_parts``, ``column_parts`` and the attraction."""
    tile = call.tile("statistics", rows, columns)
    row_tiles, column_tiles = triton.cdiv(rows.n, tile["BM"]), triton.cdiv(columns.n, tile["BN"])
    row_blocks = 1 if prepare else triton.cdiv(row_tiles, MAX_GROUPS)
    column_blocks = 1 if prepare else triton.cdiv(column_tiles, MAX_GROUPS)
    row_groups, column_groups = triton.cdiv(row_tiles, row_blocks), triton.cdiv(column_tiles, column_blocks)
    new, pairs = rows.inverse_norm.new_empty, rows.pairs
    row_parts = Partial(new(pairs, column_groups, rows.n), new(pairs, column_groups, rows.n))
    column_parts = Partial(new(pairs, row_groups, columns.n), new(pairs, row_groups, columns.n))
    attraction = new(pairs, row_groups, column_groups)
    _statistics_kernel[row_groups, column_groups, pairs](
        rows=rows,
        columns=columns,
        scalars=scalars,
        row_parts=row_parts,
        column_parts=column_parts,
        p_attraction=attraction,
        d=rows.d,
        diagonal=diagonal,
        row_blocks=row_blocks,
        column_blocks=column_blocks,
        EVEN=rows.d % tile["BK"] == 0,
        PREPARE=prepare,
        SORTED=ordered,
        BOUND=call.bound(rows, columns, scalars),
        PRECISION=call.precision(rows.embeddings[0]),
        **tile,
    )
    return row_parts, column_parts, attraction


def _merge(parts: Partial) -> Tensor:
    """(P, n) log-sum-exps."""
    pairs, groups, n = parts.maximum.shape
    lse = parts.maximum.new_empty(pairs, n)
    _merge_kernel[triton.cdiv(n, 256), pairs](parts=parts, p_lse=lse, n=n, groups=groups, B=256)
    return lse


def statistics(
    rows: Side, columns: Side, scalars: Scalars, diagonal: int, ordered: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps over a rectangle of at least one row and column, in three launches.

    Args:
        diagonal: Row i and column i + diagonal are the same example.
        ordered: Labels ascend, those of rows and those of columns.

    Returns:
        row_lse (P, n_rows), column_lse (P, n_columns), and the attraction, 0-dim.
    """
    row_parts, column_parts, attraction = _partial_statistics(
        rows, columns, scalars, diagonal, prepare=False, ordered=ordered
    )
    return _merge(row_parts), _merge(column_parts), attraction.sum()


def loss_of_square(rows: Side, scalars: Scalars) -> tuple[Tensor, Tensor]:
    """The loss of rows against themselves in two launches, for small n; norms and weights of ``rows`` are written.

    Returns:
        The loss, 0-dim, and lse (2P, n).
    """
    row_parts, column_parts, attraction = _partial_statistics(rows, rows, scalars, 0, prepare=True, ordered=False)
    pairs, row_groups, column_groups = attraction.shape
    lse, loss = rows.inverse_norm.new_empty(2 * pairs, rows.n), rows.inverse_norm.new_empty(())
    _loss_kernel[1,](
        row_parts=row_parts,
        column_parts=column_parts,
        p_attraction=attraction,
        p_lse=lse,
        p_loss=loss,
        n=rows.n,
        row_groups=row_groups,
        column_groups=column_groups,
        P=pairs,
        B=512,
        num_warps=16,
    )
    return loss, lse
