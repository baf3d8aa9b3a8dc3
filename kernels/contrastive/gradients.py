"""Backward kernels of the contrastive loss: the gradients of the normalised rows, or of the embeddings themselves.

For every direction a -> b, with the notation of :mod:`cmsbert_fast.kernels.contrastive.statistics`::

    G_ij = exp(s_ij - row_lse_i) + exp(s_ij - column_lse_j) - (t_ij + t_ji)      raw_i = sum_b sum_j G_ij b_j
    radial_i = sum_b sum_j G_ij cos_ij      dz_i = scale / |z_i| (raw_i - radial_i z_i / |z_i|)
    dtau = -scale / (2 tau) sum_i radial_i      scale = g / (n tau), where g is the gradient of the loss

Launch plan: for a strip of rows, one launch writes its tiles of G in all 2 P directions and the parts of ``radial``, a
second multiplies them by the columns. Every number is written by one program: nothing is added atomically, every bit is
reproducible. A square of few rows is one strip, and the second launch also makes the gradients of embeddings and
temperature; one of more rows takes a third launch for that (:mod:`.finish`).

Cost: 2 n^2 d multiply-adds a direction, and G written and read once. Memory: a strip of G, ``MIN_STRIP`` rows or what
fits into ``STRIP_BYTES``, by n columns by 2 P directions.
"""

from collections.abc import Iterator
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cmsbert_fast.kernels.common import LOG2_E, load_rows, store_rows
from cmsbert_fast.kernels.contrastive import call, finish
from cmsbert_fast.kernels.contrastive.call import COUNTS, Scalars, Side
from cmsbert_fast.kernels.contrastive.primitives import (
    EPSILON,
    at_most_0,
    is_bounded,
    load_inverse_norm,
    load_labels,
    may_be_related,
    meets_diagonal,
    operand,
    own_target,
    pick,
    products,
    related,
    row_stride,
    temperature,
)

STRIP_BYTES = 64 * 2**20
MIN_STRIP = 256
PROGRAMS = 264  # enough to fill the machine: two for each of an H100's processors
FLOAT16_SCALE = tl.constexpr(4096.0)


class Final(NamedTuple):
    """What it takes to go on from ``raw`` to the embeddings' gradients.

    Attributes:
        gradients: M tensors (n, d), contiguous; written.
        temperature_gradient: 0-dim, float32; written, 0 where the temperature is fixed.
        grad: The loss's gradient, 0-dim.
        radial: (2P, column tiles, strip), parts of the sums along columns.
    """

    gradients: tuple[Tensor, ...]
    temperature_gradient: Tensor
    grad: Tensor
    radial: Tensor


