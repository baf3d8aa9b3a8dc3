"""Device functions of the contrastive kernels, inlined into them.

Names: those of :mod:`cmsbert_fast.kernels.common`; ``y`` are labels, ``w`` weights (1 - beta) / |S|, both of a block of
rows (``_i``) or columns (``_j``). Arguments ``rows``, ``columns`` and ``scalars``: see
:mod:`cmsbert_fast.kernels.contrastive.call`.
"""

import triton
import triton.language as tl

from cmsbert_fast.kernels.contrastive import call

EPSILON = tl.constexpr(1e-12)  # torch.nn.functional.normalize's
LARGEST_BOUND = tl.constexpr(call.LARGEST_BOUND)


@triton.jit
def pick(pointers, index):
    """One of a tuple of pointers, by an index that is known only at run time."""
    picked = pointers[0]
    for i in tl.static_range(1, len(pointers)):
        if index == i:
            picked = pointers[i]
    return picked


@triton.jit
def row_stride(side, modality):
    """From one row of a modality to the next (int64)."""
    M: tl.constexpr = len(side.strides)
    stride = side.strides[M - 1]
    # From the last to the first: the other way round statistics takes 28 registers more on sm_86.
    for i in tl.static_range(2, M + 1):
        stride = tl.where(modality == M - i, side.strides[M - i], stride)  # Triton may have made constants of some
    return stride.to(tl.int64)


@triton.jit
def operand(side, modality, o):
    """Rows ``o`` of a modality: its first element and row stride, ``o`` (int64), and which of them exist."""
    return pick(side.embeddings, modality), row_stride(side, modality), o.to(tl.int64), o < side.n


@triton.jit
def load_inverse_norm(side, modality, o, m):
    """1 / |z| of rows ``o``; 0 where masked."""
    return tl.load(side.inverse_norm + modality.to(tl.int64) * side.norm_stride + o, mask=m, other=0.0)


@triton.jit
def inverse_norm(squared):
    """1 / max(|z|, EPSILON) from squared norms."""
    return 1.0 / tl.maximum(tl.sqrt(squared), EPSILON)


@triton.jit
def temperature(scalars):
    """tau, a number or behind a pointer."""
    if scalars.temperature is None:
        return scalars.fixed_temperature
    else:
        return tl.load(scalars.temperature).to(tl.float32)


@triton.jit
def is_bounded(inverse_tau, BOUND: tl.constexpr):
    """Whether exp(s - 1 / tau) can be taken without a maximum; ``BOUND`` as :func:`call.bound` gives it.

    No similarity exceeds 1 / tau, and from tau = 0.025 on none is so far below it that its exponential is lost.
    """
    if BOUND is None:
        return (inverse_tau > 0) & (inverse_tau <= LARGEST_BOUND)
    else:
        return BOUND


@triton.jit
def meets_diagonal(first_i, first_j, diagonal, BM: tl.constexpr, BN: tl.constexpr):
    """Whether a tile holds pairs of an example with itself: row i and column i + ``diagonal``."""
    return (first_i + diagonal < first_j + BN) & (first_j < first_i + diagonal + BM)


@triton.jit
def may_be_related(rows, i_first, i_last, columns, j_first, j_last, reach, SORTED: tl.constexpr):
    """Whether any label of rows [first, last) may be related to one of the columns; SORTED: labels ascend."""
    if SORTED:
        y_i = load_labels(rows.labels + i_first, i_first < rows.n, reach)
        y_i_last = load_labels(rows.labels + i_last - 1, i_last <= rows.n, reach)
        y_j = load_labels(columns.labels + j_first, j_first < columns.n, reach)
        y_j_last = load_labels(columns.labels + j_last - 1, j_last <= columns.n, reach)
        # NaN, which is last, excludes nothing.
        return ((y_j - y_i_last > reach) | (y_i - y_j_last > reach)) == 0
    else:
        return True


@triton.jit
def at_most_0(x):
    """Unlike a minimum, keeps NaN on a GPU."""
    return tl.where(x > 0, 0.0, x)


@triton.jit
def products(a, b, d, BK: tl.constexpr, EVEN: tl.constexpr, NORMS: tl.constexpr, PRECISION: tl.constexpr):
    """<a_i, b_j> of a tile in float32; with NORMS also the squared norms of its rows and columns.

    ``a`` and ``b`` are of :func:`operand`. EVEN: BK divides d.
    """
    p_a, s_a, o_a, m_a = a
    p_b, s_b, o_b, m_b = b
    BM: tl.constexpr = o_a.shape[0]
    BN: tl.constexpr = o_b.shape[0]
    o_k = tl.arange(0, BK)
    # One sum of offsets: pointers to rows first, then along d, took 70 registers more in statistics on sm_100.
    p_a += o_a[:, None] * s_a + o_k[None, :]
    p_b += o_b[None, :] * s_b + o_k[:, None]
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
def load_labels(p, m, reach):
    """Labels; scores of different signs are moved apart by more than ``reach``, so that one comparison decides S_i."""
    y = tl.load(p, mask=m, other=0)
    if y.dtype.is_floating():
        y += tl.where(y > 0, 2.0 * reach, 0.0) - tl.where(y < 0, 2.0 * reach, 0.0)
    return y


@triton.jit
def related(y_i, y_j, reach):
    """Whether j is in S_i (Eq. 23), j = i included; false for NaN: [len(y_i), len(y_j)]."""
    if y_i.dtype.is_floating():
        return tl.abs(y_i[:, None] - y_j[None, :]) <= reach
    else:
        return y_i[:, None] == y_j[None, :]


@triton.jit
def weight(rows, y, scalars, B: tl.constexpr):
    """(1 - beta) / |S_i| of rows with labels ``y``, each compared with all, B at a time: for small n only."""
    count = tl.zeros([y.shape[0]], tl.float32)
    for start in range(0, rows.n, B):
        o = start + tl.arange(0, B)
        hit = related(y, load_labels(rows.labels + o, o < rows.n, scalars.reach), scalars.reach)
        count += tl.sum((hit & (o < rows.n)[None, :]).to(tl.float32), 1)
    others = count - 1.0  # |S_i| excludes i
    return tl.where(others > 0, (1.0 - scalars.smoothing) / tl.maximum(others, 1.0), 0.0)


@triton.jit
def own_target(w, scalars):
    """2 t_ii of rows with weights ``w``, less what comparing a label with itself contributes."""
    return 2.0 * tl.where(w > 0, scalars.smoothing, 1.0) - 2.0 * w
