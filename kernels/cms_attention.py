"""Fused CMS attention in Triton: Eq. 1-7 of the paper, forward and backward. Tensors in, tensors out.

What is computed, per sequence (N tokens, N_m frames of size d_m) and head (d_h = D / H)::

    m_i = 1/N_m sum_j act(p_i + r_j) x_j         the mean frame: the sum over frames runs in d_m dimensions, not in D
    a_i = W_v m^v_i + W_a m^a_i                  the shift, the same for q, k and v
    z   = softmax((q + a)(k + a)^T scale) (v + a)

and backward, with dq, dk, dv from attention: ``da = dq + dk + dv``; ``dW = da^T m`` (one matrix product over all
tokens, left to the caller); ``dm = W^T da``, summed over all heads; ``u_ij = act'(p_i + r_j) <dm_i, x_j> / N_m``;
``dp_i = sum_j u_ij``; ``dr_j = sum_i u_ij``; ``dx_j = 1/N_m sum_i act(p_i + r_j) dm_i``. No floating-point atomics:
every sum lies within one program, in a fixed order.

Launches. By the longest sequence a call is

* short (64 tokens, 16-bit, a modality): forward is one launch, a program serving one sequence and HEADS heads in
  single tiles. Backward is two: attention for (sequence, heads), recomputing a and the probabilities, then the gates
  for (sequence, modality), where one program sees all tokens and all frames. Neither z nor the log-sum-exp is kept;
  only m is.
* medium (128 tokens; float32 and plain attention up to there): forward is one launch over several tiles. The shift
  goes through memory: each program writes a for its own heads, passes a barrier and reads it back. Backward as for
  long ones.
* long (anything else; 4,096 tokens, 16,384 frames, frame size 768 and more): forward is two launches, m and a for
  tiles of tokens, then attention that adds a to every tile of q, k and v it loads. Backward: queries, keys, and for
  each modality tokens and frames. m, a and the log-sum-exp are kept: O(N D).

Packed and padded batches share the source: a sequence is a first row and a length, from ``cu`` or from the shape, and
a position counts if it lies within and its mask, if there is one, says so. Rows beyond ``cu[-1]`` are zeroed in equal
shares by all programs. Offsets of rows, heads and sequences are 64-bit, within a tile's row 32-bit.

Where a program reads back from memory what its other threads wrote, a barrier lies between. On NVIDIA it orders global
memory among them, as PTX's ``bar.sync`` does; on AMD too, by fences of workgroup scope (which for AMD
``tests/kernels/test_aot.py`` reads) and because CDNA runs a workgroup on one compute unit. RDNA is refused.

Cost, computed for B = 128, N = N_v = N_a = 50, H = 12, d_h = 64, d_v = 47, d_a = 74, bfloat16, at 4.0 TB/s and 800
TFLOP/s, taken as attainable on an H200 (nominally 4.8 TB/s and 989 TFLOP/s, dense); memory traffic without re-reads:

========  ==================================================================  =======  ============  ==========
pass      what moves                                                          bytes    operations    bound by
========  ==================================================================  =======  ============  ==========
forward   q, k, v 29.5 MB; z 9.8; frames 1.5; m 1.6; weights and gates 0.3    42.8 MB  5.2 GFLOP     memory:
          (in 64-wide tiles: attention and shift 4.0 GFLOP, m 1.2)                                   10.7 us
backward  q, k, v, dz 39.3; dq, dk, dv, da 39.3; m 3.3; da again for the      103 MB   10.3 GFLOP    memory:
          gates 9.8 and for dW 9.8 (mostly still in cache); frames 1.5                               26 us
========  ==================================================================  =======  ============  ==========

Operations are those of whole tiles: 2.3 times the true ones forward. In packed form with MOSI's 15 tokens on average
the traffic falls to about a third while a tile stays a tile: short sequences are then bound by operations, not by
memory.

Alternatives weighed, by the same arithmetic:

* The augmented product ``[X, m] [W_QKV; W_shift x 3]`` before any fast attention: attention moves the same 39 MB, but
  m needs its own launches (gates, two batched products, in padded form), concatenating [X, m] moves 23 MB more, and
  the QKV product grows by 3.8 GFLOP. It is the best plain PyTorch can do, and the rival that the benchmark measures.
* The shift computed once a layer and added on load: 20 MB more forward (a written and read once: 15.6 us instead of
  10.7), no recomputation. This is what long sequences do, because there each key tile's shift would be recomputed by
  every query tile: (d_v + d_a) / (2 BLOCK_M) times the work of attention itself.
* Recomputed for each group of heads: m costs 1.6 MFLOP a program, so HEADS = 2 spends 1.2 GFLOP (1.5 us) on it and
  keeps 768 programs for some 130 multiprocessors. HEADS = 12 would spend 0.2 GFLOP, but leave a program per sequence:
  fewer programs than multiprocessors. Chosen for short sequences.
* One 128-row tile for 65 to 128 tokens: ahead-of-time compiles spilled 344 bytes a thread forward and 1,152 backward
  (sm_90, float16, 8 warps), several tiles none.
* True float32 in the tiles of 16-bit numbers: 7,088 bytes spilled (sm_80, 8 warps), 128 with the products summed in
  parts of 16 (:func:`_dot`), none with 32-row tiles on top.

The figures of time are computed, not measured. Tiles, warps and heads a program come from
``cms_attention_table.json``; its rows were chosen by registers and spills of ahead-of-time compiles.
``tune_cms_attention.py`` chooses by time on a device.
"""

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Forward takes one launch up to these lengths, frame counts and frame sizes, and two beyond. "Short" is what fits into
# one tile, "medium" what takes several, "long" what takes two launches. float32 tiles are too large to be short.
SHORT_TOKENS, MEDIUM_TOKENS, ONE_LAUNCH_FRAMES, ONE_LAUNCH_FRAME_SIZE = 64, 128, 512, 128
SHORT_ITEM_SIZE = 2
MAX_HEAD_SIZE = 128

LOG2_E = tl.constexpr(math.log2(math.e))

# Philox 4x32 passes the usual test batteries from 7 rounds on; fewer rounds than Triton's default 10 cost less.
PHILOX_ROUNDS = tl.constexpr(7)

# Arguments that change from batch to batch: no kernel is compiled anew because one of them is 1 or a multiple of 16.
_COUNTS = ["n_batch", "n_rows", "n_rows_v", "n_rows_a", "n_frame_rows", "n_tiles", "length", "length_v", "length_a",
           "length_f", "threshold"]  # fmt: skip


# ------------------------------------------------------------------ helpers inlined into the kernels


@triton.jit
def _extent(cu, i_b, length):
    """First row (int64, in the flat order of rows) and number of rows of sequence ``i_b``, packed or padded."""
    if cu is not None:
        i_start = tl.load(cu + i_b)
        n = tl.load(cu + i_b + 1) - i_start
    else:
        i_start = i_b.to(tl.int64) * length
        n = length
    return i_start.to(tl.int64), n


@triton.jit
def _first(x, cu, i_b, i_start, s_b, s_n):
    """Pointer to the first row of sequence ``i_b`` of a strided tensor."""
    if cu is not None:
        return x + i_start * s_n
    else:
        return x + i_b.to(tl.int64) * s_b


@triton.jit
def _valid(mask, i_b, o_n, n, length):
    """Which of the positions ``o_n`` exist and are not masked."""
    m_n = o_n < n
    if mask is not None:
        m_n = m_n & (tl.load(mask + i_b.to(tl.int64) * length + o_n, mask=m_n, other=0) != 0)
    return m_n


@triton.jit
def _count(mask, i_b, n, length, BLOCK: tl.constexpr):
    """Number of valid frames, at least 1, as float32."""
    if mask is not None:
        b_count = tl.zeros([BLOCK], dtype=tl.int32)
        for i_f in range(0, n, BLOCK):
            b_count += _valid(mask, i_b, i_f + tl.arange(0, BLOCK), n, length).to(tl.int32)
        count = tl.sum(b_count, 0)
    else:
        count = n
    return tl.maximum(count, 1).to(tl.float32)


@triton.jit
def _rows(x, o_n, m_n, s_n, o_d, m_d):
    """Loads a tile of rows [len(o_n), len(o_d)]; 0 where masked."""
    return tl.load(x + o_n.to(tl.int64)[:, None] * s_n + o_d[None, :], mask=m_n[:, None] & m_d[None, :], other=0.0)


@triton.jit
def _store_rows(x, b_x, o_n, m_n, s_n, o_d, m_d):
    """Stores a tile of rows."""
    p_x = x + o_n.to(tl.int64)[:, None] * s_n + o_d[None, :]
    tl.store(p_x, b_x.to(x.dtype.element_ty), mask=m_n[:, None] & m_d[None, :])


