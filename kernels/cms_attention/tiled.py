"""Mean frames and shifts of sequences of several tiles (Eq. 1-4), through memory. Launch plan: the package's docstring.

``shift_forward_kernel`` writes m and a of long sequences: tiles of tokens, all frames, all heads.
``medium_forward_kernel`` does that and the attention of its own heads in one launch.
"""

import triton
import triton.language as tl

from cmsbert_fast.kernels.cms_attention.arguments import COUNTS
from cmsbert_fast.kernels.cms_attention.attention import attend
from cmsbert_fast.kernels.cms_attention.gates import load_token_gates, mean_columns, mean_frame, shift_tile
from cmsbert_fast.kernels.common import (
    dot,
    extent,
    load_rows,
    share_of_tail,
    store_rows,
    valid,
    zero_rows,
    zero_vector,
)


@triton.jit
def _write_means(
    source, n_columns, i_b, i_n, sequences, mean, s_mean, length, length_f,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Writes the mean frames of one modality for the tokens from ``i_n`` on, BLOCK_X columns at a time."""
    i_start, n = extent(sequences.cu, i_b, length)
    o_n = i_n + tl.arange(0, BLOCK_N)
    m_n = valid(sequences.mask, i_b, o_n, n, length)
    b_p = load_token_gates(source, sequences.cu, i_b, i_start, o_n, m_n)
    for i_x in range(0, n_columns, BLOCK_X):
        o_x = i_x + tl.arange(0, BLOCK_X)
        b_m = mean_frame(b_p, m_n, source, i_b, length_f, o_x, ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCK_X)
        p_mean = mean + i_start * s_mean + source.i_mean
        store_rows(p_mean, b_m, o_n, o_n < n, s_mean, o_x, o_x < n_columns)


@triton.jit
def _shift_from_memory(
    sources, mean, s_mean, o_n, m_n, o_d, m_d,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """a = W_v m^v + W_a m^a [BLOCK_N, BLOCK_D], m read BLOCK_X columns at a time."""
    b_shift = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for i in tl.static_range(2):
        source = sources[i]
        if source.frames is not None:
            for i_x in range(0, source.size, BLOCK_X):
                o_x = i_x + tl.arange(0, BLOCK_X)
                m_x = o_x < source.size
                b_m = load_rows(mean + source.i_mean, o_n, m_n, s_mean, o_x, m_x)  # [BLOCK_N, BLOCK_X]
                b_w = load_rows(source.weight, o_d, m_d, source.s_w, o_x, m_x)  # [BLOCK_D, BLOCK_X]
                b_shift = dot(b_m, tl.trans(b_w), b_shift, PRECISION)
    return b_shift


@triton.jit(do_not_specialize=COUNTS)
def shift_forward_kernel(
    sequences, sources, shift, mean, n_batch, n_rows, n_tiles, length, length_v, length_a, hidden_size, s_mean,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """The mean frames m and the shift a = W_v m^v + W_a m^a of BLOCK_N tokens. Grid (B n_tiles,).

    A program writes its own rows of m and, after a barrier, reads them back: m may be wider than registers are many.
    ``shift`` is None: only m.
    """
    i_b, i_n = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles * BLOCK_N
    i_start, n = extent(sequences.cu, i_b, length)
    if i_n < n:
        lengths = (length_v, length_a)
        for i in tl.static_range(2):
            if sources[i].frames is not None:
                _write_means(
                    sources[i], mean_columns(sources, i, s_mean), i_b, i_n, sequences, mean, s_mean, length, lengths[i],
                    ACTIVATION, PRECISION, BLOCK_N, BLOCK_F, BLOCK_X,
                )  # fmt: skip
        if shift is not None:
            tl.debug_barrier()
            o_n = i_n + tl.arange(0, BLOCK_N)
            m_n = o_n < n
            p_mean = mean + i_start * s_mean
            for i_d in range(0, hidden_size, BLOCK_D):
                o_d = i_d + tl.arange(0, BLOCK_D)
                m_d = o_d < hidden_size
                b_shift = _shift_from_memory(
                    sources, p_mean, s_mean, o_n, m_n, o_d, m_d, PRECISION, BLOCK_N, BLOCK_D, BLOCK_X
                )
                store_rows(shift + i_start * hidden_size, b_shift, o_n, m_n, hidden_size, o_d, m_d)

    if sequences.cu is not None:
        i_first, i_last = share_of_tail(sequences.cu, n_batch, n_rows, tl.program_id(0), tl.num_programs(0))
        zero_rows(mean, s_mean, i_first, i_last, s_mean, BLOCK_N, BLOCK_D)
        if shift is not None:
            zero_rows(shift, hidden_size, i_first, i_last, hidden_size, BLOCK_N, BLOCK_D)


@triton.jit(do_not_specialize=COUNTS)
def zero_tail_kernel(
    out, lse, sequences, n_batch, n_rows, head_size, hidden_size, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Zeroes a head's columns of the rows of no sequence, in equal shares. Packed form. Grid (any number, H)."""
    i_first, i_last = share_of_tail(sequences.cu, n_batch, n_rows, tl.program_id(0), tl.num_programs(0))
    i_h = tl.program_id(1)
    zero_rows(out + i_h * head_size, hidden_size, i_first, i_last, head_size, BLOCK_N, BLOCK_D)
    zero_vector(lse + i_h.to(tl.int64) * n_rows, i_first, i_last, BLOCK_N)


@triton.jit
def _write_shift(
    i_b, i_g, i_start, n, i_column, n_mine, sequences, sources, shift, mean, length, length_v, length_a,
    head_size, s_out, s_mean,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, HEADS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_C: tl.constexpr, BLOCKS_X: tl.constexpr,
):  # fmt: skip
    """Writes the shift of the ``n_mine`` heads of a program for a whole sequence; program 0 writes the mean frames."""
    lengths = (length_v, length_a)
    o_xs = (tl.arange(0, BLOCKS_X[0]), tl.arange(0, BLOCKS_X[1]))
    for i_m in range(0, n, BLOCK_M):
        o_m = i_m + tl.arange(0, BLOCK_M)
        m_m = valid(sequences.mask, i_b, o_m, n, length)
        b_means = ()
        for i in tl.static_range(2):
            source = sources[i]
            b_m = 0  # never read
            if source.frames is not None:
                o_x = o_xs[i]
                b_p = load_token_gates(source, sequences.cu, i_b, i_start, o_m, m_m)
                b_m = mean_frame(
                    b_p, m_m, source, i_b, lengths[i], o_x, ACTIVATION, PRECISION, BLOCK_M, BLOCK_F, BLOCKS_X[i]
                )  # [BLOCK_M, BLOCKS_X[i]]
                if i_g == 0:
                    p_mean = mean + i_start * s_mean + source.i_mean
                    store_rows(p_mean, b_m, o_m, o_m < n, s_mean, o_x, o_x < mean_columns(sources, i, s_mean))
            b_means = b_means + (b_m,)
        for i_c in range(0, n_mine * head_size, BLOCK_C):
            o_c = i_c + tl.arange(0, BLOCK_C)
            m_c = o_c < n_mine * head_size
            b_shift = shift_tile(b_means, sources, i_column, o_c, m_c, PRECISION, BLOCK_M, BLOCK_C, BLOCKS_X)
            store_rows(shift + i_start * s_out + i_column, b_shift, o_m, o_m < n, s_out, o_c, m_c)


@triton.jit(do_not_specialize=COUNTS)
def medium_forward_kernel(
    shift, out, mean, lse, sequences, sources, dropout, q, k, v, n_batch, n_rows, length, length_v, length_a,
    n_heads, head_size, s_mean, scale, threshold,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, HEADS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCKS_X: tl.constexpr,
):  # fmt: skip
    """Gates, mean frame, shift and attention of one sequence and HEADS heads, several tiles. Grid (B, cdiv(H, HEADS)).

    A program writes the shift of its own heads and, after a barrier, reads it back tile by tile.
    """
    i_b, i_g = tl.program_id(0), tl.program_id(1)
    i_start, n = extent(sequences.cu, i_b, length)
    s_out = n_heads * head_size
    i_column = i_g.to(tl.int64) * HEADS * head_size  # of this program's heads
    n_mine = tl.minimum(HEADS, n_heads - i_g * HEADS)
    if shift is not None:
        _write_shift(
            i_b, i_g, i_start, n, i_column, n_mine, sequences, sources, shift, mean, length, length_v, length_a,
            head_size, s_out, s_mean,
            ACTIVATION, PRECISION, HEADS, BLOCK_M, BLOCK_F, BLOCK_C, BLOCKS_X,
        )  # fmt: skip
        tl.debug_barrier()
    for i_head in range(n_mine):
        for i_m in range(0, n, BLOCK_M):
            attend(
                q, k, v, sequences, dropout, shift, out, lse, i_b, i_g * HEADS + i_head, i_m,
                n_rows, length, n_heads, head_size, scale, threshold, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
            )  # fmt: skip

    if sequences.cu is not None:
        i_first, i_last = share_of_tail(sequences.cu, n_batch, n_rows, i_b, n_batch)
        if i_first < i_last:
            zero_rows(out + i_column, s_out, i_first, i_last, n_mine * head_size, BLOCK_M, BLOCK_D)
            if shift is not None:
                zero_rows(shift + i_column, s_out, i_first, i_last, n_mine * head_size, BLOCK_M, BLOCK_D)
            for i_head in range(n_mine):
                zero_vector(lse + (i_g * HEADS + i_head).to(tl.int64) * n_rows, i_first, i_last, BLOCK_M)
            if (i_g == 0) & (s_mean > 0):
                zero_rows(mean, s_mean, i_first, i_last, s_mean, BLOCK_M, BLOCK_D)
