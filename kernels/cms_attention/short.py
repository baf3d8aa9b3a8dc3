"""Sequences that fit into one tile: one launch forward, two backward."""

import triton
import triton.language as tl
from cmsbert_fast.kernels.cms_attention.attention import keep
from cmsbert_fast.kernels.cms_attention.call import COUNTS
from cmsbert_fast.kernels.cms_attention.gates import count_frames, gate, gate_slope, mean_frame
from cmsbert_fast.kernels.common import (
    LOG2_E,
    dot,
    extent,
    first_row,
    load_rows,
    share_of_tail,
    store_rows,
    valid,
    zero_rows,
    zero_vector,
)


@triton.jit(do_not_specialize=COUNTS)
def short_forward_kernel(
    q, k, v, out, mean, cu, mask, seed,
    token_gate_v, frame_gate_v, frames_v, weight_v, cu_v, mask_v,
    token_gate_a, frame_gate_a, frames_a, weight_a, cu_a, mask_a,
    s_qb, s_qn, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh, s_mean,
    s_pvb, s_pvn, s_rvb, s_rvn, s_xvb, s_xvn, s_wv,
    s_pab, s_pan, s_rab, s_ran, s_xab, s_xan, s_wa,
    n_batch, n_rows, length, length_v, length_a, n_heads, head_size, size_v, size_a, i_mean_a, scale,
    keep_scale, threshold,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, HEADS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_A: tl.constexpr,
):  # fmt: skip
    """Gates, mean frame, shift and attention of one sequence and HEADS heads. Grid (B, cdiv(H, HEADS))."""
    i_b, i_g = tl.program_id(0), tl.program_id(1)
    i_start, n = extent(cu, i_b, length)
    o_n = tl.arange(0, BLOCK_N)
    m_n = valid(mask, i_b, o_n, n, length)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < head_size
    o_v = tl.arange(0, BLOCK_V)
    o_a = tl.arange(0, BLOCK_A)

    # The mean frames are the same for all heads: once a program.
    if frames_v is not None:
        p_p = first_row(token_gate_v, cu, i_b, i_start, s_pvb, s_pvn) + o_n.to(tl.int64) * s_pvn
        b_p = tl.load(p_p, mask=m_n, other=0.0).to(tl.float32)
        b_mv = mean_frame(
            b_p, frame_gate_v, frames_v, mask_v, cu_v, i_b, length_v, s_rvb, s_rvn, s_xvb, s_xvn, o_v, o_v < size_v,
            ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCK_V,
        )  # fmt: skip  # [BLOCK_N, BLOCK_V]
        b_mv = tl.where(m_n[:, None], b_mv, 0.0)
        if i_g == 0:
            store_rows(mean + i_start * s_mean, b_mv, o_n, o_n < n, s_mean, o_v, o_v < i_mean_a)
    if frames_a is not None:
        p_p = first_row(token_gate_a, cu, i_b, i_start, s_pab, s_pan) + o_n.to(tl.int64) * s_pan
        b_p = tl.load(p_p, mask=m_n, other=0.0).to(tl.float32)
        b_ma = mean_frame(
            b_p, frame_gate_a, frames_a, mask_a, cu_a, i_b, length_a, s_rab, s_ran, s_xab, s_xan, o_a, o_a < size_a,
            ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCK_A,
        )  # fmt: skip  # [BLOCK_N, BLOCK_A]
        b_ma = tl.where(m_n[:, None], b_ma, 0.0)
        if i_g == 0:
            p_mean = mean + i_start * s_mean + i_mean_a
            store_rows(p_mean, b_ma, o_n, o_n < n, s_mean, o_a, o_a < s_mean - i_mean_a)

    q = first_row(q, cu, i_b, i_start, s_qb, s_qn)
    k = first_row(k, cu, i_b, i_start, s_kb, s_kn)
    v = first_row(v, cu, i_b, i_start, s_vb, s_vn)
    s_out = n_heads * head_size
    for i_head in range(tl.minimum(HEADS, n_heads - i_g * HEADS)):
        i_h = i_g * HEADS + i_head
        i_h64 = i_h.to(tl.int64)
        b_shift = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
        if frames_v is not None:
            b_w = load_rows(
                weight_v + i_h64 * head_size * s_wv, o_d, m_d, s_wv, o_v, o_v < size_v
            )  # [BLOCK_D, BLOCK_V]
            b_shift = dot(b_mv, tl.trans(b_w), b_shift, PRECISION)
        if frames_a is not None:
            b_w = load_rows(
                weight_a + i_h64 * head_size * s_wa, o_d, m_d, s_wa, o_a, o_a < size_a
            )  # [BLOCK_D, BLOCK_A]
            b_shift = dot(b_ma, tl.trans(b_w), b_shift, PRECISION)
        b_q = load_rows(q + i_h64 * s_qh, o_n, m_n, s_qn, o_d, m_d)  # [BLOCK_N, BLOCK_D]
        b_q = (b_q + b_shift).to(q.dtype.element_ty)
        b_k = load_rows(k + i_h64 * s_kh, o_n, m_n, s_kn, o_d, m_d)
        b_k = (b_k + b_shift).to(k.dtype.element_ty)
        b_s = dot(b_q, tl.trans(b_k), None, PRECISION) * (scale * LOG2_E)  # [BLOCK_N, BLOCK_N]
        b_s = tl.where(m_n[None, :], b_s, -float("inf"))
        b_s = tl.exp2(b_s - tl.max(b_s, 1)[:, None])
        b_sum = tl.sum(b_s, 1)
        if seed is not None:
            b_keep = keep(tl.load(seed), i_b, i_h, o_n[:, None], o_n[None, :], threshold)
            b_s = tl.where(b_keep, b_s * keep_scale, 0.0)
        b_v = load_rows(v + i_h64 * s_vh, o_n, m_n, s_vn, o_d, m_d)
        b_v = (b_v + b_shift).to(v.dtype.element_ty)
        b_z = dot(b_s.to(v.dtype.element_ty), b_v, None, PRECISION) / b_sum[:, None]
        b_z = tl.where(m_n[:, None], b_z, 0.0)
        store_rows(out + i_start * s_out + i_h64 * head_size, b_z, o_n, o_n < n, s_out, o_d, m_d)

    if cu is not None:
        i_first, i_last = share_of_tail(cu, n_batch, n_rows, i_b, n_batch)
        if i_first < i_last:
            i_column = i_g * HEADS * head_size
            n_columns = tl.minimum(HEADS * head_size, s_out - i_column)
            zero_rows(out + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)
            if (i_g == 0) & (s_mean > 0):
                zero_rows(mean, s_mean, i_first, i_last, s_mean, BLOCK_N, BLOCK_D)


