"""Gates, mean frames and shift (Eq. 1-4), and the gates' gradients for sequences of any length.

Backward takes dm = W^T da from memory. It computes <dm_i, x_j> twice rather than store N x N_m numbers: once in tiles
of tokens for dp, once in tiles of frames for dr. dx is a product of its own.
"""

import triton
import triton.language as tl

from cmsbert_fast.kernels.cms_attention.arguments import COUNTS
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


@triton.jit
def count_frames(mask, i_b, n, length, BLOCK: tl.constexpr):
    """Number of valid frames, at least 1, as float32."""
    if mask is not None:
        b_count = tl.zeros([BLOCK], dtype=tl.int32)
        for i_f in range(0, n, BLOCK):
            b_count += valid(mask, i_b, i_f + tl.arange(0, BLOCK), n, length).to(tl.int32)
        count = tl.sum(b_count, 0)
    else:
        count = n
    return tl.maximum(count, 1).to(tl.float32)


@triton.jit
def gate(b_s, ACTIVATION: tl.constexpr):
    """act(s)."""
    if ACTIVATION == "relu":
        return tl.where(b_s < 0, 0.0, b_s)  # unlike a maximum, keeps NaN on a GPU
    elif ACTIVATION == "sigmoid":
        return 1.0 / (1.0 + tl.exp2(b_s * -LOG2_E))
    else:
        b_t = tl.exp2(tl.abs(b_s) * (-2.0 * LOG2_E))
        b_g = (1.0 - b_t) / (1.0 + b_t)
        b_g = tl.where(b_s < 0, -b_g, b_g)
        # Near 0 the difference cancels. tanh(s) = s + s^3 P(s^2), fitted on [0, 1/2] to a relative error of 5e-9.
        b_z = b_s * b_s
        b_p = ((-0.00665297406 * b_z + 0.0213014651) * b_z - 0.0538999587) * b_z + 0.133329704
        b_p = (b_p * b_z - 0.333333284) * b_z
        return tl.where(tl.abs(b_s) < 0.5, b_s + b_s * b_p, b_g)


@triton.jit
def gate_slope(b_s, ACTIVATION: tl.constexpr):
    """act'(s); that of relu is 0 at 0, as in PyTorch."""
    if ACTIVATION == "relu":
        return tl.where(b_s > 0, 1.0, 0.0)
    elif ACTIVATION == "sigmoid":
        b_g = gate(b_s, ACTIVATION)
        return b_g * (1.0 - b_g)
    else:
        b_g = gate(b_s, ACTIVATION)
        return 1.0 - b_g * b_g


@triton.jit
def load_token_gates(source, cu, i_b, i_start, o_n, m_n):
    """p of the tokens ``o_n`` of a sequence, [len(o_n)] in float32; 0 where masked."""
    p_p = first_row(source.token_gate, cu, i_b, i_start, source.s_pb, source.s_pn) + o_n.to(tl.int64) * source.s_pn
    return tl.load(p_p, mask=m_n, other=0.0).to(tl.float32)


@triton.jit
def mean_columns(sources, i: tl.constexpr, s_mean):
    """How many columns the mean frames of modality ``i`` have: up to where the other's begin, or m ends."""
    if i == 0 and sources[1].frames is not None:
        return sources[1].i_mean
    else:
        return s_mean - sources[i].i_mean


@triton.jit
def mean_frame(
    b_p, m_n, source, i_b, length_f, o_x,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_X: tl.constexpr,
):  # fmt: skip
    """m_i = 1/N_m sum_j act(p_i + r_j) x_j of a tile of tokens, [BLOCK_N, BLOCK_X] in the dtype of the frames."""
    i_start, n = extent(source.cu, i_b, length_f)
    frame_gate = first_row(source.frame_gate, source.cu, i_b, i_start, source.s_rb, source.s_rn)
    frames = first_row(source.frames, source.cu, i_b, i_start, source.s_xb, source.s_xn)
    b_m = tl.zeros([BLOCK_N, BLOCK_X], dtype=tl.float32)
    for i_f in range(0, n, BLOCK_F):
        o_f = i_f + tl.arange(0, BLOCK_F)
        m_f = valid(source.mask, i_b, o_f, n, length_f)
        b_r = tl.load(frame_gate + o_f.to(tl.int64) * source.s_rn, mask=m_f, other=0.0).to(tl.float32)  # [BLOCK_F]
        b_g = gate(b_p[:, None] + b_r[None, :], ACTIVATION)  # [BLOCK_N, BLOCK_F]
        b_x = load_rows(frames, o_f, m_f, source.s_xn, o_x, o_x < source.size)  # [BLOCK_F, BLOCK_X], 0 where not valid
        b_m = dot(b_g.to(b_x.dtype), b_x, b_m, PRECISION)
    b_m = (b_m / count_frames(source.mask, i_b, n, length_f, BLOCK_F)).to(frames.dtype.element_ty)
    return tl.where(m_n[:, None], b_m, 0.0)


