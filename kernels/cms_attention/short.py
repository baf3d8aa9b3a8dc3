"""Sequences that fit into one tile (Eq. 1-7): one launch forward, two backward. Launch plan: the package's docstring.

Programs take the lowest tile that holds their sequence. Attention: a program serves one sequence and HEADS heads, and
holds m, a, q, k, v and the probabilities in registers. Gates, backward: one program for a sequence and a modality.
"""

import triton
import triton.language as tl

from cmsbert_fast.kernels.cms_attention.arguments import COUNTS
from cmsbert_fast.kernels.cms_attention.gates import (
    count_frames,
    gate,
    gate_slope,
    load_token_gates,
    mean_columns,
    mean_frame,
    shift_tile,
)
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
def serves(n, i: tl.constexpr, BLOCKS_N: tl.constexpr):
    """Whether BLOCKS_N[i] is the lowest tile that holds n tokens; the last one takes what is left."""
    b_serves = n >= 0
    if i > 0:
        b_serves = n > BLOCKS_N[i - 1]
    if i + 1 < len(BLOCKS_N):
        b_serves = b_serves & (n <= BLOCKS_N[i])
    return b_serves


@triton.jit
def _forward(
    i_b, i_g, i_start, n, q, k, v, sequences, sources, dropout, out, mean, length, length_v, length_a,
    n_heads, head_size, s_mean, scale, threshold,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, HEADS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCKS_X: tl.constexpr,
):  # fmt: skip
    """:func:`short_forward_kernel` for a sequence of at most BLOCK_N tokens."""
    o_n = tl.arange(0, BLOCK_N)
    m_n = valid(sequences.mask, i_b, o_n, n, length)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < head_size

    # The mean frames are the same for all heads: once a program.
    b_means = ()
    lengths = (length_v, length_a)
    for i in tl.static_range(2):
        source = sources[i]
        b_m = 0  # never read
        if source.frames is not None:
            o_x = tl.arange(0, BLOCKS_X[i])
            b_p = load_token_gates(source, sequences.cu, i_b, i_start, o_n, m_n)
            b_m = mean_frame(
                b_p, m_n, source, i_b, lengths[i], o_x, ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCKS_X[i]
            )  # [BLOCK_N, BLOCKS_X[i]]
            if i_g == 0:
                p_mean = mean + i_start * s_mean + source.i_mean
                store_rows(p_mean, b_m, o_n, o_n < n, s_mean, o_x, o_x < mean_columns(sources, i, s_mean))
        b_means = b_means + (b_m,)

    p_q = first_row(q.data, sequences.cu, i_b, i_start, q.s_b, q.s_n)
    p_k = first_row(k.data, sequences.cu, i_b, i_start, k.s_b, k.s_n)
    p_v = first_row(v.data, sequences.cu, i_b, i_start, v.s_b, v.s_n)
    s_out = n_heads * head_size
    for i_head in range(tl.minimum(HEADS, n_heads - i_g * HEADS)):
        i_h = i_g * HEADS + i_head
        i_h64 = i_h.to(tl.int64)
        i_row = i_h64 * head_size  # of the weights
        b_shift = shift_tile(b_means, sources, i_row, o_d, m_d, PRECISION, BLOCK_N, BLOCK_D, BLOCKS_X)
        b_q = load_rows(p_q + i_h64 * q.s_h, o_n, m_n, q.s_n, o_d, m_d)  # [BLOCK_N, BLOCK_D]
        b_q = (b_q + b_shift).to(b_q.dtype)
        b_k = load_rows(p_k + i_h64 * k.s_h, o_n, m_n, k.s_n, o_d, m_d)
        b_k = (b_k + b_shift).to(b_k.dtype)
        b_s = dot(b_q, tl.trans(b_k), None, PRECISION) * (scale * LOG2_E)  # [BLOCK_N, BLOCK_N]
        b_s = tl.where(m_n[None, :], b_s, -float("inf"))
        b_s = tl.exp2(b_s - tl.max(b_s, 1)[:, None])
        b_sum = tl.sum(b_s, 1)
        if dropout is not None:
            b_keep = keep(tl.load(dropout.seed), i_b, i_h, o_n[:, None], o_n[None, :], threshold)
            b_s = tl.where(b_keep, b_s * dropout.keep_scale, 0.0)
        b_v = load_rows(p_v + i_h64 * v.s_h, o_n, m_n, v.s_n, o_d, m_d)
        b_v = (b_v + b_shift).to(b_v.dtype)
        b_z = dot(b_s.to(b_v.dtype), b_v, None, PRECISION) / b_sum[:, None]
        b_z = tl.where(m_n[:, None], b_z, 0.0)
        store_rows(out + i_start * s_out + i_row, b_z, o_n, o_n < n, s_out, o_d, m_d)