@triton.jit(do_not_specialize=COUNTS)
def short_backward_kernel(
    q, k, v, mean, cu, mask, seed, weight_v, weight_a,
    d_out, dq, dk, dv, d_shift,
    s_qb, s_qn, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh, s_ob, s_on, s_oh, s_mean, s_wv, s_wa,
    n_batch, n_rows, length, n_heads, head_size, size_v, size_a, i_mean_a, scale, keep_scale, threshold,
    PRECISION: tl.constexpr, HEADS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_A: tl.constexpr,
):  # fmt: skip
    """dq, dk, dv and da = dq + dk + dv of one sequence and HEADS heads. Grid (B, cdiv(H, HEADS))."""
    i_b, i_g = tl.program_id(0), tl.program_id(1)
    i_start, n = extent(cu, i_b, length)
    o_n = tl.arange(0, BLOCK_N)
    m_n = valid(mask, i_b, o_n, n, length)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < head_size
    o_v = tl.arange(0, BLOCK_V)
    o_a = tl.arange(0, BLOCK_A)

    q = first_row(q, cu, i_b, i_start, s_qb, s_qn)
    k = first_row(k, cu, i_b, i_start, s_kb, s_kn)
    v = first_row(v, cu, i_b, i_start, s_vb, s_vn)
    d_out = first_row(d_out, cu, i_b, i_start, s_ob, s_on)
    s_out = n_heads * head_size
    # Known to be a single turn, the loop leaves sm_80 the registers it would spill otherwise.
    for i_head in range(1 if HEADS == 1 else tl.minimum(HEADS, n_heads - i_g * HEADS)):
        i_h = i_g * HEADS + i_head
        i_h64 = i_h.to(tl.int64)
        b_shift = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
        if weight_v is not None:
            b_m = load_rows(mean + i_start * s_mean, o_n, m_n, s_mean, o_v, o_v < size_v)
            b_w = load_rows(
                weight_v + i_h64 * head_size * s_wv, o_d, m_d, s_wv, o_v, o_v < size_v
            )  # [BLOCK_D, BLOCK_V]
            b_shift = dot(b_m, tl.trans(b_w), b_shift, PRECISION)
        if weight_a is not None:
            b_m = load_rows(
                mean + i_start * s_mean + i_mean_a, o_n, m_n, s_mean, o_a, o_a < size_a
            )  # [BLOCK_N, BLOCK_A]
            b_w = load_rows(
                weight_a + i_h64 * head_size * s_wa, o_d, m_d, s_wa, o_a, o_a < size_a
            )  # [BLOCK_D, BLOCK_A]
            b_shift = dot(b_m, tl.trans(b_w), b_shift, PRECISION)
        b_q = (load_rows(q + i_h64 * s_qh, o_n, m_n, s_qn, o_d, m_d) + b_shift).to(q.dtype.element_ty)
        b_k = (load_rows(k + i_h64 * s_kh, o_n, m_n, s_kn, o_d, m_d) + b_shift).to(k.dtype.element_ty)
        b_v = (load_rows(v + i_h64 * s_vh, o_n, m_n, s_vn, o_d, m_d) + b_shift).to(v.dtype.element_ty)
        b_do = load_rows(d_out + i_h64 * s_oh, o_n, m_n, s_on, o_d, m_d).to(v.dtype.element_ty)  # [BLOCK_N, BLOCK_D]

        # The whole row of probabilities is at hand: neither z nor the log-sum-exp need be kept from forward.
        b_s = dot(b_q, tl.trans(b_k), None, PRECISION) * (scale * LOG2_E)  # [BLOCK_N, BLOCK_N]
        b_s = tl.where(m_n[None, :], b_s, -float("inf"))
        b_s = tl.exp2(b_s - tl.max(b_s, 1)[:, None])
        b_s = tl.where(m_n[:, None] & m_n[None, :], b_s / tl.sum(b_s, 1)[:, None], 0.0)
        b_ds = dot(b_do, tl.trans(b_v), None, PRECISION)  # [BLOCK_N, BLOCK_N]
        if seed is not None:
            b_keep = keep(tl.load(seed), i_b, i_h, o_n[:, None], o_n[None, :], threshold)
            b_kept = tl.where(b_keep, b_s * keep_scale, 0.0).to(v.dtype.element_ty)
            b_ds = tl.where(b_keep, b_ds * keep_scale, 0.0)
        else:
            b_kept = b_s.to(v.dtype.element_ty)
        b_dv = dot(tl.trans(b_kept), b_do, None, PRECISION)  # [BLOCK_N, BLOCK_D]
        b_ds = (b_s * (b_ds - tl.sum(b_s * b_ds, 1)[:, None])).to(q.dtype.element_ty)
        b_dk = dot(tl.trans(b_ds), b_q, None, PRECISION) * scale
        b_dq = dot(b_ds, b_k, None, PRECISION) * scale

        i_out = i_start * s_out + i_h64 * head_size
        m_row = o_n < n
        store_rows(dq + i_out, b_dq, o_n, m_row, s_out, o_d, m_d)
        store_rows(dk + i_out, b_dk, o_n, m_row, s_out, o_d, m_d)
        store_rows(dv + i_out, b_dv, o_n, m_row, s_out, o_d, m_d)
        if d_shift is not None:
            store_rows(d_shift + i_out, b_dq + b_dk + b_dv, o_n, m_row, s_out, o_d, m_d)

    if cu is not None:
        i_first, i_last = share_of_tail(cu, n_batch, n_rows, i_b, n_batch)
        if i_first < i_last:
            i_column = i_g * HEADS * head_size
            n_columns = tl.minimum(HEADS * head_size, s_out - i_column)
            zero_rows(dq + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)
            zero_rows(dk + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)
            zero_rows(dv + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)
            if d_shift is not None:
                zero_rows(d_shift + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)