@triton.jit(do_not_specialize=COUNTS)
def _gradient_tile_kernel(
    rows: Side,
    columns: Side,
    scalars: Scalars,
    p_g,  # (2P, strip, width)
    p_radial,  # (2P, column tiles, strip)
    start,  # the strip's first row
    d,
    diagonal,
    strip,
    width,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    SORTED: tl.constexpr,
    BOUND: tl.constexpr,
):
    """G_ij of a strip of rows, for every direction.

    Stored is G_ij / |b_j|, so that the product takes b as it is. float16 would lose probabilities below 6e-5 and
    overflow with 1 / |b_j|: it holds G_ij times FLOAT16_SCALE.
    """
    M: tl.constexpr = len(rows.embeddings)
    P: tl.constexpr = M * (M - 1) // 2
    i_column, i_row, direction = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = direction % P
    low = pair // 2
    high = 1 + (pair + 1) // 2
    a = tl.where(direction < P, low, high)
    b = tl.where(direction < P, high, low)
    opposite = (direction + P) % (2 * P)

    o_strip = i_row * BM + tl.arange(0, BM)
    o_i = start + o_strip
    o_j = i_column * BN + tl.arange(0, BN)
    m_i = o_i < rows.n
    m_j = o_j < columns.n
    b_c, _, _ = products(operand(rows, a, o_i), operand(columns, b, o_j), d, BK, EVEN, False, PRECISION)
    inverse_i = load_inverse_norm(rows, a, o_i, m_i)
    inverse_j = load_inverse_norm(columns, b, o_j, m_j)
    b_c = b_c * (inverse_i[:, None] * inverse_j[None, :])  # [BM, BN], cosines
    inverse_tau = 1.0 / temperature(scalars)
    lse_i = tl.load(rows.lse + direction.to(tl.int64) * rows.lse_stride + o_i, mask=m_i, other=0.0)
    lse_j = tl.load(columns.lse + opposite.to(tl.int64) * columns.lse_stride + o_j, mask=m_j, other=0.0)
    if is_bounded(inverse_tau, BOUND):
        bound = inverse_tau * LOG2_E
        # 0 in columns beyond the last: no product may see what it is there, or infinity times 0.
        b_e = tl.exp2(b_c * bound + tl.where(m_j, -bound, float("-inf"))[None, :])
        b_g = b_e * (tl.exp2(bound - lse_i * LOG2_E)[:, None] + tl.exp2(bound - lse_j * LOG2_E)[None, :])
    else:
        # No similarity exceeds its log-sum-exp; but outside the rectangle it is 0, where every true one may be far
        # below, and its exponential would overflow.
        b_s = b_c * inverse_tau
        b_g = tl.exp(at_most_0(b_s - lse_i[:, None])) + tl.exp(at_most_0(b_s - lse_j[None, :]))

    w_i = tl.zeros([BM], tl.float32)
    first_i, first_j = start + i_row * BM, i_column * BN
    if rows.labels is not None:
        w_i = tl.load(rows.weight + o_i, mask=m_i, other=0.0)
        last_i, last_j = tl.minimum(first_i + BM, rows.n), tl.minimum(first_j + BN, columns.n)
        if may_be_related(rows, first_i, last_i, columns, first_j, last_j, scalars.reach, SORTED):
            w_j = tl.load(columns.weight + o_j, mask=m_j, other=0.0)
            y_i = load_labels(rows.labels + o_i, m_i, scalars.reach)
            y_j = load_labels(columns.labels + o_j, m_j, scalars.reach)
            b_g -= tl.where(related(y_i, y_j, scalars.reach), w_i[:, None] + w_j[None, :], 0.0)
    if meets_diagonal(first_i, first_j, diagonal, BM, BN):
        own = own_target(w_i, scalars)
        b_g -= tl.where(o_i[:, None] + diagonal == o_j[None, :], own[:, None], 0.0)

    p_radial += (direction * tl.num_programs(0) + i_column).to(tl.int64) * strip
    tl.store(p_radial + o_strip, tl.sum(b_g * b_c, 1))
    if p_g.dtype.element_ty == tl.float16:
        b_g = b_g * FLOAT16_SCALE
    else:
        b_g = b_g * inverse_j[None, :]
    p_g += (direction * strip + o_strip).to(tl.int64)[:, None] * width + o_j[None, :]
    tl.store(p_g, b_g.to(p_g.dtype.element_ty))


