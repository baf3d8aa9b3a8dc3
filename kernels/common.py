"""What the project's Triton kernels share: device functions that are inlined into them, and helpers of their launchers.

Names inside kernels: ``i_`` an index, ``o_`` offsets, ``m_`` masks, ``p_`` pointers, ``b_`` tiles, ``s_`` strides,
``n`` counts; a tile's shape stands beside it. Offsets of rows and sequences are 64-bit; within a row they are 32-bit.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(math.log2(math.e))
# Philox 4x32 passes the usual test batteries from 7 rounds on; fewer rounds than Triton's default 10 cost less.
PHILOX_ROUNDS = tl.constexpr(7)

# ------------------------------------------------------------------ inside kernels: sequences and their rows


@triton.jit
def extent(cu, i_b, length):
    """First row (int64, in the flat order of rows) and number of rows of sequence ``i_b``, packed or padded."""
    if cu is not None:
        i_start = tl.load(cu + i_b)
        n = tl.load(cu + i_b + 1) - i_start
    else:
        i_start = i_b.to(tl.int64) * length
        n = length
    return i_start.to(tl.int64), n


@triton.jit
def first_row(x, cu, i_b, i_start, s_b, s_n):
    """Pointer to the first row of sequence ``i_b`` of a strided tensor."""
    if cu is not None:
        return x + i_start * s_n
    else:
        return x + i_b.to(tl.int64) * s_b


@triton.jit
def valid(mask, i_b, o_n, n, length):
    """Which of the positions ``o_n`` exist and are not masked."""
    m_n = o_n < n
    if mask is not None:
        m_n = m_n & (tl.load(mask + i_b.to(tl.int64) * length + o_n, mask=m_n, other=0) != 0)
    return m_n


@triton.jit
def load_rows(x, o_n, m_n, s_n, o_d, m_d):
    """Loads a tile of rows [len(o_n), len(o_d)]; 0 where masked."""
    return tl.load(x + o_n.to(tl.int64)[:, None] * s_n + o_d[None, :], mask=m_n[:, None] & m_d[None, :], other=0.0)


@triton.jit
def store_rows(x, b_x, o_n, m_n, s_n, o_d, m_d):
    """Stores a tile of rows, cast to the dtype of ``x``."""
    p_x = x + o_n.to(tl.int64)[:, None] * s_n + o_d[None, :]
    tl.store(p_x, b_x.to(x.dtype.element_ty), mask=m_n[:, None] & m_d[None, :])


# ------------------------------------------------------------------ inside kernels: rows that belong to no sequence


@triton.jit
def share_of_tail(cu, n_batch, n_rows, i_program, n_programs):
    """The part [first, last) that this program has of the rows from ``cu[-1]`` on, which belong to no sequence."""
    i_end = tl.load(cu + n_batch).to(tl.int64)
    share = tl.cdiv(n_rows - i_end, n_programs)
    i_first = i_end + share * i_program
    return i_first, tl.minimum(i_first + share, n_rows)


@triton.jit
def zero_rows(x, s_n, i_first, i_last, n_columns, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes zeros to rows [i_first, i_last) (int64) and columns [0, n_columns)."""
    for i_n in range(0, (i_last - i_first).to(tl.int32), BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = i_first + o_n < i_last
        for i_d in range(0, n_columns, BLOCK_D):
            o_d = i_d + tl.arange(0, BLOCK_D)
            b_zero = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
            store_rows(x + i_first * s_n, b_zero, o_n, m_n, s_n, o_d, o_d < n_columns)


@triton.jit
def zero_vector(x, i_first, i_last, BLOCK_N: tl.constexpr):
    """Writes zeros to elements [i_first, i_last) (int64)."""
    for i_n in range(0, (i_last - i_first).to(tl.int32), BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        tl.store(x + i_first + o_n, tl.zeros([BLOCK_N], dtype=x.dtype.element_ty), mask=i_first + o_n < i_last)


# ------------------------------------------------------------------ inside kernels: matrix products


@triton.jit
def dot(b_x, b_y, b_acc, PRECISION: tl.constexpr):
    """b_acc + x y, or x y where ``b_acc`` is None; ``PRECISION`` as :func:`dot_precision` gives it.

    "split" is float32 to the last bit on NVIDIA, which has no tensor cores for it: a thread would hold its rows of x
    and columns of y in registers along the whole inner dimension, so that is halved until it is 16.
    """
    if PRECISION == "split":
        if b_x.shape[1] > 16:
            HALF: tl.constexpr = b_x.shape[1] // 2
            b_x0, b_x1 = tl.split(tl.permute(tl.reshape(b_x, [b_x.shape[0], 2, HALF]), (0, 2, 1)))
            b_y0, b_y1 = tl.split(tl.permute(tl.reshape(b_y, [2, HALF, b_y.shape[1]]), (1, 2, 0)))
            return dot(b_x1, b_y1, dot(b_x0, b_y0, b_acc, PRECISION), PRECISION)
        else:
            return tl.dot(b_x, b_y, b_acc, input_precision="ieee")
    else:
        return tl.dot(b_x, b_y, b_acc, input_precision=PRECISION)


# ------------------------------------------------------------------ inside kernels: dropout


@triton.jit
def keep(seed, i_b, i_h, o_q, o_k, threshold):
    """Dropout's decisions for queries ``o_q`` and keys ``o_k``: one is a column [M, 1], the other a row [1, N].

    The counter is (key, query, head, sequence), each by its position.
    """
    b_k = o_k + o_q * 0
    b_q = o_q + o_k * 0
    b_random, _, _, _ = tl.philox(seed, b_k, b_q, b_k * 0 + i_h, b_k * 0 + i_b, PHILOX_ROUNDS)
    return (b_random >> 8).to(tl.int32) >= threshold


# ------------------------------------------------------------------ launchers

# How the products of a kernel are taken. IEEE is float32 to the last bit on AMD, and what 16-bit products ignore; SPLIT
# is the same in parts, for NVIDIA; TF32X3 is three TF32 products, nearly float32; TF32 has ten bits. `dot` spells the
# first two out: a kernel cannot read these names.
IEEE, SPLIT, TF32X3, TF32 = "ieee", "split", "tf32x3", "tf32"


def dot_precision(dtype: torch.dtype, device: str, exact: str) -> str:
    """How a kernel takes its products: in float32's precision, unless PyTorch was told that TF32 will do.

    Args:
        dtype: Of the factors.
        device: See :func:`device_class`.
        exact: What the kernel does for float32 on NVIDIA, ``SPLIT`` or ``TF32X3``.
    """
    if dtype != torch.float32 or not device.startswith("sm_"):
        return IEEE
    # Unlike allow_tf32 and get_float32_matmul_precision, this can be read whichever of PyTorch's interfaces set it.
    return TF32 if torch.backends.cuda.matmul.fp32_precision == "tf32" else exact


def device_class(device: torch.device) -> str:
    """The device's name in the table of tiles, "sm_90" or "gfx942"; "*" where nothing is known of it."""
    if device.type != "cuda":
        return "*"
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return nvidia_class(*torch.cuda.get_device_capability(device))


def nvidia_class(major: int, minor: int) -> str:
    """The name of an NVIDIA device in the table of tiles.

    Classes differ in matrix instructions and in the shared memory of a block: 163 KB on sm_80, 227 KB on sm_90 and
    sm_100, of which 11.0 is a variant. 99 KB are left to sm_86, and to 8.9 and 12.x, which take the same instructions;
    whatever is not known yet is taken for one of these, too.
    """
    if (major, minor) == (8, 0):
        return "sm_80"
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_86")


def row_contiguous(x: Tensor) -> Tensor:
    """x itself where its last dimension is contiguous, as it is for every view a model makes; else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is at least n."""
    return -(-n // multiple) * multiple


def tile_edge(n: int) -> int:
    """The smallest tile edge that holds n: a power of two, and at least the 16 that ``tl.dot`` wants."""
    return max(16, 1 << (n - 1).bit_length())