@triton.jit
def shift_tile(
    b_means, sources, i_row, o_d, m_d,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCKS_X: tl.constexpr,
):  # fmt: skip
    """a = W_v m^v + W_a m^a [BLOCK_N, BLOCK_D] for the weights' rows ``i_row`` + ``o_d``; all of m is in registers."""
    b_shift = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for i in tl.static_range(2):
        source = sources[i]
        if source.frames is not None:
            o_x = tl.arange(0, BLOCKS_X[i])
            p_w = source.weight + i_row * source.s_w
            b_w = load_rows(p_w, o_d, m_d, source.s_w, o_x, o_x < source.size)  # [BLOCK_D, BLOCKS_X[i]]
            b_shift = dot(b_means[i], tl.trans(b_w), b_shift, PRECISION)
    return b_shift


@triton.jit
def _dot_frames(
    b_acc, x, s_x, o_m, m_m, y, s_y, o_n, m_n, size, PRECISION: tl.constexpr, BLOCK_X: tl.constexpr
):  # fmt: skip
    """b_acc + <x_m, y_n> for tiles of rows of x and y, read BLOCK_X columns at a time."""
    for i_x in range(0, size, BLOCK_X):
        o_x = i_x + tl.arange(0, BLOCK_X)
        b_x = load_rows(x, o_m, m_m, s_x, o_x, o_x < size)
        b_y = load_rows(y, o_n, m_n, s_y, o_x, o_x < size)
        b_acc = dot(b_x, tl.trans(b_y), b_acc, PRECISION)
    return b_acc


@triton.jit(do_not_specialize=COUNTS)
def gate_backward_token_kernel(
    d_mean, sequences, source, gradients, n_batch, n_rows, n_tiles, length, length_f,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_X: tl.constexpr,
):  # fmt: skip
    """dp_i = 1/N_m sum_j act'(p_i + r_j) <dm_i, x_j> of BLOCK_N tokens. Grid (B n_tiles,)."""
    i_b, i_n = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles * BLOCK_N
    size = source.size
    i_start, n = extent(sequences.cu, i_b, length)
    if i_n < n:
        i_start_f, n_f = extent(source.cu, i_b, length_f)
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = valid(sequences.mask, i_b, o_n, n, length)
        b_p = load_token_gates(source, sequences.cu, i_b, i_start, o_n, m_n)
        frame_gate = first_row(source.frame_gate, source.cu, i_b, i_start_f, source.s_rb, source.s_rn)
        frames = first_row(source.frames, source.cu, i_b, i_start_f, source.s_xb, source.s_xn)
        d_mean_row = d_mean + i_start * size
        b_dp = tl.zeros([BLOCK_N], dtype=tl.float32)
        for i_f in range(0, n_f, BLOCK_F):
            o_f = i_f + tl.arange(0, BLOCK_F)
            m_f = valid(source.mask, i_b, o_f, n_f, length_f)
            b_r = tl.load(frame_gate + o_f.to(tl.int64) * source.s_rn, mask=m_f, other=0.0).to(tl.float32)
            b_u = tl.zeros([BLOCK_N, BLOCK_F], dtype=tl.float32)
            b_u = _dot_frames(b_u, d_mean_row, size, o_n, m_n, frames, source.s_xn, o_f, m_f, size, PRECISION, BLOCK_X)
            b_u = b_u * gate_slope(b_p[:, None] + b_r[None, :], ACTIVATION)
            b_dp += tl.sum(tl.where(m_n[:, None] & m_f[None, :], b_u, 0.0), 1)
        b_dp = b_dp / count_frames(source.mask, i_b, n_f, length_f, BLOCK_F)
        tl.store(gradients.token_gate + i_start + o_n, b_dp.to(gradients.token_gate.dtype.element_ty), mask=o_n < n)

    if sequences.cu is not None:
        i_first, i_last = share_of_tail(sequences.cu, n_batch, n_rows, tl.program_id(0), tl.num_programs(0))
        zero_vector(gradients.token_gate, i_first, i_last, BLOCK_N)


