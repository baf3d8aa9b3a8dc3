"""The shift of sequences of several tiles: for those of medium length within one launch."""

import triton
import triton.language as tl
from cmsbert_fast.kernels.cms_attention.attention import attend
from cmsbert_fast.kernels.cms_attention.call import COUNTS
from cmsbert_fast.kernels.cms_attention.gates import mean_frame
from cmsbert_fast.kernels.common import (
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


@triton.jit
def _shift_source(
    i_b, i_n, mean, cu, mask, token_gate, frame_gate, frames, cu_f, mask_f,
    s_mean, s_pb, s_pn, s_rb, s_rn, s_xb, s_xn, length, length_f, size, n_columns,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Writes the mean frames of one modality for the tokens from ``i_n`` on, BLOCK_X columns at a time."""
    i_start, n = extent(cu, i_b, length)
    o_n = i_n + tl.arange(0, BLOCK_N)
    m_n = valid(mask, i_b, o_n, n, length)
    p_p = first_row(token_gate, cu, i_b, i_start, s_pb, s_pn) + o_n.to(tl.int64) * s_pn
    b_p = tl.load(p_p, mask=m_n, other=0.0).to(tl.float32)
    for i_x in range(0, n_columns, BLOCK_X):
        o_x = i_x + tl.arange(0, BLOCK_X)
        b_m = mean_frame(
            b_p, frame_gate, frames, mask_f, cu_f, i_b, length_f, s_rb, s_rn, s_xb, s_xn, o_x, o_x < size,
            ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCK_X,
        )  # fmt: skip
        b_m = tl.where(m_n[:, None], b_m, 0.0)
        store_rows(mean + i_start * s_mean, b_m, o_n, o_n < n, s_mean, o_x, o_x < n_columns)


@triton.jit
def _add_shift(
    b_shift, mean, weight, o_n, m_n, o_d, m_d, s_mean, s_w, size,
    PRECISION: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """b_shift + m W^T of one modality, m read from memory."""
    for i_x in range(0, size, BLOCK_X):
        o_x = i_x + tl.arange(0, BLOCK_X)
        b_m = load_rows(mean, o_n, m_n, s_mean, o_x, o_x < size)  # [BLOCK_N, BLOCK_X]
        b_w = load_rows(weight, o_d, m_d, s_w, o_x, o_x < size)  # [BLOCK_D, BLOCK_X]
        b_shift = dot(b_m, tl.trans(b_w), b_shift, PRECISION)
    return b_shift


@triton.jit(do_not_specialize=COUNTS)
def shift_forward_kernel(
    shift, mean, cu, mask,
    token_gate_v, frame_gate_v, frames_v, weight_v, cu_v, mask_v,
    token_gate_a, frame_gate_a, frames_a, weight_a, cu_a, mask_a,
    s_mean,
    s_pvb, s_pvn, s_rvb, s_rvn, s_xvb, s_xvn, s_wv,
    s_pab, s_pan, s_rab, s_ran, s_xab, s_xan, s_wa,
    n_batch, n_rows, n_tiles, length, length_v, length_a, hidden_size, size_v, size_a, i_mean_a,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """The mean frames m and the shift a = W_v m^v + W_a m^a of BLOCK_N tokens. Grid (B n_tiles,).

    A program writes its own rows of m and, after a barrier, reads them back: m may be wider than registers are many.
    """
    i_b, i_n = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles * BLOCK_N
    i_start, n = extent(cu, i_b, length)
    if i_n < n:
        if frames_v is not None:
            _shift_source(
                i_b, i_n, mean, cu, mask, token_gate_v, frame_gate_v, frames_v, cu_v, mask_v,
                s_mean, s_pvb, s_pvn, s_rvb, s_rvn, s_xvb, s_xvn, length, length_v, size_v, i_mean_a,
                ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCK_X,
            )  # fmt: skip
        if frames_a is not None:
            _shift_source(
                i_b, i_n, mean + i_mean_a, cu, mask, token_gate_a, frame_gate_a, frames_a, cu_a, mask_a,
                s_mean, s_pab, s_pan, s_rab, s_ran, s_xab, s_xan, length, length_a, size_a, s_mean - i_mean_a,
                ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCK_X,
            )  # fmt: skip
        tl.debug_barrier()
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = o_n < n
        mean_row = mean + i_start * s_mean
        for i_d in range(0, hidden_size, BLOCK_D):
            o_d = i_d + tl.arange(0, BLOCK_D)
            m_d = o_d < hidden_size
            b_shift = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
            if frames_v is not None:
                b_shift = _add_shift(
                    b_shift, mean_row, weight_v, o_n, m_n, o_d, m_d, s_mean, s_wv, size_v, PRECISION, BLOCK_X
                )
            if frames_a is not None:
                b_shift = _add_shift(
                    b_shift, mean_row + i_mean_a, weight_a, o_n, m_n, o_d, m_d, s_mean, s_wa, size_a, PRECISION, BLOCK_X
                )
            store_rows(shift + i_start * hidden_size, b_shift, o_n, m_n, hidden_size, o_d, m_d)

    if cu is not None:
        i_first, i_last = share_of_tail(cu, n_batch, n_rows, tl.program_id(0), tl.num_programs(0))
        zero_rows(mean, s_mean, i_first, i_last, s_mean, BLOCK_N, BLOCK_D)
        zero_rows(shift, hidden_size, i_first, i_last, hidden_size, BLOCK_N, BLOCK_D)


@triton.jit(do_not_specialize=COUNTS)
def medium_forward_kernel(
    q, k, v, shift, out, mean, lse, cu, mask, seed,
    token_gate_v, frame_gate_v, frames_v, weight_v, cu_v, mask_v,
    token_gate_a, frame_gate_a, frames_a, weight_a, cu_a, mask_a,
    s_qb, s_qn, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh, s_mean,
    s_pvb, s_pvn, s_rvb, s_rvn, s_xvb, s_xvn, s_wv,
    s_pab, s_pan, s_rab, s_ran, s_xab, s_xan, s_wa,
    n_batch, n_rows, length, length_v, length_a, n_heads, head_size, size_v, size_a, i_mean_a, scale,
    keep_scale, threshold,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, HEADS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_A: tl.constexpr,
):  # fmt: skip
    """Gates, mean frame, shift and attention of one sequence and HEADS heads, several tiles. Grid (B, cdiv(H, HEADS)).

    A program writes the shift of its own heads and, after a barrier, reads it back tile by tile.
    """
    i_b, i_g = tl.program_id(0), tl.program_id(1)
    i_start, n = extent(cu, i_b, length)
    s_out = n_heads * head_size
    o_v = tl.arange(0, BLOCK_V)
    o_a = tl.arange(0, BLOCK_A)
    n_mine = tl.minimum(HEADS, n_heads - i_g * HEADS)
    i_column = i_g.to(tl.int64) * HEADS * head_size  # of this program's heads
    if shift is not None:
        for i_m in range(0, n, BLOCK_M):
            o_m = i_m + tl.arange(0, BLOCK_M)
            m_m = valid(mask, i_b, o_m, n, length)
            if frames_v is not None:
                p_p = first_row(token_gate_v, cu, i_b, i_start, s_pvb, s_pvn) + o_m.to(tl.int64) * s_pvn
                b_p = tl.load(p_p, mask=m_m, other=0.0).to(tl.float32)
                b_mv = mean_frame(
                    b_p, frame_gate_v, frames_v, mask_v, cu_v, i_b, length_v, s_rvb, s_rvn, s_xvb, s_xvn, o_v,
                    o_v < size_v, ACTIVATION, PRECISION, BLOCK_M, BLOCK_F, BLOCK_V,
                )  # fmt: skip  # [BLOCK_M, BLOCK_V]
                b_mv = tl.where(m_m[:, None], b_mv, 0.0)
                if i_g == 0:
                    store_rows(mean + i_start * s_mean, b_mv, o_m, o_m < n, s_mean, o_v, o_v < i_mean_a)
            if frames_a is not None:
                p_p = first_row(token_gate_a, cu, i_b, i_start, s_pab, s_pan) + o_m.to(tl.int64) * s_pan
                b_p = tl.load(p_p, mask=m_m, other=0.0).to(tl.float32)
                b_ma = mean_frame(
                    b_p, frame_gate_a, frames_a, mask_a, cu_a, i_b, length_a, s_rab, s_ran, s_xab, s_xan, o_a,
                    o_a < size_a, ACTIVATION, PRECISION, BLOCK_M, BLOCK_F, BLOCK_A,
                )  # fmt: skip  # [BLOCK_M, BLOCK_A]
                b_ma = tl.where(m_m[:, None], b_ma, 0.0)
                if i_g == 0:
                    p_mean = mean + i_start * s_mean + i_mean_a
                    store_rows(p_mean, b_ma, o_m, o_m < n, s_mean, o_a, o_a < s_mean - i_mean_a)
            for i_c in range(0, n_mine * head_size, BLOCK_C):
                o_c = i_c + tl.arange(0, BLOCK_C)
                m_c = o_c < n_mine * head_size
                b_shift = tl.zeros([BLOCK_M, BLOCK_C], dtype=tl.float32)
                if frames_v is not None:
                    b_w = load_rows(weight_v + i_column * s_wv, o_c, m_c, s_wv, o_v, o_v < size_v)  # [BLOCK_C, BLOCK_V]
                    b_shift = dot(b_mv, tl.trans(b_w), b_shift, PRECISION)
                if frames_a is not None:
                    b_w = load_rows(weight_a + i_column * s_wa, o_c, m_c, s_wa, o_a, o_a < size_a)  # [BLOCK_C, BLOCK_A]
                    b_shift = dot(b_ma, tl.trans(b_w), b_shift, PRECISION)
                store_rows(shift + i_start * s_out + i_column, b_shift, o_m, o_m < n, s_out, o_c, m_c)
        tl.debug_barrier()
    for i_head in range(n_mine):
        for i_m in range(0, n, BLOCK_M):
            attend(
                i_b, i_g * HEADS + i_head, i_m, q, k, v, shift, out, lse, cu, mask, seed,
                s_qb, s_qn, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh,
                n_rows, length, n_heads, head_size, scale, keep_scale, threshold, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
            )  # fmt: skip

    if cu is not None:
        i_first, i_last = share_of_tail(cu, n_batch, n_rows, i_b, n_batch)
        if i_first < i_last:
            zero_rows(out + i_column, s_out, i_first, i_last, n_mine * head_size, BLOCK_M, BLOCK_D)
            if shift is not None:
                zero_rows(shift + i_column, s_out, i_first, i_last, n_mine * head_size, BLOCK_M, BLOCK_D)
            for i_head in range(n_mine):
                zero_vector(lse + (i_g * HEADS + i_head).to(tl.int64) * n_rows, i_first, i_last, BLOCK_M)
            if (i_g == 0) & (s_mean > 0):
                zero_rows(mean, s_mean, i_first, i_last, s_mean, BLOCK_M, BLOCK_D)