@triton.jit(do_not_specialize=COUNTS)
def short_forward_kernel(
    q, k, v, sequences, sources, dropout, out, mean, n_batch, n_rows, length, length_v, length_a,
    n_heads, head_size, s_mean, scale, threshold,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, HEADS: tl.constexpr, BLOCKS_N: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCKS_X: tl.constexpr,
):  # fmt: skip
    """Gates, mean frame, shift and attention of one sequence and HEADS heads. Grid (B, cdiv(H, HEADS))."""
    i_b, i_g = tl.program_id(0), tl.program_id(1)
    i_start, n = extent(sequences.cu, i_b, length)
    for i in tl.static_range(len(BLOCKS_N)):
        if serves(n, i, BLOCKS_N):
            _forward(
                i_b, i_g, i_start, n, q, k, v, sequences, sources, dropout, out, mean, length, length_v, length_a,
                n_heads, head_size, s_mean, scale, threshold,
                ACTIVATION, PRECISION, HEADS, BLOCKS_N[i], min(BLOCK_F, BLOCKS_N[i]), BLOCK_D, BLOCKS_X,
            )  # fmt: skip

    if sequences.cu is not None:
        BLOCK_N: tl.constexpr = BLOCKS_N[0]
        s_out = n_heads * head_size
        i_first, i_last = share_of_tail(sequences.cu, n_batch, n_rows, i_b, n_batch)
        if i_first < i_last:
            i_column = i_g * HEADS * head_size
            n_columns = tl.minimum(HEADS * head_size, s_out - i_column)
            zero_rows(out + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)
            if (i_g == 0) & (s_mean > 0):
                zero_rows(mean, s_mean, i_first, i_last, s_mean, BLOCK_N, BLOCK_D)


@triton.jit
def _shift_from_memory(
    sources, mean, s_mean, o_n, m_n, i_row, o_d, m_d,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCKS_X: tl.constexpr,
):  # fmt: skip
    """a = W_v m^v + W_a m^a [BLOCK_N, BLOCK_D] for the weights' rows ``i_row`` + ``o_d``, with m as forward kept it."""
    b_shift = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for i in tl.static_range(2):
        source = sources[i]
        if source.frames is not None:
            o_x = tl.arange(0, BLOCKS_X[i])
            m_x = o_x < source.size
            b_m = load_rows(mean + source.i_mean, o_n, m_n, s_mean, o_x, m_x)  # [BLOCK_N, BLOCKS_X[i]]
            p_w = source.weight + i_row * source.s_w
            b_w = load_rows(p_w, o_d, m_d, source.s_w, o_x, m_x)  # [BLOCK_D, BLOCKS_X[i]]
            b_shift = dot(b_m, tl.trans(b_w), b_shift, PRECISION)
    return b_shift