@triton.jit
def _short_gate_backward(
    i_b, d_shift, cu, mask, token_gate, frame_gate, frames, weight, cu_f, mask_f, d_token_gate, d_frame_gate, d_frames,
    s_pb, s_pn, s_rb, s_rn, s_xb, s_xn, s_w,
    n_batch, n_rows, n_frame_rows, length, length_f, hidden_size, size,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """One modality of :func:`short_gate_backward_kernel`."""
    i_start, n = extent(cu, i_b, length)
    o_n = tl.arange(0, BLOCK_N)
    m_n = valid(mask, i_b, o_n, n, length)
    o_x = tl.arange(0, BLOCK_X)
    m_x = o_x < size

    # dm = sum over all heads of W^T da
    b_dm = tl.zeros([BLOCK_N, BLOCK_X], dtype=tl.float32)
    for i_c in range(0, hidden_size, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        b_da = load_rows(d_shift + i_start * hidden_size, o_n, m_n, hidden_size, o_c, o_c < hidden_size)
        b_w = load_rows(weight, o_c, o_c < hidden_size, s_w, o_x, m_x)  # [BLOCK_C, BLOCK_X]
        b_dm = dot(b_da, b_w, b_dm, PRECISION)
    i_start_f, n_f = extent(cu_f, i_b, length_f)
    b_dm = (b_dm / count_frames(mask_f, i_b, n_f, length_f, BLOCK_F)).to(frames.dtype.element_ty)  # [BLOCK_N, BLOCK_X]

    p_p = first_row(token_gate, cu, i_b, i_start, s_pb, s_pn) + o_n.to(tl.int64) * s_pn
    b_p = tl.load(p_p, mask=m_n, other=0.0).to(tl.float32)
    frame_gate = first_row(frame_gate, cu_f, i_b, i_start_f, s_rb, s_rn)
    frames = first_row(frames, cu_f, i_b, i_start_f, s_xb, s_xn)
    b_dp = tl.zeros([BLOCK_N], dtype=tl.float32)
    for i_f in range(0, n_f, BLOCK_F):
        o_f = i_f + tl.arange(0, BLOCK_F)
        m_f = valid(mask_f, i_b, o_f, n_f, length_f)
        b_r = tl.load(frame_gate + o_f.to(tl.int64) * s_rn, mask=m_f, other=0.0).to(tl.float32)
        b_s = b_p[:, None] + b_r[None, :]  # [BLOCK_N, BLOCK_F]
        m_s = m_n[:, None] & m_f[None, :]
        b_x = load_rows(frames, o_f, m_f, s_xn, o_x, m_x)  # [BLOCK_F, BLOCK_X]
        b_u = dot(b_dm, tl.trans(b_x), None, PRECISION)  # [BLOCK_N, BLOCK_F]
        b_u = tl.where(m_s, b_u * gate_slope(b_s, ACTIVATION), 0.0)
        b_dp += tl.sum(b_u, 1)
        p_dr = d_frame_gate + i_start_f + o_f
        tl.store(p_dr, tl.sum(b_u, 0).to(d_frame_gate.dtype.element_ty), mask=o_f < n_f)
        if d_frames is not None:
            b_g = tl.where(m_s, gate(b_s, ACTIVATION), 0.0).to(b_x.dtype)
            b_dx = dot(tl.trans(b_g), b_dm, None, PRECISION)  # [BLOCK_F, BLOCK_X]
            store_rows(d_frames + i_start_f * size, b_dx, o_f, o_f < n_f, size, o_x, m_x)
    tl.store(d_token_gate + i_start + o_n, b_dp.to(d_token_gate.dtype.element_ty), mask=o_n < n)

    if cu is not None:
        i_first, i_last = share_of_tail(cu, n_batch, n_rows, i_b, n_batch)
        zero_vector(d_token_gate, i_first, i_last, BLOCK_N)
        i_first, i_last = share_of_tail(cu_f, n_batch, n_frame_rows, i_b, n_batch)
        zero_vector(d_frame_gate, i_first, i_last, BLOCK_F)
        if d_frames is not None:
            zero_rows(d_frames, size, i_first, i_last, size, BLOCK_F, BLOCK_X)


@triton.jit(do_not_specialize=COUNTS)
def short_gate_backward_kernel(
    d_shift, cu, mask,
    token_gate_v, frame_gate_v, frames_v, weight_v, cu_v, mask_v, d_token_gate_v, d_frame_gate_v, d_frames_v,
    token_gate_a, frame_gate_a, frames_a, weight_a, cu_a, mask_a, d_token_gate_a, d_frame_gate_a, d_frames_a,
    s_pvb, s_pvn, s_rvb, s_rvn, s_xvb, s_xvn, s_wv,
    s_pab, s_pan, s_rab, s_ran, s_xab, s_xan, s_wa,
    n_batch, n_rows, n_rows_v, n_rows_a, length, length_v, length_a, hidden_size, size_v, size_a,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_A: tl.constexpr,
):  # fmt: skip
    """dm = W^T da, dp, dr and the frames' gradient of one sequence. Grid (B, 2): program (b, 1) does the acoustic side.

    One program sees all tokens and all frames of its sequence, so that no sum crosses programs.
    """
    i_b, i_modality = tl.program_id(0), tl.program_id(1)
    if i_modality == 0:
        if frames_v is not None:
            _short_gate_backward(
                i_b, d_shift, cu, mask, token_gate_v, frame_gate_v, frames_v, weight_v, cu_v, mask_v,
                d_token_gate_v, d_frame_gate_v, d_frames_v, s_pvb, s_pvn, s_rvb, s_rvn, s_xvb, s_xvn, s_wv,
                n_batch, n_rows, n_rows_v, length, length_v, hidden_size, size_v,
                ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCK_C, BLOCK_V,
            )  # fmt: skip
    else:
        if frames_a is not None:
            _short_gate_backward(
                i_b, d_shift, cu, mask, token_gate_a, frame_gate_a, frames_a, weight_a, cu_a, mask_a,
                d_token_gate_a, d_frame_gate_a, d_frames_a, s_pab, s_pan, s_rab, s_ran, s_xab, s_xan, s_wa,
                n_batch, n_rows, n_rows_a, length, length_a, hidden_size, size_a,
                ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCK_C, BLOCK_A,
            )  # fmt: skip
