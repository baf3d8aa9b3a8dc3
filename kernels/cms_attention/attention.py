"""Attention over q + a, k + a and v + a (Eq. 5-7), forward and backward, for sequences of any length.

::

    s   = (q + a)(k + a)^T scale      P = exp(s - lse)      z = P (v + a)
    dP  = dz (v + a)^T                ds = P * (dP - delta)      delta_i = <z_i, dz_i>
    dq  = ds (k + a) scale            dk = ds^T (q + a) scale    dv = P^T dz

Forward walks over keys with a running maximum and sum, in powers of 2. Backward recomputes P from the log-sum-exp:
one launch over tiles of queries gives dq and delta, one over tiles of keys gives dk, dv and da. Under dropout
z, dv and dP take the kept probabilities, scaled by 1 / (1 - p).
"""

import triton
import triton.language as tl

from cmsbert_fast.kernels.cms_attention.arguments import COUNTS
from cmsbert_fast.kernels.common import (
    LOG2_E,
    dot,
    extent,
    first_row,
    keep,
    load_rows,
    share_of_tail,
    store_rows,
    valid,
    zero_rows,
    zero_vector,
)


@triton.jit
def head_rows(x, cu, i_b, i_start, i_h):
    """Pointer to the first row of head ``i_h`` of sequence ``i_b``; x is ``Heads``."""
    return first_row(x.data, cu, i_b, i_start, x.s_b, x.s_n) + i_h.to(tl.int64) * x.s_h


@triton.jit
def _shifted(x, shift, o_n, m_n, s_n, s_shift, o_d, m_d):
    """A tile of q', k' or v' = x + a; x alone where no modality is present."""
    b_x = load_rows(x, o_n, m_n, s_n, o_d, m_d)
    if shift is not None:
        b_x = (b_x.to(tl.float32) + load_rows(shift, o_n, m_n, s_shift, o_d, m_d).to(tl.float32)).to(x.dtype.element_ty)
    return b_x