@triton.jit
def _backward(
    i_b, i_g, i_start, n, mean, dq, dk, dv, d_shift, sequences, sources, dropout, q, k, v, d_out,
    length, n_heads, head_size, s_mean, scale, threshold,
    PRECISION: tl.constexpr, HEADS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCKS_X: tl.constexpr,
):  # fmt: skip
    """:func:`short_backward_kernel` for a sequence of at most BLOCK_N tokens."""
    o_n = tl.arange(0, BLOCK_N)
    m_n = valid(sequences.mask, i_b, o_n, n, length)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < head_size
    p_q = first_row(q.data, sequences.cu, i_b, i_start, q.s_b, q.s_n)
    p_k = first_row(k.data, sequences.cu, i_b, i_start, k.s_b, k.s_n)
    p_v = first_row(v.data, sequences.cu, i_b, i_start, v.s_b, v.s_n)
    p_do = first_row(d_out.data, sequences.cu, i_b, i_start, d_out.s_b, d_out.s_n)
    s_out = n_heads * head_size
    # Known to be a single turn, the loop leaves sm_80 the registers it would spill otherwise.
    for i_head in range(1 if HEADS == 1 else tl.minimum(HEADS, n_heads - i_g * HEADS)):
        i_h = i_g * HEADS + i_head
        i_h64 = i_h.to(tl.int64)
        i_row = i_h64 * head_size  # of the weights
        b_shift = _shift_from_memory(
            sources, mean + i_start * s_mean, s_mean, o_n, m_n, i_row, o_d, m_d, PRECISION, BLOCK_N, BLOCK_D, BLOCKS_X
        )
        b_q = load_rows(p_q + i_h64 * q.s_h, o_n, m_n, q.s_n, o_d, m_d)  # [BLOCK_N, BLOCK_D]
        b_q = (b_q + b_shift).to(b_q.dtype)
        b_k = load_rows(p_k + i_h64 * k.s_h, o_n, m_n, k.s_n, o_d, m_d)
        b_k = (b_k + b_shift).to(b_k.dtype)
        b_v = load_rows(p_v + i_h64 * v.s_h, o_n, m_n, v.s_n, o_d, m_d)
        b_v = (b_v + b_shift).to(b_v.dtype)
        b_do = load_rows(p_do + i_h64 * d_out.s_h, o_n, m_n, d_out.s_n, o_d, m_d)
        b_do = b_do.to(b_v.dtype)  # [BLOCK_N, BLOCK_D]

        # The whole row of probabilities is at hand: neither z nor the log-sum-exp need be kept from forward.
        b_s = dot(b_q, tl.trans(b_k), None, PRECISION) * (scale * LOG2_E)  # [BLOCK_N, BLOCK_N]
        b_s = tl.where(m_n[None, :], b_s, -float("inf"))
        b_s = tl.exp2(b_s - tl.max(b_s, 1)[:, None])
        b_s = tl.where(m_n[:, None] & m_n[None, :], b_s / tl.sum(b_s, 1)[:, None], 0.0)
        b_ds = dot(b_do, tl.trans(b_v), None, PRECISION)  # [BLOCK_N, BLOCK_N]
        if dropout is not None:
            b_keep = keep(tl.load(dropout.seed), i_b, i_h, o_n[:, None], o_n[None, :], threshold)
            b_kept = tl.where(b_keep, b_s * dropout.keep_scale, 0.0).to(b_v.dtype)
            b_ds = tl.where(b_keep, b_ds * dropout.keep_scale, 0.0)
        else:
            b_kept = b_s.to(b_v.dtype)
        b_dv = dot(tl.trans(b_kept), b_do, None, PRECISION)  # [BLOCK_N, BLOCK_D]
        b_ds = (b_s * (b_ds - tl.sum(b_s * b_ds, 1)[:, None])).to(b_q.dtype)
        b_dk = dot(tl.trans(b_ds), b_q, None, PRECISION) * scale
        b_dq = dot(b_ds, b_k, None, PRECISION) * scale

        i_out = i_start * s_out + i_row
        m_row = o_n < n
        store_rows(dq + i_out, b_dq, o_n, m_row, s_out, o_d, m_d)
        store_rows(dk + i_out, b_dk, o_n, m_row, s_out, o_d, m_d)
        store_rows(dv + i_out, b_dv, o_n, m_row, s_out, o_d, m_d)
        if d_shift is not None:
            store_rows(d_shift + i_out, b_dq + b_dk + b_dv, o_n, m_row, s_out, o_d, m_d)


@triton.jit(do_not_specialize=COUNTS)
def short_backward_kernel(
    mean, dq, dk, dv, d_shift, sequences, sources, dropout, q, k, v, d_out,
    n_batch, n_rows, length, n_heads, head_size, s_mean, scale, threshold,
    PRECISION: tl.constexpr, HEADS: tl.constexpr, BLOCKS_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCKS_X: tl.constexpr,
):  # fmt: skip
    """dq, dk, dv and da = dq + dk + dv of one sequence and HEADS heads. Grid (B, cdiv(H, HEADS))."""
    i_b, i_g = tl.program_id(0), tl.program_id(1)
    i_start, n = extent(sequences.cu, i_b, length)
    for i in tl.static_range(len(BLOCKS_N)):
        if serves(n, i, BLOCKS_N):
            _backward(
                i_b, i_g, i_start, n, mean, dq, dk, dv, d_shift, sequences, sources, dropout, q, k, v, d_out,
                length, n_heads, head_size, s_mean, scale, threshold,
                PRECISION, HEADS, BLOCKS_N[i], BLOCK_D, BLOCKS_X,
            )  # fmt: skip

    if sequences.cu is not None:
        BLOCK_N: tl.constexpr = BLOCKS_N[0]
        s_out = n_heads * head_size
        i_first, i_last = share_of_tail(sequences.cu, n_batch, n_rows, i_b, n_batch)
        if i_first < i_last:
            i_column = i_g * HEADS * head_size
            n_columns = tl.minimum(HEADS * head_size, s_out - i_column)
            zero_rows(dq + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)
            zero_rows(dk + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)
            zero_rows(dv + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)
            if d_shift is not None:
                zero_rows(d_shift + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)