@triton.jit(do_not_specialize=COUNTS)
def gate_backward_frame_kernel(
    d_mean, sequences, source, gradients, n_batch, n_frame_rows, n_tiles, length, length_f,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_X: tl.constexpr,
):  # fmt: skip
    """dr_j = 1/N_m sum_i act'(p_i + r_j) <dm_i, x_j> and dx_j = 1/N_m sum_i act(p_i + r_j) dm_i of BLOCK_F frames.

    Grid (B n_tiles, 1 + cdiv(size, BLOCK_X) or 1): program 0 of the last axis does dr, program 1 + c
    does columns [c BLOCK_X, (c + 1) BLOCK_X) of dx.
    """
    i_b, i_f, i_task = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles * BLOCK_F, tl.program_id(1)
    size = source.size
    i_start_f, n_f = extent(source.cu, i_b, length_f)
    o_x = (i_task - 1) * BLOCK_X + tl.arange(0, BLOCK_X)
    m_x = (o_x >= 0) & (o_x < size)
    if i_f < n_f:
        i_start, n = extent(sequences.cu, i_b, length)
        o_f = i_f + tl.arange(0, BLOCK_F)
        m_f = valid(source.mask, i_b, o_f, n_f, length_f)
        p_r = first_row(source.frame_gate, source.cu, i_b, i_start_f, source.s_rb, source.s_rn)
        p_r += o_f.to(tl.int64) * source.s_rn
        b_r = tl.load(p_r, mask=m_f, other=0.0).to(tl.float32)
        token_gate = first_row(source.token_gate, sequences.cu, i_b, i_start, source.s_pb, source.s_pn)
        frames = first_row(source.frames, source.cu, i_b, i_start_f, source.s_xb, source.s_xn)
        d_mean_row = d_mean + i_start * size
        count = count_frames(source.mask, i_b, n_f, length_f, BLOCK_F)
        if i_task == 0:
            b_dr = tl.zeros([BLOCK_F], dtype=tl.float32)
            for i_n in range(0, n, BLOCK_N):
                o_n = i_n + tl.arange(0, BLOCK_N)
                m_n = valid(sequences.mask, i_b, o_n, n, length)
                b_p = tl.load(token_gate + o_n.to(tl.int64) * source.s_pn, mask=m_n, other=0.0).to(tl.float32)
                b_u = tl.zeros([BLOCK_F, BLOCK_N], dtype=tl.float32)
                b_u = _dot_frames(
                    b_u, frames, source.s_xn, o_f, m_f, d_mean_row, size, o_n, m_n, size, PRECISION, BLOCK_X
                )
                b_u = b_u * gate_slope(b_r[:, None] + b_p[None, :], ACTIVATION)
                b_dr += tl.sum(tl.where(m_f[:, None] & m_n[None, :], b_u, 0.0), 1)
            b_dr = (b_dr / count).to(gradients.frame_gate.dtype.element_ty)
            tl.store(gradients.frame_gate + i_start_f + o_f, b_dr, mask=o_f < n_f)
        else:
            if gradients.frames is not None:
                b_dx = tl.zeros([BLOCK_F, BLOCK_X], dtype=tl.float32)
                for i_n in range(0, n, BLOCK_N):
                    o_n = i_n + tl.arange(0, BLOCK_N)
                    m_n = valid(sequences.mask, i_b, o_n, n, length)
                    b_p = tl.load(token_gate + o_n.to(tl.int64) * source.s_pn, mask=m_n, other=0.0).to(tl.float32)
                    b_g = gate(b_r[:, None] + b_p[None, :], ACTIVATION)  # [BLOCK_F, BLOCK_N]
                    b_g = tl.where(m_f[:, None] & m_n[None, :], b_g, 0.0)
                    b_dm = load_rows(d_mean_row, o_n, m_n, size, o_x, m_x)  # [BLOCK_N, BLOCK_X]
                    b_dx = dot(b_g.to(b_dm.dtype), b_dm, b_dx, PRECISION)
                p_dx = gradients.frames + i_start_f * size
                store_rows(p_dx, b_dx / count, o_f, o_f < n_f, size, o_x, m_x)

    if source.cu is not None:
        i_first, i_last = share_of_tail(source.cu, n_batch, n_frame_rows, tl.program_id(0), tl.num_programs(0))
        if i_task == 0:
            zero_vector(gradients.frame_gate, i_first, i_last, BLOCK_F)
            if gradients.frames is not None:
                zero_rows(gradients.frames, size, i_first, i_last, size, BLOCK_F, BLOCK_X)