@triton.jit
def _zero_rows(x, s_n, i_first, i_last, n_columns, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes zeros to rows [i_first, i_last) (int64) and columns [0, n_columns)."""
    for i_n in range(0, (i_last - i_first).to(tl.int32), BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = i_first + o_n < i_last
        for i_d in range(0, n_columns, BLOCK_D):
            o_d = i_d + tl.arange(0, BLOCK_D)
            b_zero = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
            _store_rows(x + i_first * s_n, b_zero, o_n, m_n, s_n, o_d, o_d < n_columns)


@triton.jit
def _zero_vector(x, i_first, i_last, BLOCK_N: tl.constexpr):
    """Writes zeros to elements [i_first, i_last) (int64)."""
    for i_n in range(0, (i_last - i_first).to(tl.int32), BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        tl.store(x + i_first + o_n, tl.zeros([BLOCK_N], dtype=x.dtype.element_ty), mask=i_first + o_n < i_last)


@triton.jit
def _share_of_tail(cu, n_batch, n_rows, i_program, n_programs):
    """The part [first, last) that this program has of the rows from ``cu[-1]`` to the end, which belong to nobody."""
    i_end = tl.load(cu + n_batch).to(tl.int64)
    share = tl.cdiv(n_rows - i_end, n_programs)
    i_first = i_end + share * i_program
    return i_first, tl.minimum(i_first + share, n_rows)


@triton.jit
def _dot(b_x, b_y, b_acc, PRECISION: tl.constexpr):
    """b_acc + x y, or x y where ``b_acc`` is None.

    "split" is true float32 on NVIDIA, which has no tensor cores for it: a thread would hold its rows of x and columns
    of y in registers along the whole inner dimension, so that is halved until it is 16.
    """
    if PRECISION == "split":
        if b_x.shape[1] > 16:
            HALF: tl.constexpr = b_x.shape[1] // 2
            b_x0, b_x1 = tl.split(tl.permute(tl.reshape(b_x, [b_x.shape[0], 2, HALF]), (0, 2, 1)))
            b_y0, b_y1 = tl.split(tl.permute(tl.reshape(b_y, [2, HALF, b_y.shape[1]]), (1, 2, 0)))
            return _dot(b_x1, b_y1, _dot(b_x0, b_y0, b_acc, PRECISION), PRECISION)
        else:
            return tl.dot(b_x, b_y, b_acc, input_precision="ieee")
    else:
        return tl.dot(b_x, b_y, b_acc, input_precision=PRECISION)


@triton.jit
def _gate(b_s, ACTIVATION: tl.constexpr):
    """act(s)."""
    if ACTIVATION == "relu":
        return tl.where(b_s < 0, 0.0, b_s)  # unlike a maximum, keeps NaN on a GPU
    elif ACTIVATION == "sigmoid":
        return 1.0 / (1.0 + tl.exp2(b_s * -LOG2_E))
    else:
        b_t = tl.exp2(tl.abs(b_s) * (-2.0 * LOG2_E))
        b_g = (1.0 - b_t) / (1.0 + b_t)
        return tl.where(b_s < 0, -b_g, b_g)


@triton.jit
def _gate_slope(b_s, ACTIVATION: tl.constexpr):
    """act'(s); that of relu is 0 at 0, as in PyTorch."""
    if ACTIVATION == "relu":
        return tl.where(b_s > 0, 1.0, 0.0)
    elif ACTIVATION == "sigmoid":
        b_g = _gate(b_s, ACTIVATION)
        return b_g * (1.0 - b_g)
    else:
        b_g = _gate(b_s, ACTIVATION)
        return 1.0 - b_g * b_g


@triton.jit
def _mean_frame(
    b_p, frame_gate, frames, mask, cu, i_b, length, s_gb, s_gn, s_xb, s_xn, o_d, m_d,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """m_i = 1/N_m sum_j act(p_i + r_j) x_j of a tile of tokens, [BLOCK_N, BLOCK_D] in the dtype of the frames."""
    i_start, n = _extent(cu, i_b, length)
    frame_gate = _first(frame_gate, cu, i_b, i_start, s_gb, s_gn)
    frames = _first(frames, cu, i_b, i_start, s_xb, s_xn)
    b_m = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for i_f in range(0, n, BLOCK_F):
        o_f = i_f + tl.arange(0, BLOCK_F)
        m_f = _valid(mask, i_b, o_f, n, length)
        b_r = tl.load(frame_gate + o_f.to(tl.int64) * s_gn, mask=m_f, other=0.0).to(tl.float32)  # [BLOCK_F]
        b_g = _gate(b_p[:, None] + b_r[None, :], ACTIVATION)  # [BLOCK_N, BLOCK_F]
        b_x = _rows(frames, o_f, m_f, s_xn, o_d, m_d)  # [BLOCK_F, BLOCK_D], 0 where the frame does not count
        b_m = _dot(b_g.to(b_x.dtype), b_x, b_m, PRECISION)
    return (b_m / _count(mask, i_b, n, length, BLOCK_F)).to(frames.dtype.element_ty)


@triton.jit
def _keep(seed, i_b, i_h, o_q, o_k, threshold):
    """Dropout's decisions for queries ``o_q`` and keys ``o_k``: one is a column [M, 1], the other a row [1, N].

    The counter is (key, query, head, sequence), each by its position.
    """
    b_k = o_k + o_q * 0
    b_q = o_q + o_k * 0
    b_random, _, _, _ = tl.philox(seed, b_k, b_q, b_k * 0 + i_h, b_k * 0 + i_b, PHILOX_ROUNDS)
    return (b_random >> 8).to(tl.int32) >= threshold


# ------------------------------------------------------------------ short sequences: one launch forward, two backward


@triton.jit(do_not_specialize=_COUNTS)
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
    i_start, n = _extent(cu, i_b, length)
    o_n = tl.arange(0, BLOCK_N)
    m_n = _valid(mask, i_b, o_n, n, length)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < head_size
    o_v = tl.arange(0, BLOCK_V)
    o_a = tl.arange(0, BLOCK_A)

    # The mean frames are the same for all heads: once a program.
    if frames_v is not None:
        p_p = _first(token_gate_v, cu, i_b, i_start, s_pvb, s_pvn) + o_n.to(tl.int64) * s_pvn
        b_p = tl.load(p_p, mask=m_n, other=0.0).to(tl.float32)
        b_mv = _mean_frame(
            b_p, frame_gate_v, frames_v, mask_v, cu_v, i_b, length_v, s_rvb, s_rvn, s_xvb, s_xvn, o_v, o_v < size_v,
            ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCK_V,
        )  # fmt: skip  # [BLOCK_N, BLOCK_V]
        b_mv = tl.where(m_n[:, None], b_mv, 0.0)
        if i_g == 0:
            _store_rows(mean + i_start * s_mean, b_mv, o_n, o_n < n, s_mean, o_v, o_v < i_mean_a)
    if frames_a is not None:
        p_p = _first(token_gate_a, cu, i_b, i_start, s_pab, s_pan) + o_n.to(tl.int64) * s_pan
        b_p = tl.load(p_p, mask=m_n, other=0.0).to(tl.float32)
        b_ma = _mean_frame(
            b_p, frame_gate_a, frames_a, mask_a, cu_a, i_b, length_a, s_rab, s_ran, s_xab, s_xan, o_a, o_a < size_a,
            ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCK_A,
        )  # fmt: skip  # [BLOCK_N, BLOCK_A]
        b_ma = tl.where(m_n[:, None], b_ma, 0.0)
        if i_g == 0:
            p_mean = mean + i_start * s_mean + i_mean_a
            _store_rows(p_mean, b_ma, o_n, o_n < n, s_mean, o_a, o_a < s_mean - i_mean_a)

    q = _first(q, cu, i_b, i_start, s_qb, s_qn)
    k = _first(k, cu, i_b, i_start, s_kb, s_kn)
    v = _first(v, cu, i_b, i_start, s_vb, s_vn)
    s_out = n_heads * head_size
    for i_head in range(tl.minimum(HEADS, n_heads - i_g * HEADS)):
        i_h = i_g * HEADS + i_head
        i_h64 = i_h.to(tl.int64)
        b_shift = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
        if frames_v is not None:
            b_w = _rows(weight_v + i_h64 * head_size * s_wv, o_d, m_d, s_wv, o_v, o_v < size_v)  # [BLOCK_D, BLOCK_V]
            b_shift = _dot(b_mv, tl.trans(b_w), b_shift, PRECISION)
        if frames_a is not None:
            b_w = _rows(weight_a + i_h64 * head_size * s_wa, o_d, m_d, s_wa, o_a, o_a < size_a)  # [BLOCK_D, BLOCK_A]
            b_shift = _dot(b_ma, tl.trans(b_w), b_shift, PRECISION)
        b_q = _rows(q + i_h64 * s_qh, o_n, m_n, s_qn, o_d, m_d)  # [BLOCK_N, BLOCK_D]
        b_q = (b_q + b_shift).to(q.dtype.element_ty)
        b_k = _rows(k + i_h64 * s_kh, o_n, m_n, s_kn, o_d, m_d)
        b_k = (b_k + b_shift).to(k.dtype.element_ty)
        b_s = _dot(b_q, tl.trans(b_k), None, PRECISION) * (scale * LOG2_E)  # [BLOCK_N, BLOCK_N]
        b_s = tl.where(m_n[None, :], b_s, -float("inf"))
        b_s = tl.exp2(b_s - tl.max(b_s, 1)[:, None])
        b_sum = tl.sum(b_s, 1)
        if seed is not None:
            b_keep = _keep(tl.load(seed), i_b, i_h, o_n[:, None], o_n[None, :], threshold)
            b_s = tl.where(b_keep, b_s * keep_scale, 0.0)
        b_v = _rows(v + i_h64 * s_vh, o_n, m_n, s_vn, o_d, m_d)
        b_v = (b_v + b_shift).to(v.dtype.element_ty)
        b_z = _dot(b_s.to(v.dtype.element_ty), b_v, None, PRECISION) / b_sum[:, None]
        b_z = tl.where(m_n[:, None], b_z, 0.0)
        _store_rows(out + i_start * s_out + i_h64 * head_size, b_z, o_n, o_n < n, s_out, o_d, m_d)

    if cu is not None:
        i_first, i_last = _share_of_tail(cu, n_batch, n_rows, i_b, n_batch)
        if i_first < i_last:
            i_column = i_g * HEADS * head_size
            n_columns = tl.minimum(HEADS * head_size, s_out - i_column)
            _zero_rows(out + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)
            if (i_g == 0) & (s_mean > 0):
                _zero_rows(mean, s_mean, i_first, i_last, s_mean, BLOCK_N, BLOCK_D)


@triton.jit(do_not_specialize=_COUNTS)
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
    i_start, n = _extent(cu, i_b, length)
    o_n = tl.arange(0, BLOCK_N)
    m_n = _valid(mask, i_b, o_n, n, length)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < head_size
    o_v = tl.arange(0, BLOCK_V)
    o_a = tl.arange(0, BLOCK_A)

    q = _first(q, cu, i_b, i_start, s_qb, s_qn)
    k = _first(k, cu, i_b, i_start, s_kb, s_kn)
    v = _first(v, cu, i_b, i_start, s_vb, s_vn)
    d_out = _first(d_out, cu, i_b, i_start, s_ob, s_on)
    s_out = n_heads * head_size
    # Known to be a single turn, the loop leaves sm_80 the registers it would spill otherwise.
    for i_head in range(1 if HEADS == 1 else tl.minimum(HEADS, n_heads - i_g * HEADS)):
        i_h = i_g * HEADS + i_head
        i_h64 = i_h.to(tl.int64)
        b_shift = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
        if weight_v is not None:
            b_m = _rows(mean + i_start * s_mean, o_n, m_n, s_mean, o_v, o_v < size_v)  # [BLOCK_N, BLOCK_V]
            b_w = _rows(weight_v + i_h64 * head_size * s_wv, o_d, m_d, s_wv, o_v, o_v < size_v)  # [BLOCK_D, BLOCK_V]
            b_shift = _dot(b_m, tl.trans(b_w), b_shift, PRECISION)
        if weight_a is not None:
            b_m = _rows(mean + i_start * s_mean + i_mean_a, o_n, m_n, s_mean, o_a, o_a < size_a)  # [BLOCK_N, BLOCK_A]
            b_w = _rows(weight_a + i_h64 * head_size * s_wa, o_d, m_d, s_wa, o_a, o_a < size_a)  # [BLOCK_D, BLOCK_A]
            b_shift = _dot(b_m, tl.trans(b_w), b_shift, PRECISION)
        b_q = (_rows(q + i_h64 * s_qh, o_n, m_n, s_qn, o_d, m_d) + b_shift).to(q.dtype.element_ty)
        b_k = (_rows(k + i_h64 * s_kh, o_n, m_n, s_kn, o_d, m_d) + b_shift).to(k.dtype.element_ty)
        b_v = (_rows(v + i_h64 * s_vh, o_n, m_n, s_vn, o_d, m_d) + b_shift).to(v.dtype.element_ty)
        b_do = _rows(d_out + i_h64 * s_oh, o_n, m_n, s_on, o_d, m_d).to(v.dtype.element_ty)  # [BLOCK_N, BLOCK_D]

        # The whole row of probabilities is at hand: neither z nor the log-sum-exp need be kept from forward.
        b_s = _dot(b_q, tl.trans(b_k), None, PRECISION) * (scale * LOG2_E)  # [BLOCK_N, BLOCK_N]
        b_s = tl.where(m_n[None, :], b_s, -float("inf"))
        b_s = tl.exp2(b_s - tl.max(b_s, 1)[:, None])
        b_s = tl.where(m_n[:, None] & m_n[None, :], b_s / tl.sum(b_s, 1)[:, None], 0.0)
        b_ds = _dot(b_do, tl.trans(b_v), None, PRECISION)  # [BLOCK_N, BLOCK_N]
        if seed is not None:
            b_keep = _keep(tl.load(seed), i_b, i_h, o_n[:, None], o_n[None, :], threshold)
            b_kept = tl.where(b_keep, b_s * keep_scale, 0.0).to(v.dtype.element_ty)
            b_ds = tl.where(b_keep, b_ds * keep_scale, 0.0)
        else:
            b_kept = b_s.to(v.dtype.element_ty)
        b_dv = _dot(tl.trans(b_kept), b_do, None, PRECISION)  # [BLOCK_N, BLOCK_D]
        b_ds = (b_s * (b_ds - tl.sum(b_s * b_ds, 1)[:, None])).to(q.dtype.element_ty)
        b_dk = _dot(tl.trans(b_ds), b_q, None, PRECISION) * scale
        b_dq = _dot(b_ds, b_k, None, PRECISION) * scale

        i_out = i_start * s_out + i_h64 * head_size
        m_row = o_n < n
        _store_rows(dq + i_out, b_dq, o_n, m_row, s_out, o_d, m_d)
        _store_rows(dk + i_out, b_dk, o_n, m_row, s_out, o_d, m_d)
        _store_rows(dv + i_out, b_dv, o_n, m_row, s_out, o_d, m_d)
        if d_shift is not None:
            _store_rows(d_shift + i_out, b_dq + b_dk + b_dv, o_n, m_row, s_out, o_d, m_d)

    if cu is not None:
        i_first, i_last = _share_of_tail(cu, n_batch, n_rows, i_b, n_batch)
        if i_first < i_last:
            i_column = i_g * HEADS * head_size
            n_columns = tl.minimum(HEADS * head_size, s_out - i_column)
            _zero_rows(dq + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)
            _zero_rows(dk + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)
            _zero_rows(dv + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)
            if d_shift is not None:
                _zero_rows(d_shift + i_column, s_out, i_first, i_last, n_columns, BLOCK_N, BLOCK_D)


@triton.jit
def _short_gate_backward(
    i_b, d_shift, cu, mask, token_gate, frame_gate, frames, weight, cu_f, mask_f, d_token_gate, d_frame_gate, d_frames,
    s_pb, s_pn, s_rb, s_rn, s_xb, s_xn, s_w,
    n_batch, n_rows, n_frame_rows, length, length_f, hidden_size, size,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """One modality of :func:`short_gate_backward_kernel`."""
    i_start, n = _extent(cu, i_b, length)
    o_n = tl.arange(0, BLOCK_N)
    m_n = _valid(mask, i_b, o_n, n, length)
    o_x = tl.arange(0, BLOCK_X)
    m_x = o_x < size

    # dm = sum over all heads of W^T da
    b_dm = tl.zeros([BLOCK_N, BLOCK_X], dtype=tl.float32)
    for i_c in range(0, hidden_size, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        b_da = _rows(d_shift + i_start * hidden_size, o_n, m_n, hidden_size, o_c, o_c < hidden_size)
        b_w = _rows(weight, o_c, o_c < hidden_size, s_w, o_x, m_x)  # [BLOCK_C, BLOCK_X]
        b_dm = _dot(b_da, b_w, b_dm, PRECISION)
    i_start_f, n_f = _extent(cu_f, i_b, length_f)
    b_dm = (b_dm / _count(mask_f, i_b, n_f, length_f, BLOCK_F)).to(frames.dtype.element_ty)  # [BLOCK_N, BLOCK_X]

    p_p = _first(token_gate, cu, i_b, i_start, s_pb, s_pn) + o_n.to(tl.int64) * s_pn
    b_p = tl.load(p_p, mask=m_n, other=0.0).to(tl.float32)
    frame_gate = _first(frame_gate, cu_f, i_b, i_start_f, s_rb, s_rn)
    frames = _first(frames, cu_f, i_b, i_start_f, s_xb, s_xn)
    b_dp = tl.zeros([BLOCK_N], dtype=tl.float32)
    for i_f in range(0, n_f, BLOCK_F):
        o_f = i_f + tl.arange(0, BLOCK_F)
        m_f = _valid(mask_f, i_b, o_f, n_f, length_f)
        b_r = tl.load(frame_gate + o_f.to(tl.int64) * s_rn, mask=m_f, other=0.0).to(tl.float32)
        b_s = b_p[:, None] + b_r[None, :]  # [BLOCK_N, BLOCK_F]
        m_s = m_n[:, None] & m_f[None, :]
        b_x = _rows(frames, o_f, m_f, s_xn, o_x, m_x)  # [BLOCK_F, BLOCK_X]
        b_u = _dot(b_dm, tl.trans(b_x), None, PRECISION)  # [BLOCK_N, BLOCK_F]
        b_u = tl.where(m_s, b_u * _gate_slope(b_s, ACTIVATION), 0.0)
        b_dp += tl.sum(b_u, 1)
        p_dr = d_frame_gate + i_start_f + o_f
        tl.store(p_dr, tl.sum(b_u, 0).to(d_frame_gate.dtype.element_ty), mask=o_f < n_f)
        if d_frames is not None:
            b_g = tl.where(m_s, _gate(b_s, ACTIVATION), 0.0).to(b_x.dtype)
            b_dx = _dot(tl.trans(b_g), b_dm, None, PRECISION)  # [BLOCK_F, BLOCK_X]
            _store_rows(d_frames + i_start_f * size, b_dx, o_f, o_f < n_f, size, o_x, m_x)
    tl.store(d_token_gate + i_start + o_n, b_dp.to(d_token_gate.dtype.element_ty), mask=o_n < n)

    if cu is not None:
        i_first, i_last = _share_of_tail(cu, n_batch, n_rows, i_b, n_batch)
        _zero_vector(d_token_gate, i_first, i_last, BLOCK_N)
        i_first, i_last = _share_of_tail(cu_f, n_batch, n_frame_rows, i_b, n_batch)
        _zero_vector(d_frame_gate, i_first, i_last, BLOCK_F)
        if d_frames is not None:
            _zero_rows(d_frames, size, i_first, i_last, size, BLOCK_F, BLOCK_X)


@triton.jit(do_not_specialize=_COUNTS)
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


# ------------------------------------------------------------------ sequences of any length: two launches forward


@triton.jit
def _shift_source(
    i_b, i_n, mean, cu, mask, token_gate, frame_gate, frames, cu_f, mask_f,
    s_mean, s_pb, s_pn, s_rb, s_rn, s_xb, s_xn, length, length_f, size, n_columns,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Writes the mean frames of one modality for the tokens from ``i_n`` on, BLOCK_X columns at a time."""
    i_start, n = _extent(cu, i_b, length)
    o_n = i_n + tl.arange(0, BLOCK_N)
    m_n = _valid(mask, i_b, o_n, n, length)
    p_p = _first(token_gate, cu, i_b, i_start, s_pb, s_pn) + o_n.to(tl.int64) * s_pn
    b_p = tl.load(p_p, mask=m_n, other=0.0).to(tl.float32)
    for i_x in range(0, n_columns, BLOCK_X):
        o_x = i_x + tl.arange(0, BLOCK_X)
        b_m = _mean_frame(
            b_p, frame_gate, frames, mask_f, cu_f, i_b, length_f, s_rb, s_rn, s_xb, s_xn, o_x, o_x < size,
            ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCK_X,
        )  # fmt: skip
        b_m = tl.where(m_n[:, None], b_m, 0.0)
        _store_rows(mean + i_start * s_mean, b_m, o_n, o_n < n, s_mean, o_x, o_x < n_columns)


@triton.jit
def _add_shift(
    b_shift, mean, weight, o_n, m_n, o_d, m_d, s_mean, s_w, size,
    PRECISION: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """b_shift + m W^T of one modality, m read from memory."""
    for i_x in range(0, size, BLOCK_X):
        o_x = i_x + tl.arange(0, BLOCK_X)
        b_m = _rows(mean, o_n, m_n, s_mean, o_x, o_x < size)  # [BLOCK_N, BLOCK_X]
        b_w = _rows(weight, o_d, m_d, s_w, o_x, o_x < size)  # [BLOCK_D, BLOCK_X]
        b_shift = _dot(b_m, tl.trans(b_w), b_shift, PRECISION)
    return b_shift


@triton.jit(do_not_specialize=_COUNTS)
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
    i_start, n = _extent(cu, i_b, length)
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
            _store_rows(shift + i_start * hidden_size, b_shift, o_n, m_n, hidden_size, o_d, m_d)

    if cu is not None:
        i_first, i_last = _share_of_tail(cu, n_batch, n_rows, tl.program_id(0), tl.num_programs(0))
        _zero_rows(mean, s_mean, i_first, i_last, s_mean, BLOCK_N, BLOCK_D)
        _zero_rows(shift, hidden_size, i_first, i_last, hidden_size, BLOCK_N, BLOCK_D)


@triton.jit
def _shifted(x, shift, o_n, m_n, s_n, s_shift, o_d, m_d):
    """A tile of q', k' or v' = x + a; x alone where no modality is present."""
    b_x = _rows(x, o_n, m_n, s_n, o_d, m_d)
    if shift is not None:
        b_x = (b_x.to(tl.float32) + _rows(shift, o_n, m_n, s_shift, o_d, m_d).to(tl.float32)).to(x.dtype.element_ty)
    return b_x


@triton.jit
def _attend(
    i_b, i_h, i_m, q, k, v, shift, out, lse, cu, mask, seed,
    s_qb, s_qn, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh,
    n_rows, length, n_heads, head_size, scale, keep_scale, threshold,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attention of the BLOCK_M queries from ``i_m`` on over q + a, k + a, v + a; writes z and the log-sum-exp."""
    i_start, n = _extent(cu, i_b, length)
    i_h64 = i_h.to(tl.int64)
    s_out = n_heads * head_size
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < head_size
    q = _first(q, cu, i_b, i_start, s_qb, s_qn) + i_h64 * s_qh
    k = _first(k, cu, i_b, i_start, s_kb, s_kn) + i_h64 * s_kh
    v = _first(v, cu, i_b, i_start, s_vb, s_vn) + i_h64 * s_vh
    if shift is not None:
        shift = shift + i_start * s_out + i_h64 * head_size
    o_m = i_m + tl.arange(0, BLOCK_M)
    m_m = _valid(mask, i_b, o_m, n, length)
    b_q = _shifted(q, shift, o_m, m_m, s_qn, s_out, o_d, m_d)  # [BLOCK_M, BLOCK_D]
    b_z = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    b_max = tl.full([BLOCK_M], -float("inf"), dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    for i_n in range(0, n, BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = _valid(mask, i_b, o_n, n, length)
        b_k = _shifted(k, shift, o_n, m_n, s_kn, s_out, o_d, m_d)  # [BLOCK_N, BLOCK_D]
        b_s = _dot(b_q, tl.trans(b_k), None, PRECISION) * (scale * LOG2_E)  # [BLOCK_M, BLOCK_N]
        b_s = tl.where(m_n[None, :], b_s, -float("inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_safe = tl.where(b_new == -float("inf"), 0.0, b_new)  # no valid key so far
        b_old = tl.exp2(b_max - b_safe)
        b_s = tl.exp2(b_s - b_safe[:, None])
        b_sum = b_sum * b_old + tl.sum(b_s, 1)
        if seed is not None:
            b_s = tl.where(_keep(tl.load(seed), i_b, i_h, o_m[:, None], o_n[None, :], threshold), b_s * keep_scale, 0.0)
        b_v = _shifted(v, shift, o_n, m_n, s_vn, s_out, o_d, m_d)  # [BLOCK_N, BLOCK_D]
        b_z = _dot(b_s.to(b_v.dtype), b_v, b_z * b_old[:, None], PRECISION)
        b_max = b_new
    b_sum = tl.where(m_m, b_sum, 1.0)
    b_z = tl.where(m_m[:, None], b_z / b_sum[:, None], 0.0)
    _store_rows(out + i_start * s_out + i_h64 * head_size, b_z, o_m, o_m < n, s_out, o_d, m_d)
    b_lse = tl.where(m_m, b_max + tl.log2(b_sum), 0.0)
    tl.store(lse + i_h64 * n_rows + i_start + o_m, b_lse, mask=o_m < n)


@triton.jit(do_not_specialize=_COUNTS)
def attention_forward_kernel(
    q, k, v, shift, out, lse, cu, mask, seed,
    s_qb, s_qn, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh,
    n_batch, n_rows, n_tiles, length, n_heads, head_size, scale, keep_scale, threshold,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attention of BLOCK_M queries over q + a, k + a, v + a. Grid (B n_tiles, H).

    ``lse`` (H, rows) gets the log-sum-exp to base 2.
    """
    i_b, i_m, i_h = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles * BLOCK_M, tl.program_id(1)
    _, n = _extent(cu, i_b, length)
    if i_m < n:
        _attend(
            i_b, i_h, i_m, q, k, v, shift, out, lse, cu, mask, seed,
            s_qb, s_qn, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh,
            n_rows, length, n_heads, head_size, scale, keep_scale, threshold, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip

    if cu is not None:
        i_first, i_last = _share_of_tail(cu, n_batch, n_rows, tl.program_id(0), tl.num_programs(0))
        s_out = n_heads * head_size
        _zero_rows(out + i_h.to(tl.int64) * head_size, s_out, i_first, i_last, head_size, BLOCK_M, BLOCK_D)
        _zero_vector(lse + i_h.to(tl.int64) * n_rows, i_first, i_last, BLOCK_M)


@triton.jit(do_not_specialize=_COUNTS)
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
    i_start, n = _extent(cu, i_b, length)
    s_out = n_heads * head_size
    o_v = tl.arange(0, BLOCK_V)
    o_a = tl.arange(0, BLOCK_A)
    n_mine = tl.minimum(HEADS, n_heads - i_g * HEADS)
    i_column = i_g.to(tl.int64) * HEADS * head_size  # of this program's heads
    if shift is not None:
        for i_m in range(0, n, BLOCK_M):
            o_m = i_m + tl.arange(0, BLOCK_M)
            m_m = _valid(mask, i_b, o_m, n, length)
            if frames_v is not None:
                p_p = _first(token_gate_v, cu, i_b, i_start, s_pvb, s_pvn) + o_m.to(tl.int64) * s_pvn
                b_p = tl.load(p_p, mask=m_m, other=0.0).to(tl.float32)
                b_mv = _mean_frame(
                    b_p, frame_gate_v, frames_v, mask_v, cu_v, i_b, length_v, s_rvb, s_rvn, s_xvb, s_xvn, o_v,
                    o_v < size_v, ACTIVATION, PRECISION, BLOCK_M, BLOCK_F, BLOCK_V,
                )  # fmt: skip  # [BLOCK_M, BLOCK_V]
                b_mv = tl.where(m_m[:, None], b_mv, 0.0)
                if i_g == 0:
                    _store_rows(mean + i_start * s_mean, b_mv, o_m, o_m < n, s_mean, o_v, o_v < i_mean_a)
            if frames_a is not None:
                p_p = _first(token_gate_a, cu, i_b, i_start, s_pab, s_pan) + o_m.to(tl.int64) * s_pan
                b_p = tl.load(p_p, mask=m_m, other=0.0).to(tl.float32)
                b_ma = _mean_frame(
                    b_p, frame_gate_a, frames_a, mask_a, cu_a, i_b, length_a, s_rab, s_ran, s_xab, s_xan, o_a,
                    o_a < size_a, ACTIVATION, PRECISION, BLOCK_M, BLOCK_F, BLOCK_A,
                )  # fmt: skip  # [BLOCK_M, BLOCK_A]
                b_ma = tl.where(m_m[:, None], b_ma, 0.0)
                if i_g == 0:
                    p_mean = mean + i_start * s_mean + i_mean_a
                    _store_rows(p_mean, b_ma, o_m, o_m < n, s_mean, o_a, o_a < s_mean - i_mean_a)
            for i_c in range(0, n_mine * head_size, BLOCK_C):
                o_c = i_c + tl.arange(0, BLOCK_C)
                m_c = o_c < n_mine * head_size
                b_shift = tl.zeros([BLOCK_M, BLOCK_C], dtype=tl.float32)
                if frames_v is not None:
                    b_w = _rows(weight_v + i_column * s_wv, o_c, m_c, s_wv, o_v, o_v < size_v)  # [BLOCK_C, BLOCK_V]
                    b_shift = _dot(b_mv, tl.trans(b_w), b_shift, PRECISION)
                if frames_a is not None:
                    b_w = _rows(weight_a + i_column * s_wa, o_c, m_c, s_wa, o_a, o_a < size_a)  # [BLOCK_C, BLOCK_A]
                    b_shift = _dot(b_ma, tl.trans(b_w), b_shift, PRECISION)
                _store_rows(shift + i_start * s_out + i_column, b_shift, o_m, o_m < n, s_out, o_c, m_c)
        tl.debug_barrier()
    for i_head in range(n_mine):
        for i_m in range(0, n, BLOCK_M):
            _attend(
                i_b, i_g * HEADS + i_head, i_m, q, k, v, shift, out, lse, cu, mask, seed,
                s_qb, s_qn, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh,
                n_rows, length, n_heads, head_size, scale, keep_scale, threshold, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
            )  # fmt: skip

    if cu is not None:
        i_first, i_last = _share_of_tail(cu, n_batch, n_rows, i_b, n_batch)
        if i_first < i_last:
            _zero_rows(out + i_column, s_out, i_first, i_last, n_mine * head_size, BLOCK_M, BLOCK_D)
            if shift is not None:
                _zero_rows(shift + i_column, s_out, i_first, i_last, n_mine * head_size, BLOCK_M, BLOCK_D)
            for i_head in range(n_mine):
                _zero_vector(lse + (i_g * HEADS + i_head).to(tl.int64) * n_rows, i_first, i_last, BLOCK_M)
            if (i_g == 0) & (s_mean > 0):
                _zero_rows(mean, s_mean, i_first, i_last, s_mean, BLOCK_M, BLOCK_D)


@triton.jit(do_not_specialize=_COUNTS)
def attention_backward_query_kernel(
    q, k, v, shift, out, lse, cu, mask, seed, d_out, dq, delta,
    s_qb, s_qn, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh, s_ob, s_on, s_oh,
    n_batch, n_rows, n_tiles, length, n_heads, head_size, scale, keep_scale, threshold,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq and delta = <z, dz> (H, rows) of BLOCK_M queries. Grid (B n_tiles, H)."""
    i_b, i_m, i_h = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles * BLOCK_M, tl.program_id(1)
    i_start, n = _extent(cu, i_b, length)
    i_h64 = i_h.to(tl.int64)
    s_out = n_heads * head_size
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < head_size
    if i_m < n:
        q = _first(q, cu, i_b, i_start, s_qb, s_qn) + i_h64 * s_qh
        k = _first(k, cu, i_b, i_start, s_kb, s_kn) + i_h64 * s_kh
        v = _first(v, cu, i_b, i_start, s_vb, s_vn) + i_h64 * s_vh
        d_out = _first(d_out, cu, i_b, i_start, s_ob, s_on) + i_h64 * s_oh
        i_out = i_start * s_out + i_h64 * head_size
        if shift is not None:
            shift = shift + i_out
        o_m = i_m + tl.arange(0, BLOCK_M)
        m_m = _valid(mask, i_b, o_m, n, length)
        b_q = _shifted(q, shift, o_m, m_m, s_qn, s_out, o_d, m_d)  # [BLOCK_M, BLOCK_D]
        b_do = _rows(d_out, o_m, m_m, s_on, o_d, m_d).to(q.dtype.element_ty)  # [BLOCK_M, BLOCK_D]
        b_z = _rows(out + i_out, o_m, m_m, s_out, o_d, m_d)
        b_delta = tl.sum(b_do.to(tl.float32) * b_z.to(tl.float32), 1)  # [BLOCK_M]
        i_lse = i_h64 * n_rows + i_start
        b_lse = tl.load(lse + i_lse + o_m, mask=m_m, other=0.0)
        b_dq = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        for i_n in range(0, n, BLOCK_N):
            o_n = i_n + tl.arange(0, BLOCK_N)
            m_n = _valid(mask, i_b, o_n, n, length)
            b_k = _shifted(k, shift, o_n, m_n, s_kn, s_out, o_d, m_d)  # [BLOCK_N, BLOCK_D]
            b_s = _dot(b_q, tl.trans(b_k), None, PRECISION) * (scale * LOG2_E)  # [BLOCK_M, BLOCK_N]
            b_s = tl.where(m_m[:, None] & m_n[None, :], tl.exp2(b_s - b_lse[:, None]), 0.0)
            b_v = _shifted(v, shift, o_n, m_n, s_vn, s_out, o_d, m_d)  # [BLOCK_N, BLOCK_D]
            b_ds = _dot(b_do, tl.trans(b_v), None, PRECISION)
            if seed is not None:
                b_ds = tl.where(
                    _keep(tl.load(seed), i_b, i_h, o_m[:, None], o_n[None, :], threshold), b_ds * keep_scale, 0.0
                )
            b_ds = (b_s * (b_ds - b_delta[:, None])).to(b_k.dtype)
            b_dq = _dot(b_ds, b_k, b_dq, PRECISION)
        _store_rows(dq + i_out, b_dq * scale, o_m, o_m < n, s_out, o_d, m_d)
        tl.store(delta + i_lse + o_m, b_delta, mask=o_m < n)

    if cu is not None:
        i_first, i_last = _share_of_tail(cu, n_batch, n_rows, tl.program_id(0), tl.num_programs(0))
        _zero_rows(dq + i_h64 * head_size, s_out, i_first, i_last, head_size, BLOCK_M, BLOCK_D)


@triton.jit(do_not_specialize=_COUNTS)
def attention_backward_key_kernel(
    q, k, v, shift, lse, delta, cu, mask, seed, d_out, dq, dk, dv, d_shift,
    s_qb, s_qn, s_qh, s_kb, s_kn, s_kh, s_vb, s_vn, s_vh, s_ob, s_on, s_oh,
    n_batch, n_rows, n_tiles, length, n_heads, head_size, scale, keep_scale, threshold,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dk, dv and, with dq at hand, da = dq + dk + dv of BLOCK_N keys. Grid (B n_tiles, H)."""
    i_b, i_n, i_h = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles * BLOCK_N, tl.program_id(1)
    i_start, n = _extent(cu, i_b, length)
    i_h64 = i_h.to(tl.int64)
    s_out = n_heads * head_size
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < head_size
    if i_n < n:
        q = _first(q, cu, i_b, i_start, s_qb, s_qn) + i_h64 * s_qh
        k = _first(k, cu, i_b, i_start, s_kb, s_kn) + i_h64 * s_kh
        v = _first(v, cu, i_b, i_start, s_vb, s_vn) + i_h64 * s_vh
        d_out = _first(d_out, cu, i_b, i_start, s_ob, s_on) + i_h64 * s_oh
        i_out = i_start * s_out + i_h64 * head_size
        if shift is not None:
            shift = shift + i_out
        i_lse = i_h64 * n_rows + i_start
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = _valid(mask, i_b, o_n, n, length)
        b_k = _shifted(k, shift, o_n, m_n, s_kn, s_out, o_d, m_d)  # [BLOCK_N, BLOCK_D]
        b_v = _shifted(v, shift, o_n, m_n, s_vn, s_out, o_d, m_d)  # [BLOCK_N, BLOCK_D]
        b_dk = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
        b_dv = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
        for i_m in range(0, n, BLOCK_M):
            o_m = i_m + tl.arange(0, BLOCK_M)
            m_m = _valid(mask, i_b, o_m, n, length)
            b_q = _shifted(q, shift, o_m, m_m, s_qn, s_out, o_d, m_d)  # [BLOCK_M, BLOCK_D]
            b_do = _rows(d_out, o_m, m_m, s_on, o_d, m_d).to(b_q.dtype)  # [BLOCK_M, BLOCK_D]
            b_lse = tl.load(lse + i_lse + o_m, mask=m_m, other=0.0)
            b_delta = tl.load(delta + i_lse + o_m, mask=m_m, other=0.0)
            # Transposed, so that dv and dk take the probabilities as they come.
            b_s = _dot(b_k, tl.trans(b_q), None, PRECISION) * (scale * LOG2_E)  # [BLOCK_N, BLOCK_M]
            b_s = tl.where(m_n[:, None] & m_m[None, :], tl.exp2(b_s - b_lse[None, :]), 0.0)
            b_ds = _dot(b_v, tl.trans(b_do), None, PRECISION)
            if seed is not None:
                b_keep = _keep(tl.load(seed), i_b, i_h, o_m[None, :], o_n[:, None], threshold)
                b_kept = tl.where(b_keep, b_s * keep_scale, 0.0).to(b_do.dtype)
                b_ds = tl.where(b_keep, b_ds * keep_scale, 0.0)
            else:
                b_kept = b_s.to(b_do.dtype)
            b_dv = _dot(b_kept, b_do, b_dv, PRECISION)
            b_ds = (b_s * (b_ds - b_delta[None, :])).to(b_q.dtype)
            b_dk = _dot(b_ds, b_q, b_dk, PRECISION)
        b_dk *= scale
        m_row = o_n < n
        _store_rows(dk + i_out, b_dk, o_n, m_row, s_out, o_d, m_d)
        _store_rows(dv + i_out, b_dv, o_n, m_row, s_out, o_d, m_d)
        if d_shift is not None:
            b_dq = _rows(dq + i_out, o_n, m_row, s_out, o_d, m_d).to(tl.float32)
            _store_rows(d_shift + i_out, b_dq + b_dk + b_dv, o_n, m_row, s_out, o_d, m_d)

    if cu is not None:
        i_first, i_last = _share_of_tail(cu, n_batch, n_rows, tl.program_id(0), tl.num_programs(0))
        _zero_rows(dk + i_h64 * head_size, s_out, i_first, i_last, head_size, BLOCK_N, BLOCK_D)
        _zero_rows(dv + i_h64 * head_size, s_out, i_first, i_last, head_size, BLOCK_N, BLOCK_D)
        if d_shift is not None:
            _zero_rows(d_shift + i_h64 * head_size, s_out, i_first, i_last, head_size, BLOCK_N, BLOCK_D)


@triton.jit
def _dot_rows(b_acc, x, y, o_m, m_m, s_x, o_n, m_n, s_y, size, PRECISION: tl.constexpr, BLOCK_X: tl.constexpr):
    """b_acc + <x_m, y_n> for tiles of rows of x and y, read BLOCK_X columns at a time."""
    for i_x in range(0, size, BLOCK_X):
        o_x = i_x + tl.arange(0, BLOCK_X)
        b_x = _rows(x, o_m, m_m, s_x, o_x, o_x < size)
        b_y = _rows(y, o_n, m_n, s_y, o_x, o_x < size)
        b_acc = _dot(b_x, tl.trans(b_y), b_acc, PRECISION)
    return b_acc


@triton.jit(do_not_specialize=_COUNTS)
def gate_backward_token_kernel(
    d_mean, cu, mask, token_gate, frame_gate, frames, cu_f, mask_f, d_token_gate,
    s_pb, s_pn, s_rb, s_rn, s_xb, s_xn,
    n_batch, n_rows, n_tiles, length, length_f, size,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_X: tl.constexpr,
):  # fmt: skip
    """dp_i = 1/N_m sum_j act'(p_i + r_j) <dm_i, x_j> of BLOCK_N tokens. Grid (B n_tiles,)."""
    i_b, i_n = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles * BLOCK_N
    i_start, n = _extent(cu, i_b, length)
    if i_n < n:
        i_start_f, n_f = _extent(cu_f, i_b, length_f)
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = _valid(mask, i_b, o_n, n, length)
        p_p = _first(token_gate, cu, i_b, i_start, s_pb, s_pn) + o_n.to(tl.int64) * s_pn
        b_p = tl.load(p_p, mask=m_n, other=0.0).to(tl.float32)
        frame_gate = _first(frame_gate, cu_f, i_b, i_start_f, s_rb, s_rn)
        frames = _first(frames, cu_f, i_b, i_start_f, s_xb, s_xn)
        d_mean_row = d_mean + i_start * size
        b_dp = tl.zeros([BLOCK_N], dtype=tl.float32)
        for i_f in range(0, n_f, BLOCK_F):
            o_f = i_f + tl.arange(0, BLOCK_F)
            m_f = _valid(mask_f, i_b, o_f, n_f, length_f)
            b_r = tl.load(frame_gate + o_f.to(tl.int64) * s_rn, mask=m_f, other=0.0).to(tl.float32)
            b_u = tl.zeros([BLOCK_N, BLOCK_F], dtype=tl.float32)
            b_u = _dot_rows(b_u, d_mean_row, frames, o_n, m_n, size, o_f, m_f, s_xn, size, PRECISION, BLOCK_X)
            b_u = b_u * _gate_slope(b_p[:, None] + b_r[None, :], ACTIVATION)
            b_dp += tl.sum(tl.where(m_n[:, None] & m_f[None, :], b_u, 0.0), 1)
        b_dp = b_dp / _count(mask_f, i_b, n_f, length_f, BLOCK_F)
        tl.store(d_token_gate + i_start + o_n, b_dp.to(d_token_gate.dtype.element_ty), mask=o_n < n)

    if cu is not None:
        i_first, i_last = _share_of_tail(cu, n_batch, n_rows, tl.program_id(0), tl.num_programs(0))
        _zero_vector(d_token_gate, i_first, i_last, BLOCK_N)


@triton.jit(do_not_specialize=_COUNTS)
def gate_backward_frame_kernel(
    d_mean, cu, mask, token_gate, frame_gate, frames, cu_f, mask_f, d_frame_gate, d_frames,
    s_pb, s_pn, s_rb, s_rn, s_xb, s_xn,
    n_batch, n_frame_rows, n_tiles, length, length_f, size,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_X: tl.constexpr,
):  # fmt: skip
    """dr_j = 1/N_m sum_i act'(p_i + r_j) <dm_i, x_j> and dx_j = 1/N_m sum_i act(p_i + r_j) dm_i of BLOCK_F frames.

    Grid (B n_tiles, 1 + cdiv(size, BLOCK_X) or 1): program 0 of the last axis does dr, program 1 + c
    does columns [c BLOCK_X, (c + 1) BLOCK_X) of dx.
    """
    i_b, i_f, i_task = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles * BLOCK_F, tl.program_id(1)
    i_start_f, n_f = _extent(cu_f, i_b, length_f)
    o_x = (i_task - 1) * BLOCK_X + tl.arange(0, BLOCK_X)
    m_x = (o_x >= 0) & (o_x < size)
    if i_f < n_f:
        i_start, n = _extent(cu, i_b, length)
        o_f = i_f + tl.arange(0, BLOCK_F)
        m_f = _valid(mask_f, i_b, o_f, n_f, length_f)
        p_r = _first(frame_gate, cu_f, i_b, i_start_f, s_rb, s_rn) + o_f.to(tl.int64) * s_rn
        b_r = tl.load(p_r, mask=m_f, other=0.0).to(tl.float32)
        token_gate = _first(token_gate, cu, i_b, i_start, s_pb, s_pn)
        frames = _first(frames, cu_f, i_b, i_start_f, s_xb, s_xn)
        d_mean_row = d_mean + i_start * size
        count = _count(mask_f, i_b, n_f, length_f, BLOCK_F)
        if i_task == 0:
            b_dr = tl.zeros([BLOCK_F], dtype=tl.float32)
            for i_n in range(0, n, BLOCK_N):
                o_n = i_n + tl.arange(0, BLOCK_N)
                m_n = _valid(mask, i_b, o_n, n, length)
                b_p = tl.load(token_gate + o_n.to(tl.int64) * s_pn, mask=m_n, other=0.0).to(tl.float32)
                b_u = tl.zeros([BLOCK_F, BLOCK_N], dtype=tl.float32)
                b_u = _dot_rows(b_u, frames, d_mean_row, o_f, m_f, s_xn, o_n, m_n, size, size, PRECISION, BLOCK_X)
                b_u = b_u * _gate_slope(b_r[:, None] + b_p[None, :], ACTIVATION)
                b_dr += tl.sum(tl.where(m_f[:, None] & m_n[None, :], b_u, 0.0), 1)
            tl.store(d_frame_gate + i_start_f + o_f, (b_dr / count).to(d_frame_gate.dtype.element_ty), mask=o_f < n_f)
        else:
            if d_frames is not None:
                b_dx = tl.zeros([BLOCK_F, BLOCK_X], dtype=tl.float32)
                for i_n in range(0, n, BLOCK_N):
                    o_n = i_n + tl.arange(0, BLOCK_N)
                    m_n = _valid(mask, i_b, o_n, n, length)
                    b_p = tl.load(token_gate + o_n.to(tl.int64) * s_pn, mask=m_n, other=0.0).to(tl.float32)
                    b_g = _gate(b_r[:, None] + b_p[None, :], ACTIVATION)  # [BLOCK_F, BLOCK_N]
                    b_g = tl.where(m_f[:, None] & m_n[None, :], b_g, 0.0)
                    b_dm = _rows(d_mean_row, o_n, m_n, size, o_x, m_x)  # [BLOCK_N, BLOCK_X]
                    b_dx = _dot(b_g.to(b_dm.dtype), b_dm, b_dx, PRECISION)
                _store_rows(d_frames + i_start_f * size, b_dx / count, o_f, o_f < n_f, size, o_x, m_x)

    if cu_f is not None:
        i_first, i_last = _share_of_tail(cu_f, n_batch, n_frame_rows, tl.program_id(0), tl.num_programs(0))
        if i_task == 0:
            _zero_vector(d_frame_gate, i_first, i_last, BLOCK_F)
            if d_frames is not None:
                _zero_rows(d_frames, size, i_first, i_last, size, BLOCK_F, BLOCK_X)


# ------------------------------------------------------------------ launchers


class Modality(NamedTuple):
    """One modality of one call; shapes as in :class:`cmsbert_fast.ModalityShift`."""

    token_gate: Tensor
    frame_gate: Tensor
    frames: Tensor
    weight: Tensor
    cu_seqlens: Tensor | None
    mask: Tensor | None
    max_length: int


class Call(NamedTuple):
    """The arguments that forward and backward share. Shapes as in :func:`cmsbert_fast.cms_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    visual: Modality | None
    acoustic: Modality | None
    cu_seqlens: Tensor | None
    mask: Tensor | None
    max_length: int
    activation: str
    scale: float
    dropout_p: float
    seed: Tensor | None

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those present."""
        return tuple(m for m in (self.visual, self.acoustic) if m is not None)

    @property
    def rows(self) -> int:
        """T, or B * N in the padded form."""
        return math.prod(self.query.shape[:-2])

    @property
    def batch(self) -> int:
        """B."""
        return self.query.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def shape_class(self) -> str:
        """ "short", "medium" or "long"; follows from shapes alone."""
        one_launch = self.max_length <= MEDIUM_TOKENS and all(
            m.max_length <= ONE_LAUNCH_FRAMES and m.frames.shape[-1] <= ONE_LAUNCH_FRAME_SIZE for m in self.modalities
        )
        if not one_launch:
            return "long"
        one_tile = self.max_length <= SHORT_TOKENS and self.query.element_size() <= SHORT_ITEM_SIZE
        # Without a modality single tiles save nothing, and spill registers on sm_80.
        return "short" if one_tile and self.modalities else "medium"

    @property
    def mean_columns(self) -> tuple[int, int]:
        """Columns of the mean frames: where the acoustic ones begin, and how many there are in all.

        Each modality's are rounded up to 16 and the rest is 0, so that rows stay aligned for the matrix products.
        """
        first = 0 if self.visual is None else _round_up(self.visual.frames.shape[-1], 16)
        return first, first + (0 if self.acoustic is None else _round_up(self.acoustic.frames.shape[-1], 16))


class Saved(NamedTuple):
    """What forward keeps for backward; what a shape class does not need is empty."""

    mean: Tensor  # (rows, columns) m^v and m^a side by side
    shift: Tensor  # (rows, D) a; not of short sequences
    lse: Tensor  # (H, rows) log-sum-exp to base 2; not of short sequences


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _block(n: int) -> int:
    """The smallest tile edge that holds n; tl.dot wants 16 at least."""
    return max(16, 1 << (n - 1).bit_length())


def empty_outputs(call: Call) -> tuple[Tensor, Saved]:
    """Unwritten z and what is kept for backward; on any device, the meta device too."""
    q = call.query
    heads, head_size = q.shape[-2:]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    mean = torch.empty((call.rows, call.mean_columns[1]), dtype=q.dtype, device=q.device)
    long_rows = 0 if call.shape_class == "short" else call.rows
    shift_rows = long_rows if call.modalities else 0
    shift = torch.empty((shift_rows, heads * head_size), dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, long_rows), dtype=torch.float32, device=q.device)
    return out, Saved(mean, shift, lse)


@functools.cache
def table() -> list[dict[str, Any]]:
    """The committed table of tiles, warps and stages by shape class and device."""
    return json.loads(Path(__file__).with_name("cms_attention_table.json").read_text())["rows"]


@functools.cache
def configuration(kernel: str, device: str, item_size: int, tokens: int, head_size: int) -> dict[str, int]:
    """Tiles, warps and stages of a kernel: the table's tightest row that fits, of equal ones the very device's.

    Args:
        kernel: The kernel's name without ``_kernel``.
        device: See :func:`device_class`.
        item_size: Bytes of an element.
        tokens, head_size: Upper bounds of this call.
    """
    fitting = [
        row
        for row in table()
        if row["kernel"] == kernel and row["device"] in (device, "*") and row["item_size"] == item_size
        if row["tokens"] >= tokens and row["head_size"] >= head_size
    ]
    if not fitting:
        raise LookupError(
            f"cms_attention_table.json has no row for {kernel}, {item_size} bytes, head size {head_size}."
        )
    # Tightness first: what was tuned on this device for wide heads would take narrow ones' tiles over otherwise.
    return min(fitting, key=lambda row: (row["tokens"], row["head_size"], row["device"] == "*"))["config"]


@functools.cache
def device_class(device: torch.device) -> str:
    """The device's name in the table; "*" where nothing is known of it."""
    if device.type != "cuda":
        return "*"
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return nvidia_class(*torch.cuda.get_device_capability(device))


def nvidia_class(major: int, minor: int) -> str:
    """The name of an NVIDIA device in the table.

    Classes differ in matrix instructions and in the shared memory of a block: 163 KB on sm_80, 227 KB on sm_90 and
    sm_100, of which 11.0 is a variant. 99 KB are left to sm_86, and to 8.9 and 12.x, which take the same instructions;
    whatever is not known yet is taken for one of these, too.
    """
    if (major, minor) == (8, 0):
        return "sm_80"
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_86")


def _run(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], config: dict[str, int]) -> None:
    """Launches a kernel. Every launch of this module passes here: the compile tests listen in."""
    kernel[grid](**arguments, **config)


def _row_contiguous(x: Tensor) -> Tensor:
    """x itself where its last dimension is contiguous, as it is for every view a model makes; else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _token_strides(x: Tensor, packed: bool) -> tuple[int, int]:
    """Strides over sequences and rows; those of a packed tensor's sequences are unused."""
    return (0, x.stride(0)) if packed else (x.stride(0), x.stride(1))


def _head_strides(name: str, x: Tensor, packed: bool) -> dict[str, int]:
    s_b, s_n = _token_strides(x, packed)
    return {f"s_{name}b": s_b, f"s_{name}n": s_n, f"s_{name}h": x.stride(-2)}


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _modality_arguments(m: Modality | None, suffix: str, packed: bool) -> dict[str, Any]:
    """The kernels' arguments of one modality."""
    names = ("token_gate", "frame_gate", "frames", "weight", "cu", "mask")
    strides = ("s_pXb", "s_pXn", "s_rXb", "s_rXn", "s_xXb", "s_xXn", "s_wX")
    if m is None:
        values: tuple[Any, ...] = (None,) * 6
        sizes: tuple[int, ...] = (0,) * 7
        length = size = 0
    else:
        frames, weight = _row_contiguous(m.frames), _row_contiguous(m.weight)
        values = (m.token_gate, m.frame_gate, frames, weight, m.cu_seqlens, _bytes(m.mask))
        sizes = (
            *_token_strides(m.token_gate, packed),
            *_token_strides(m.frame_gate, packed),
            *_token_strides(frames, packed),
            weight.stride(0),
        )
        length, size = m.max_length, frames.shape[-1]
    arguments = {f"{name}_{suffix}": value for name, value in zip(names, values, strict=True)}
    arguments |= {name.replace("X", suffix): value for name, value in zip(strides, sizes, strict=True)}
    return arguments | {f"length_{suffix}": length, f"size_{suffix}": size}


class _Launcher:
    """The arguments that all kernels of one call take from the same place."""

    def __init__(self, call: Call):
        self.call = call
        self.device = device_class(call.query.device)
        self.item_size = call.query.element_size()
        self.packed = call.cu_seqlens is not None
        self.heads, self.head_size = call.query.shape[-2:]
        self.precision = "ieee"
        if call.query.dtype == torch.float32 and self.device.startswith("sm_"):
            # Unlike allow_tf32 this can be read whichever of PyTorch's two interfaces the user set it with.
            self.precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "split"
        query, key, value = (_row_contiguous(x) for x in (call.query, call.key, call.value))
        self.arguments: dict[str, Any] = {
            "q": query,
            "k": key,
            "v": value,
            "cu": call.cu_seqlens,
            "mask": _bytes(call.mask),
            "seed": call.seed if call.dropout_p > 0 else None,
            **_head_strides("q", query, self.packed),
            **_head_strides("k", key, self.packed),
            **_head_strides("v", value, self.packed),
            "n_batch": call.batch,
            "n_rows": call.rows,
            "length": call.max_length,
            "n_heads": self.heads,
            "head_size": self.head_size,
            "hidden_size": self.heads * self.head_size,
            "scale": call.scale,
            "keep_scale": 1.0 / (1.0 - call.dropout_p),
            "threshold": round(call.dropout_p * 2**24),
            "i_mean_a": call.mean_columns[0],
            "s_mean": call.mean_columns[1],
            **_modality_arguments(call.visual, "v", self.packed),
            **_modality_arguments(call.acoustic, "a", self.packed),
            "ACTIVATION": call.activation,
            "PRECISION": self.precision,
            "BLOCK_D": _block(self.head_size),
            "BLOCK_V": 16 if call.visual is None else _block(call.visual.frames.shape[-1]),
            "BLOCK_A": 16 if call.acoustic is None else _block(call.acoustic.frames.shape[-1]),
        }

    def config(self, name: str) -> dict[str, int]:
        """The table's row for this call."""
        return configuration(name, self.device, self.item_size, self.call.max_length, self.head_size)

    def token_tiles(self, block: int) -> int:
        """Tiles of a sequence's tokens; one even without tokens, for somebody must zero the rows of no sequence."""
        return max(1, triton.cdiv(self.call.max_length, block))

    def run(self, kernel: Any, grid: tuple[int, ...], config: dict[str, int], **more: Any) -> None:
        """Launches ``kernel`` with those of the arguments that it takes."""
        pool = self.arguments | more
        names = [name for name in kernel.arg_names if name not in config]
        _run(kernel, grid, {name: pool[name] for name in names}, config)


def forward(call: Call) -> tuple[Tensor, Saved]:
    """z (Eq. 1-7) and what backward needs: two launches for long sequences with a modality, else one.

    Args:
        call: Checked arguments; ``seed`` is (1,) int64 where ``dropout_p > 0``.

    Returns:
        z, contiguous, in the shape and dtype of ``call.query``; and what to hand to :func:`backward`.
    """
    out, saved = empty_outputs(call)
    if call.rows == 0 or call.batch == 0:
        return out.zero_(), saved
    launcher = _Launcher(call)
    outputs = {"out": out, "mean": saved.mean, "lse": saved.lse, "shift": saved.shift if call.modalities else None}
    if call.shape_class != "long":
        kernel = short_forward_kernel if call.shape_class == "short" else medium_forward_kernel
        config = launcher.config(f"{call.shape_class}_forward")
        grid = (call.batch, triton.cdiv(launcher.heads, config["HEADS"]))
        outputs = {"BLOCK_N": _block(call.max_length)} | outputs
        launcher.run(kernel, grid, config, **outputs)
        return out, saved
    if call.modalities:
        config = launcher.config("shift_forward")
        n_tiles = launcher.token_tiles(config["BLOCK_N"])
        launcher.run(shift_forward_kernel, (call.batch * n_tiles,), config, n_tiles=n_tiles, **outputs)
    config = launcher.config("attention_forward")
    n_tiles = launcher.token_tiles(config["BLOCK_M"])
    launcher.run(attention_forward_kernel, (call.batch * n_tiles, launcher.heads), config, n_tiles=n_tiles, **outputs)
    return out, saved


class Gradients(NamedTuple):
    """What backward returns; the weights' gradients follow from ``shift`` (da) and forward's mean frames."""

    query: Tensor
    key: Tensor
    value: Tensor
    shift: Tensor  # (rows, D); empty without a modality
    token_gates: tuple[Tensor, Tensor]  # visual, acoustic; empty where absent
    frame_gates: tuple[Tensor, Tensor]
    frames: tuple[Tensor, Tensor]  # empty where not asked for


def empty_gradients(call: Call, frames_wanted: tuple[bool, bool]) -> Gradients:
    """Unwritten gradients; on any device, the meta device too."""
    q = call.query
    options: dict[str, Any] = {"dtype": q.dtype, "device": q.device}
    dq, dk, dv = (torch.empty(q.shape, **options) for _ in range(3))
    hidden_size = q.shape[-2] * q.shape[-1]
    d_shift = torch.empty((call.rows if call.modalities else 0, hidden_size), **options)
    pair = (call.visual, call.acoustic)
    none = (0,)
    token_gates = tuple(torch.empty(none if m is None else m.token_gate.shape, **options) for m in pair)
    frame_gates = tuple(torch.empty(none if m is None else m.frame_gate.shape, **options) for m in pair)
    frames = tuple(
        torch.empty(m.frames.shape if m is not None and wanted else none, **options)
        for m, wanted in zip(pair, frames_wanted, strict=True)
    )
    return Gradients(dq, dk, dv, d_shift, token_gates, frame_gates, frames)  # type: ignore[arg-type]


def backward(
    call: Call, d_out: Tensor, out: Tensor | None, saved: Saved, frames_wanted: tuple[bool, bool]
) -> Gradients:
    """All gradients but the shift weights', which are ``da^T m``: one matrix product, left to the caller.

    Args:
        call: As in :func:`forward`.
        d_out: Gradient of z, any strides.
        out: z; None where the call's shape class is short.
        saved: From :func:`forward`.
        frames_wanted: Whether the visual and the acoustic frames want a gradient.
    """
    gradients = empty_gradients(call, frames_wanted)
    if call.rows == 0 or call.batch == 0:
        for gradient in (*gradients[:4], *gradients.token_gates, *gradients.frame_gates, *gradients.frames):
            gradient.zero_()
        return gradients
    launcher = _Launcher(call)
    d_out = _row_contiguous(d_out)
    shared = {
        "mean": saved.mean,
        "shift": saved.shift if call.modalities else None,
        "lse": saved.lse,
        "d_out": d_out,
        **_head_strides("o", d_out, launcher.packed),
        "dq": gradients.query,
        "dk": gradients.key,
        "dv": gradients.value,
        "d_shift": gradients.shift if call.modalities else None,
    }
    if call.shape_class == "short":
        config = launcher.config("short_backward")
        block_n = _block(call.max_length)
        grid = (call.batch, triton.cdiv(launcher.heads, config["HEADS"]))
        launcher.run(short_backward_kernel, grid, config, BLOCK_N=block_n, **shared)
        if call.modalities:
            config = launcher.config("short_gate_backward")
            more = _gate_gradients(call, gradients, frames_wanted)
            launcher.run(short_gate_backward_kernel, (call.batch, 2), config, BLOCK_N=block_n, **shared, **more)
        return gradients

    delta = torch.empty_like(saved.lse)
    config = launcher.config("attention_backward_query")
    n_tiles = launcher.token_tiles(config["BLOCK_M"])
    grid = (call.batch * n_tiles, launcher.heads)
    launcher.run(attention_backward_query_kernel, grid, config, n_tiles=n_tiles, out=out, delta=delta, **shared)
    config = launcher.config("attention_backward_key")
    n_tiles = launcher.token_tiles(config["BLOCK_N"])
    grid = (call.batch * n_tiles, launcher.heads)
    launcher.run(attention_backward_key_kernel, grid, config, n_tiles=n_tiles, delta=delta, **shared)
    for i, (m, suffix) in enumerate(((call.visual, "v"), (call.acoustic, "a"))):
        if m is not None:
            _long_gate_backward(launcher, gradients, i, m, suffix, frames_wanted[i])
    return gradients


def _gate_gradients(call: Call, gradients: Gradients, frames_wanted: tuple[bool, bool]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for i, (m, suffix) in enumerate(((call.visual, "v"), (call.acoustic, "a"))):
        present = m is not None
        arguments[f"d_token_gate_{suffix}"] = gradients.token_gates[i] if present else None
        arguments[f"d_frame_gate_{suffix}"] = gradients.frame_gates[i] if present else None
        arguments[f"d_frames_{suffix}"] = gradients.frames[i] if present and frames_wanted[i] else None
        arguments[f"n_rows_{suffix}"] = gradients.frame_gates[i].numel()
    return arguments


def _long_gate_backward(
    launcher: _Launcher, gradients: Gradients, i: int, m: Modality, suffix: str, frames_wanted: bool
) -> None:
    """dp, dr and the frames' gradient of one modality; <dm_i, x_j> is computed twice rather than stored."""
    pool = launcher.arguments
    batch, size = launcher.call.batch, m.frames.shape[-1]
    shared = {
        # One product of (rows, D) and (D, d_m) for all tiles: da rows of no sequence are 0, hence those of dm.
        "d_mean": gradients.shift @ m.weight,
        "d_token_gate": gradients.token_gates[i],
        "d_frame_gate": gradients.frame_gates[i],
        "d_frames": gradients.frames[i] if frames_wanted else None,
        "token_gate": pool[f"token_gate_{suffix}"],
        "frame_gate": pool[f"frame_gate_{suffix}"],
        "frames": pool[f"frames_{suffix}"],
        "cu_f": pool[f"cu_{suffix}"],
        "mask_f": pool[f"mask_{suffix}"],
        "length_f": m.max_length,
        "size": size,
        "n_frame_rows": m.frame_gate.numel(),
        **{f"s_{x}{axis}": pool[f"s_{x}{suffix}{axis}"] for x in "prx" for axis in "bn"},
    }
    config = launcher.config("gate_backward_token")
    n_tiles = launcher.token_tiles(config["BLOCK_N"])
    launcher.run(gate_backward_token_kernel, (batch * n_tiles,), config, n_tiles=n_tiles, **shared)
    if m.frame_gate.numel() > 0:
        config = launcher.config("gate_backward_frame")
        n_tiles = max(1, triton.cdiv(m.max_length, config["BLOCK_F"]))
        grid = (batch * n_tiles, 1 + (triton.cdiv(size, config["BLOCK_X"]) if frames_wanted else 0))
        launcher.run(gate_backward_frame_kernel, grid, config, n_tiles=n_tiles, **shared)