@triton.jit
def _gate_backward(
    i_b, i_start, n, source, gradients, sequences, d_shift, length, length_f, hidden_size,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """One modality of :func:`short_gate_backward_kernel` for a sequence of at most BLOCK_N tokens."""
    o_n = tl.arange(0, BLOCK_N)
    m_n = valid(sequences.mask, i_b, o_n, n, length)
    o_x = tl.arange(0, BLOCK_X)
    m_x = o_x < source.size

    # dm = sum over all heads of W^T da
    b_dm = tl.zeros([BLOCK_N, BLOCK_X], dtype=tl.float32)
    for i_c in range(0, hidden_size, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        b_da = load_rows(d_shift + i_start * hidden_size, o_n, m_n, hidden_size, o_c, o_c < hidden_size)
        b_w = load_rows(source.weight, o_c, o_c < hidden_size, source.s_w, o_x, m_x)  # [BLOCK_C, BLOCK_X]
        b_dm = dot(b_da, b_w, b_dm, PRECISION)
    i_start_f, n_f = extent(source.cu, i_b, length_f)
    b_dm = b_dm / count_frames(source.mask, i_b, n_f, length_f, BLOCK_F)
    b_dm = b_dm.to(source.frames.dtype.element_ty)  # [BLOCK_N, BLOCK_X]

    b_p = load_token_gates(source, sequences.cu, i_b, i_start, o_n, m_n)
    frame_gate = first_row(source.frame_gate, source.cu, i_b, i_start_f, source.s_rb, source.s_rn)
    frames = first_row(source.frames, source.cu, i_b, i_start_f, source.s_xb, source.s_xn)
    b_dp = tl.zeros([BLOCK_N], dtype=tl.float32)
    for i_f in range(0, n_f, BLOCK_F):
        o_f = i_f + tl.arange(0, BLOCK_F)
        m_f = valid(source.mask, i_b, o_f, n_f, length_f)
        b_r = tl.load(frame_gate + o_f.to(tl.int64) * source.s_rn, mask=m_f, other=0.0).to(tl.float32)
        b_s = b_p[:, None] + b_r[None, :]  # [BLOCK_N, BLOCK_F]
        m_s = m_n[:, None] & m_f[None, :]
        b_x = load_rows(frames, o_f, m_f, source.s_xn, o_x, m_x)  # [BLOCK_F, BLOCK_X]
        b_u = dot(b_dm, tl.trans(b_x), None, PRECISION)  # [BLOCK_N, BLOCK_F]
        b_u = tl.where(m_s, b_u * gate_slope(b_s, ACTIVATION), 0.0)
        b_dp += tl.sum(b_u, 1)
        p_dr = gradients.frame_gate + i_start_f + o_f
        tl.store(p_dr, tl.sum(b_u, 0).to(gradients.frame_gate.dtype.element_ty), mask=o_f < n_f)
        if gradients.frames is not None:
            b_g = tl.where(m_s, gate(b_s, ACTIVATION), 0.0).to(b_x.dtype)
            b_dx = dot(tl.trans(b_g), b_dm, None, PRECISION)  # [BLOCK_F, BLOCK_X]
            p_dx = gradients.frames + i_start_f * source.size
            store_rows(p_dx, b_dx, o_f, o_f < n_f, source.size, o_x, m_x)
    tl.store(gradients.token_gate + i_start + o_n, b_dp.to(gradients.token_gate.dtype.element_ty), mask=o_n < n)


@triton.jit(do_not_specialize=COUNTS)
def short_gate_backward_kernel(
    sequences, sources, gradients, d_shift, n_batch, n_rows, n_rows_v, n_rows_a, length, length_v, length_a,
    hidden_size,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCKS_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCKS_X: tl.constexpr,
):  # fmt: skip
    """dm = W^T da, dp, dr and the frames' gradient of one sequence. Grid (B, 2): program (b, i) does modality i.

    One program sees all tokens and all frames of its sequence, so that no sum crosses programs.
    """
    i_b = tl.program_id(0)
    i_start, n = extent(sequences.cu, i_b, length)
    n_frame_rows = (n_rows_v, n_rows_a)
    lengths = (length_v, length_a)
    for i in tl.static_range(2):
        if tl.program_id(1) == i:
            source, of_source = sources[i], gradients[i]
            if source.frames is not None:
                for c in tl.static_range(len(BLOCKS_N)):
                    if serves(n, c, BLOCKS_N):
                        _gate_backward(
                            i_b, i_start, n, source, of_source, sequences, d_shift, length, lengths[i], hidden_size,
                            ACTIVATION, PRECISION, BLOCKS_N[c], min(BLOCK_F, BLOCKS_N[c]), BLOCK_C, BLOCKS_X[i],
                        )  # fmt: skip
                if sequences.cu is not None:
                    i_first, i_last = share_of_tail(sequences.cu, n_batch, n_rows, i_b, n_batch)
                    zero_vector(of_source.token_gate, i_first, i_last, BLOCK_F)
                    i_first, i_last = share_of_tail(source.cu, n_batch, n_frame_rows[i], i_b, n_batch)
                    zero_vector(of_source.frame_gate, i_first, i_last, BLOCK_F)
                    if of_source.frames is not None:
                        zero_rows(of_source.frames, source.size, i_first, i_last, source.size, BLOCK_F, BLOCKS_X[i])