@triton.jit
def attend(
    q, k, v, sequences, dropout, shift, out, lse, i_b, i_h, i_m,
    n_rows, length, n_heads, head_size, scale, threshold,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attention of the BLOCK_M queries from ``i_m`` on over q + a, k + a, v + a; writes z and the log-sum-exp."""
    i_start, n = extent(sequences.cu, i_b, length)
    i_h64 = i_h.to(tl.int64)
    s_out = n_heads * head_size
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < head_size
    p_q = head_rows(q, sequences.cu, i_b, i_start, i_h)
    p_k = head_rows(k, sequences.cu, i_b, i_start, i_h)
    p_v = head_rows(v, sequences.cu, i_b, i_start, i_h)
    if shift is not None:
        shift = shift + i_start * s_out + i_h64 * head_size
    o_m = i_m + tl.arange(0, BLOCK_M)
    m_m = valid(sequences.mask, i_b, o_m, n, length)
    b_q = _shifted(p_q, shift, o_m, m_m, q.s_n, s_out, o_d, m_d)  # [BLOCK_M, BLOCK_D]
    b_z = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    b_max = tl.full([BLOCK_M], -float("inf"), dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    for i_n in range(0, n, BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = valid(sequences.mask, i_b, o_n, n, length)
        b_k = _shifted(p_k, shift, o_n, m_n, k.s_n, s_out, o_d, m_d)  # [BLOCK_N, BLOCK_D]
        b_s = dot(b_q, tl.trans(b_k), None, PRECISION) * (scale * LOG2_E)  # [BLOCK_M, BLOCK_N]
        b_s = tl.where(m_n[None, :], b_s, -float("inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_safe = tl.where(b_new == -float("inf"), 0.0, b_new)  # no valid key so far
        b_old = tl.exp2(b_max - b_safe)
        b_s = tl.exp2(b_s - b_safe[:, None])
        b_sum = b_sum * b_old + tl.sum(b_s, 1)
        if dropout is not None:
            b_keep = keep(tl.load(dropout.seed), i_b, i_h, o_m[:, None], o_n[None, :], threshold)
            b_s = tl.where(b_keep, b_s * dropout.keep_scale, 0.0)
        b_v = _shifted(p_v, shift, o_n, m_n, v.s_n, s_out, o_d, m_d)  # [BLOCK_N, BLOCK_D]
        b_z = dot(b_s.to(b_v.dtype), b_v, b_z * b_old[:, None], PRECISION)
        b_max = b_new
    b_sum = tl.where(m_m, b_sum, 1.0)
    b_z = tl.where(m_m[:, None], b_z / b_sum[:, None], 0.0)
    store_rows(out + i_start * s_out + i_h64 * head_size, b_z, o_m, o_m < n, s_out, o_d, m_d)
    b_lse = tl.where(m_m, b_max + tl.log2(b_sum), 0.0)
    tl.store(lse + i_h64 * n_rows + i_start + o_m, b_lse, mask=o_m < n)


@triton.jit(do_not_specialize=COUNTS)
def attention_forward_kernel(
    shift, out, lse, sequences, dropout, q, k, v,
    n_batch, n_rows, n_tiles, length, n_heads, head_size, scale, threshold,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attention of BLOCK_M queries over q + a, k + a, v + a. Grid (B n_tiles, H).

    ``lse`` (H, rows) gets the log-sum-exp to base 2.
    """
    i_b, i_m, i_h = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles * BLOCK_M, tl.program_id(1)
    _, n = extent(sequences.cu, i_b, length)
    if i_m < n:
        attend(
            q, k, v, sequences, dropout, shift, out, lse, i_b, i_h, i_m,
            n_rows, length, n_heads, head_size, scale, threshold, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip

    if sequences.cu is not None:
        i_first, i_last = share_of_tail(sequences.cu, n_batch, n_rows, tl.program_id(0), tl.num_programs(0))
        s_out = n_heads * head_size
        zero_rows(out + i_h.to(tl.int64) * head_size, s_out, i_first, i_last, head_size, BLOCK_M, BLOCK_D)
        zero_vector(lse + i_h.to(tl.int64) * n_rows, i_first, i_last, BLOCK_M)


@triton.jit(do_not_specialize=COUNTS)
def attention_backward_query_kernel(
    shift, out, lse, sequences, dropout, dq, delta, q, k, v, d_out,
    n_batch, n_rows, n_tiles, length, n_heads, head_size, scale, threshold,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq and delta = <z, dz> (H, rows) of BLOCK_M queries. Grid (B n_tiles, H)."""
    i_b, i_m, i_h = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles * BLOCK_M, tl.program_id(1)
    i_start, n = extent(sequences.cu, i_b, length)
    i_h64 = i_h.to(tl.int64)
    s_out = n_heads * head_size
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < head_size
    if i_m < n:
        p_q = head_rows(q, sequences.cu, i_b, i_start, i_h)
        p_k = head_rows(k, sequences.cu, i_b, i_start, i_h)
        p_v = head_rows(v, sequences.cu, i_b, i_start, i_h)
        p_do = head_rows(d_out, sequences.cu, i_b, i_start, i_h)
        i_out = i_start * s_out + i_h64 * head_size
        if shift is not None:
            shift = shift + i_out
        o_m = i_m + tl.arange(0, BLOCK_M)
        m_m = valid(sequences.mask, i_b, o_m, n, length)
        b_q = _shifted(p_q, shift, o_m, m_m, q.s_n, s_out, o_d, m_d)  # [BLOCK_M, BLOCK_D]
        b_do = load_rows(p_do, o_m, m_m, d_out.s_n, o_d, m_d).to(b_q.dtype)  # [BLOCK_M, BLOCK_D]
        b_z = load_rows(out + i_out, o_m, m_m, s_out, o_d, m_d)
        b_delta = tl.sum(b_do.to(tl.float32) * b_z.to(tl.float32), 1)  # [BLOCK_M]
        i_lse = i_h64 * n_rows + i_start
        b_lse = tl.load(lse + i_lse + o_m, mask=m_m, other=0.0)
        b_dq = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        for i_n in range(0, n, BLOCK_N):
            o_n = i_n + tl.arange(0, BLOCK_N)
            m_n = valid(sequences.mask, i_b, o_n, n, length)
            b_k = _shifted(p_k, shift, o_n, m_n, k.s_n, s_out, o_d, m_d)  # [BLOCK_N, BLOCK_D]
            b_s = dot(b_q, tl.trans(b_k), None, PRECISION) * (scale * LOG2_E)  # [BLOCK_M, BLOCK_N]
            b_s = tl.where(m_m[:, None] & m_n[None, :], tl.exp2(b_s - b_lse[:, None]), 0.0)
            b_v = _shifted(p_v, shift, o_n, m_n, v.s_n, s_out, o_d, m_d)  # [BLOCK_N, BLOCK_D]
            b_ds = dot(b_do, tl.trans(b_v), None, PRECISION)
            if dropout is not None:
                b_keep = keep(tl.load(dropout.seed), i_b, i_h, o_m[:, None], o_n[None, :], threshold)
                b_ds = tl.where(b_keep, b_ds * dropout.keep_scale, 0.0)
            b_ds = (b_s * (b_ds - b_delta[:, None])).to(b_k.dtype)
            b_dq = dot(b_ds, b_k, b_dq, PRECISION)
        store_rows(dq + i_out, b_dq * scale, o_m, o_m < n, s_out, o_d, m_d)
        tl.store(delta + i_lse + o_m, b_delta, mask=o_m < n)

    if sequences.cu is not None:
        i_first, i_last = share_of_tail(sequences.cu, n_batch, n_rows, tl.program_id(0), tl.num_programs(0))
        zero_rows(dq + i_h64 * head_size, s_out, i_first, i_last, head_size, BLOCK_M, BLOCK_D)


@triton.jit(do_not_specialize=COUNTS)
def attention_backward_key_kernel(
    shift, lse, delta, dq, dk, dv, d_shift, sequences, dropout, q, k, v, d_out,
    n_batch, n_rows, n_tiles, length, n_heads, head_size, scale, threshold,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dk, dv and, with dq at hand, da = dq + dk + dv of BLOCK_N keys. Grid (B n_tiles, H)."""
    i_b, i_n, i_h = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles * BLOCK_N, tl.program_id(1)
    i_start, n = extent(sequences.cu, i_b, length)
    i_h64 = i_h.to(tl.int64)
    s_out = n_heads * head_size
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < head_size
    if i_n < n:
        p_q = head_rows(q, sequences.cu, i_b, i_start, i_h)
        p_k = head_rows(k, sequences.cu, i_b, i_start, i_h)
        p_v = head_rows(v, sequences.cu, i_b, i_start, i_h)
        p_do = head_rows(d_out, sequences.cu, i_b, i_start, i_h)
        i_out = i_start * s_out + i_h64 * head_size
        if shift is not None:
            shift = shift + i_out
        i_lse = i_h64 * n_rows + i_start
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = valid(sequences.mask, i_b, o_n, n, length)
        b_k = _shifted(p_k, shift, o_n, m_n, k.s_n, s_out, o_d, m_d)  # [BLOCK_N, BLOCK_D]
        b_v = _shifted(p_v, shift, o_n, m_n, v.s_n, s_out, o_d, m_d)  # [BLOCK_N, BLOCK_D]
        b_dk = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
        b_dv = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
        for i_m in range(0, n, BLOCK_M):
            o_m = i_m + tl.arange(0, BLOCK_M)
            m_m = valid(sequences.mask, i_b, o_m, n, length)
            b_q = _shifted(p_q, shift, o_m, m_m, q.s_n, s_out, o_d, m_d)  # [BLOCK_M, BLOCK_D]
            b_do = load_rows(p_do, o_m, m_m, d_out.s_n, o_d, m_d).to(b_q.dtype)  # [BLOCK_M, BLOCK_D]
            b_lse = tl.load(lse + i_lse + o_m, mask=m_m, other=0.0)
            b_delta = tl.load(delta + i_lse + o_m, mask=m_m, other=0.0)
            # Transposed, so that dv and dk take the probabilities as they come.
            b_s = dot(b_k, tl.trans(b_q), None, PRECISION) * (scale * LOG2_E)  # [BLOCK_N, BLOCK_M]
            b_s = tl.where(m_n[:, None] & m_m[None, :], tl.exp2(b_s - b_lse[None, :]), 0.0)
            b_ds = dot(b_v, tl.trans(b_do), None, PRECISION)
            if dropout is not None:
                b_keep = keep(tl.load(dropout.seed), i_b, i_h, o_m[None, :], o_n[:, None], threshold)
                b_kept = tl.where(b_keep, b_s * dropout.keep_scale, 0.0).to(b_do.dtype)
                b_ds = tl.where(b_keep, b_ds * dropout.keep_scale, 0.0)
            else:
                b_kept = b_s.to(b_do.dtype)
            b_dv = dot(b_kept, b_do, b_dv, PRECISION)
            b_ds = (b_s * (b_ds - b_delta[None, :])).to(b_q.dtype)
            b_dk = dot(b_ds, b_q, b_dk, PRECISION)
        b_dk *= scale
        m_row = o_n < n
        store_rows(dk + i_out, b_dk, o_n, m_row, s_out, o_d, m_d)
        store_rows(dv + i_out, b_dv, o_n, m_row, s_out, o_d, m_d)
        if d_shift is not None:
            b_dq = load_rows(dq + i_out, o_n, m_row, s_out, o_d, m_d).to(tl.float32)
            store_rows(d_shift + i_out, b_dq + b_dk + b_dv, o_n, m_row, s_out, o_d, m_d)

    if sequences.cu is not None:
        i_first, i_last = share_of_tail(sequences.cu, n_batch, n_rows, tl.program_id(0), tl.num_programs(0))
        zero_rows(dk + i_h64 * head_size, s_out, i_first, i_last, head_size, BLOCK_N, BLOCK_D)
        zero_rows(dv + i_h64 * head_size, s_out, i_first, i_last, head_size, BLOCK_N, BLOCK_D)
        if d_shift is not None:
            zero_rows(d_shift + i_h64 * head_size, s_out, i_first, i_last, head_size, BLOCK_N, BLOCK_D)
