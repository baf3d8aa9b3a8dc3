"""From a strip of raw gradients to the embeddings' gradients (:mod:`cmsbert_fast.kernels.contrastive.gradients`).

Sums the splits of ``raw`` and the parts of ``radial``, goes through the normalisation and writes the rows where their
embeddings came from. One launch a strip, where PyTorch would take some forty.
"""

import triton
import triton.language as tl
from torch import Tensor

from cmsbert_fast.kernels.common import load_rows, store_rows
from cmsbert_fast.kernels.contrastive.call import COUNTS, Scalars, Side
from cmsbert_fast.kernels.contrastive.primitives import (
    EPSILON,
    load_inverse_norm,
    pick,
    row_stride,
    temperature,
)

BM, BD = 16, 64


@triton.jit(do_not_specialize=COUNTS)
def finish_kernel(
    rows: Side,
    scalars: Scalars,
    gradients,  # M tensors (n, d), contiguous
    p_order,  # (n,), where each row came from; None: its own place
    p_raw,  # (splits, M, strip, d)
    p_radial,  # (2P, column tiles, strip)
    p_total,  # (M, row blocks of all strips): sums of radial, for the temperature
    p_grad,  # of the loss, 0-dim
    start,  # the strip's first row
    d,
    strip,
    radial_tiles,
    splits,
    blocks,  # row blocks of all strips
    BM: tl.constexpr,
    BD: tl.constexpr,
):
    """BM rows of one modality. Grid (cdiv(strip, BM), M)."""
    M: tl.constexpr = len(rows.embeddings)
    P: tl.constexpr = M * (M - 1) // 2
    i_row, a = tl.program_id(0), tl.program_id(1)
    o_strip = i_row * BM + tl.arange(0, BM)
    o_i = start + o_strip
    m_i = (o_i < rows.n) & (o_strip < strip)
    radial = tl.zeros([BM], tl.float32)
    for other in tl.static_range(M - 1):
        b = tl.where(other < a, other, other + 1)
        direction = a + b - 1 + tl.where(a < b, 0, P)
        for first in range(0, radial_tiles, 16):
            o_t = first + tl.arange(0, 16)
            p_parts = p_radial + (direction * radial_tiles + o_t).to(tl.int64)[:, None] * strip + o_strip[None, :]
            m_parts = (o_t < radial_tiles)[:, None] & m_i[None, :]
            radial += tl.sum(tl.load(p_parts, mask=m_parts, other=0.0), 0)  # [16, BM]
    p_total += a.to(tl.int64) * blocks + (start // BM + i_row)
    tl.store(p_total, tl.sum(radial), mask=start + i_row * BM < rows.n)

    scale = tl.load(p_grad).to(tl.float32) / (rows.n * temperature(scalars))
    inverse_i = load_inverse_norm(rows, a, o_i, m_i)
    # A clamped norm is a constant: nothing flows through it.
    along = tl.where(inverse_i < 0.9999 / EPSILON, radial * inverse_i, 0.0)
    o_out = o_i.to(tl.int64)
    if p_order is not None:
        o_out = tl.load(p_order + o_i, mask=m_i, other=0)
    for i_d in range(0, d, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = o_d < d
        b_raw = tl.zeros([BM, BD], tl.float32)
        for split in range(splits):
            p_part = p_raw + (split * M + a).to(tl.int64) * strip * d
            b_raw += load_rows(p_part, o_strip, m_i, d, o_d, m_d)
        b_z = load_rows(pick(rows.embeddings, a), o_i, m_i, row_stride(rows, a), o_d, m_d).to(tl.float32)
        b_out = (b_raw - b_z * along[:, None]) * (scale * inverse_i)[:, None]
        store_rows(pick(gradients, a), b_out, o_out, m_i, d, o_d, m_d)


def finish(
    rows: Side,
    scalars: Scalars,
    grad: Tensor,
    order: Tensor | None,
    start: int,
    raw: Tensor,
    radial: Tensor,
    out: list[Tensor],
    total: Tensor,
) -> None:
    """Launches :func:`finish_kernel` on a strip; ``total`` is (M, cdiv(n, BM))."""
    splits, modalities, strip, d = raw.shape
    assert start % BM == 0
    finish_kernel[triton.cdiv(min(strip, rows.n - start), BM), modalities](
        rows=rows,
        scalars=scalars,
        gradients=tuple(out),
        p_order=order,
        p_raw=raw,
        p_radial=radial,
        p_total=total,
        p_grad=grad,
        start=start,
        d=d,
        strip=strip,
        radial_tiles=radial.shape[1],
        splits=splits,
        blocks=total.shape[1],
        BM=BM,
        BD=BD,
        num_warps=4,
    )