@triton.jit(do_not_specialize=COUNTS)
def _gradient_product_kernel(
    columns: Side,
    scalars: Scalars,
    p_g,  # (2P, strip, width)
    p_raw,  # (splits, M, strip, d), float32; None with final
    final: Final,  # None, or rows and columns are the same side, one strip holds it, no splits
    d,
    strip,
    width,
    radial_tiles,
    blocks,  # column blocks in a split
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """raw_i of a strip of rows; ``final``: its way through the normalisation, and the sum for the temperature."""
    M: tl.constexpr = len(columns.embeddings)
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
        p_b = pick(columns.embeddings, b)
        stride_b = row_stride(columns, b)
        p_g_i = p_g + (direction * strip + o_i).to(tl.int64)[:, None] * width
        first = split * blocks * BK
        for column in range(first, tl.minimum(first + blocks * BK, columns.n), BK):
            o_j = column + tl.arange(0, BK)
            m_j = o_j < columns.n
            b_g = tl.load(p_g_i + o_j[None, :])  # [BM, BK]; finite beyond the last column
            b_z = load_rows(p_b, o_j, m_j, stride_b, o_d, m_d)  # [BK, BN]
            if p_g.dtype.element_ty == tl.float16:
                inverse_j = load_inverse_norm(columns, b, o_j, m_j)
                b_z = (b_z.to(tl.float32) * inverse_j[:, None]).to(b_z.dtype)
            b_raw = tl.dot(b_g, b_z, b_raw, input_precision=PRECISION)
        if final is not None:
            for first_tile in range(0, radial_tiles, 16):
                o_t = first_tile + tl.arange(0, 16)
                p_parts = final.radial + (direction * radial_tiles + o_t)[:, None] * strip + o_i[None, :]
                radial += tl.sum(tl.load(p_parts, mask=(o_t < radial_tiles)[:, None], other=0.0), 0)  # [16, BM]
    if p_g.dtype.element_ty == tl.float16:
        b_raw = b_raw * (1.0 / FLOAT16_SCALE)

    if final is not None:
        tau = temperature(scalars)
        scale = tl.load(final.grad).to(tl.float32) / (columns.n * tau)
        m_i = o_i < columns.n
        b_z = load_rows(pick(columns.embeddings, a), o_i, m_i, row_stride(columns, a), o_d, m_d).to(tl.float32)
        inverse_i = load_inverse_norm(columns, a, o_i, m_i)
        # A clamped norm is a constant: nothing flows through it.
        along = tl.where(inverse_i < 0.9999 / EPSILON, radial * inverse_i, 0.0)
        b_out = (b_raw - b_z * along[:, None]) * (scale * inverse_i)[:, None]
        store_rows(pick(final.gradients, a), b_out, o_i, m_i, d, o_d, m_d)
        if (i_d == 0) & (i_row == 0) & (a == 0):
            temperature_gradient = 0.0
            if scalars.temperature is not None:
                # Each pair's two directions have the same sum: half of all. One program adds, many scalars at a time.
                total = tl.zeros([4096], tl.float32)
                count = 2 * P * radial_tiles * strip
                for at in range(0, count, 4096):
                    o = at + tl.arange(0, 4096)
                    total += tl.load(final.radial + o, mask=o < count, other=0.0)
                temperature_gradient = -0.5 * scale / tau * tl.sum(total)
            tl.store(final.temperature_gradient, temperature_gradient)
    else:
        p_out = p_raw + ((split * M + a) * strip + o_i).to(tl.int64)[:, None] * d + o_d[None, :]
        tl.store(p_out, b_raw, mask=m_d[None, :] & (o_i < strip)[:, None])


class Plan(NamedTuple):
    """How much of the backward pass is alive at a time."""

    strip: int  # rows
    width: int  # of G: n_columns, padded
    splits: int  # of the products' sums over columns


def plan(rows: Side, columns: Side, tile: dict[str, int], product: dict[str, int]) -> Plan:
    """Strips high enough to fill the machine, low enough for O(n) memory.

    Args:
        tile, product: The tiles of the two kernels.
    """
    width = triton.cdiv(columns.n, max(tile["BN"], product["BK"])) * max(tile["BN"], product["BK"])
    row_bytes = 2 * rows.pairs * width * rows.embeddings[0].element_size()
    step = max(tile["BM"], product["BM"])
    strip = triton.cdiv(min(max(STRIP_BYTES // row_bytes, MIN_STRIP), rows.n), step) * step
    programs = rows.modalities * triton.cdiv(strip, product["BM"]) * triton.cdiv(rows.d, product["BN"])
    blocks = triton.cdiv(columns.n, product["BK"])
    wanted = triton.cdiv(PROGRAMS, programs) if programs < PROGRAMS // 2 else 1
    return Plan(strip, width, max(1, min(wanted, 8, blocks // 8)))


class _Work(NamedTuple):
    """What the two launches of a strip share."""

    g: Tensor  # (2P, strip, width), of the embeddings' dtype
    radial: Tensor  # (2P, column tiles, strip), float32
    splits: int
    ordered: bool  # labels ascend, those of rows and those of columns
    tile: dict[str, int]
    product: dict[str, int]


def _allocate(rows: Side, columns: Side, ordered: bool = False) -> _Work:
    tile, product = (call.tile(name, rows, columns) for name in ("gradient_tile", "gradient_product"))
    strip, width, splits = plan(rows, columns, tile, product)
    g = rows.embeddings[0].new_empty(2 * rows.pairs, strip, width)
    radial = rows.inverse_norm.new_empty(2 * rows.pairs, width // tile["BN"], strip)
    return _Work(g, radial, splits, ordered, tile, product)


def _write_g(rows: Side, columns: Side, scalars: Scalars, diagonal: int, start: int, work: _Work) -> None:
    """Launches :func:`_gradient_tile_kernel` on the strip that begins at row ``start``."""
    directions, strip, width = work.g.shape
    _gradient_tile_kernel[width // work.tile["BN"], strip // work.tile["BM"], directions](
        rows=rows,
        columns=columns,
        scalars=scalars,
        p_g=work.g,
        p_radial=work.radial,
        start=start,
        d=rows.d,
        diagonal=diagonal,
        strip=strip,
        width=width,
        EVEN=rows.d % work.tile["BK"] == 0,
        PRECISION=call.precision(rows.embeddings[0]),
        SORTED=work.ordered,
        BOUND=call.bound(rows, columns, scalars),
        **work.tile,
    )


def _multiply(columns: Side, scalars: Scalars, work: _Work, out: Tensor | Final) -> None:
    """Launches :func:`_gradient_product_kernel`; ``out``: ``raw`` (splits, M, strip, d), or a square's gradients."""
    _, strip, width = work.g.shape
    final = isinstance(out, Final)
    splits = 1 if final else work.splits
    grid = (triton.cdiv(columns.d, work.product["BN"]), strip // work.product["BM"], columns.modalities * splits)
    _gradient_product_kernel[grid](
        columns=columns,
        scalars=scalars,
        p_g=work.g,
        p_raw=None if final else out,
        final=out if final else None,
        d=columns.d,
        strip=strip,
        width=width,
        radial_tiles=work.radial.shape[1],
        blocks=triton.cdiv(triton.cdiv(columns.n, work.product["BK"]), splits),
        PRECISION=call.precision(columns.embeddings[0]),
        **work.product,
    )


def gradients(
    rows: Side, columns: Side, scalars: Scalars, diagonal: int
) -> Iterator[tuple[slice, list[Tensor], Tensor]]:
    """Strip after strip of the rows of a rectangle that has at least one row and column.

    Args:
        rows, columns: With their global ``lse``.
        diagonal: Row i and column i + diagonal are the same example.

    Yields:
        Which rows; ``raw``, M tensors (rows, d), and ``radial``, (M, rows), both float32.
    """
    work = _allocate(rows, columns)
    modalities, pairs, strip = rows.modalities, rows.pairs, work.g.shape[1]
    raw = work.radial.new_empty(work.splits, modalities, strip, rows.d)
    forward = [(a, b) for a in range(modalities) for b in range(a + 1, modalities)]
    for start in range(0, rows.n, strip):
        _write_g(rows, columns, scalars, diagonal, start, work)
        _multiply(columns, scalars, work, raw)
        count = min(strip, rows.n - start)
        by_direction = work.radial[:, :, :count].sum(1)
        radial = by_direction.new_zeros(modalities, count)
        for pair, (a, b) in enumerate(forward):
            radial[a] += by_direction[pair]
            radial[b] += by_direction[pairs + pair]
        yield slice(start, start + count), list(raw[:, :, :count].sum(0).unbind(0)), radial


def gradients_of_large_square(
    rows: Side, scalars: Scalars, grad: Tensor, order: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the loss of rows against themselves, three launches a strip.

    Args:
        rows: With ``lse``; their labels ascend where ``order`` is given.
        grad: The loss's gradient, 0-dim.
        order: (n,), int64: row i of the gradients belongs at ``order[i]``.

    Returns:
        As :func:`gradients_of_square`.
    """
    work = _allocate(rows, rows, ordered=order is not None)
    strip = work.g.shape[1]
    raw = work.radial.new_empty(work.splits, rows.modalities, strip, rows.d)
    out = [z.new_empty(z.shape) for z in rows.embeddings]
    total = work.radial.new_empty(rows.modalities, triton.cdiv(rows.n, finish.BM))
    for start in range(0, rows.n, strip):
        _write_g(rows, rows, scalars, 0, start, work)
        _multiply(rows, scalars, work, raw)
        finish.finish(rows, scalars, grad, order, start, raw, work.radial, out, total)
    if scalars.temperature is None:
        return out, total.new_zeros(())
    tau = scalars.temperature.float()  # as kernels take it; the gradient is float32
    return out, total.sum() * (-0.5 * grad / (rows.n * tau * tau))


def gradients_of_square(rows: Side, scalars: Scalars, grad: Tensor) -> tuple[list[Tensor], Tensor]:
    """Gradients of the loss of rows against themselves in two launches, for as few rows as one strip holds.

    Args:
        rows: With ``lse``.
        grad: The loss's gradient, 0-dim.

    Returns:
        M gradients of the embeddings, in their dtype; the temperature's, 0-dim, float32, 0 where it is fixed.
    """
    work = _allocate(rows, rows)
    assert work.g.shape[1] >= rows.n
    out = tuple(z.new_empty(z.shape) for z in rows.embeddings)
    final = Final(out, rows.inverse_norm.new_empty(()), grad, work.radial)
    _write_g(rows, rows, scalars, 0, 0, work)
    _multiply(rows, scalars, work, final)
    return list(out), final.temperature_gradient
