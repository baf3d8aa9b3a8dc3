"""The activation of BERT's layer with the bias of the product before it: y = gelu(x + b), of T rows of F numbers.

The exact GELU, u Phi(u); its derivative is Phi(u) + u phi(u). Forward is one launch, backward two: each program writes
dx and the sum of its own rows, PyTorch's sum adds the programs' in a fixed order. No atomics. Backward reads x again
and keeps nothing else.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmsbert_fast.kernels import common, tiles
from cmsbert_fast.kernels.common import load_rows, round_up, row_contiguous, store_rows

MOST_PROGRAMS = 256  # along the rows, of backward: partial sums of the bias's gradient
SQRT_HALF = tl.constexpr(0.7071067811865476)
DENSITY_AT_0 = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
COUNTS = ["n_rows", "rows_each"]  # no kernel is compiled anew because one is a multiple of 16


@triton.jit
def _columns(bias, width, BLOCK_F: tl.constexpr):
    """The columns of a program, which of them exist, and their bias [1, BLOCK_F]."""
    o_f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    m_f = o_f < width
    return o_f, m_f, tl.load(bias + o_f, mask=m_f, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=COUNTS)
def bias_gelu_forward_kernel(out, x, bias, s_x, n_rows, width, ROWS: tl.constexpr, BLOCK_F: tl.constexpr):
    """Programs: (tiles of ROWS rows, tiles of BLOCK_F columns)."""
    o_f, m_f, b_bias = _columns(bias, width, BLOCK_F)
    o_t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_t = o_t < n_rows
    b_u = load_rows(x, o_t, m_t, s_x, o_f, m_f).to(tl.float32) + b_bias
    store_rows(out, 0.5 * b_u * (1.0 + tl.erf(b_u * SQRT_HALF)), o_t, m_t, width, o_f, m_f)


@triton.jit(do_not_specialize=COUNTS)
def bias_gelu_backward_kernel(
    d_x, partial, d_out, x, bias, s_out, s_x, n_rows, rows_each, width, ROWS: tl.constexpr, BLOCK_F: tl.constexpr
):
    """Programs: (parts of ``rows_each`` rows, tiles of BLOCK_F columns)."""
    o_f, m_f, b_bias = _columns(bias, width, BLOCK_F)
    b_sum = tl.zeros([BLOCK_F], tl.float32)
    i_first = tl.program_id(0) * rows_each
    for i_row in range(i_first, tl.minimum(i_first + rows_each, n_rows), ROWS):
        o_t = i_row + tl.arange(0, ROWS)
        m_t = o_t < n_rows
        b_u = load_rows(x, o_t, m_t, s_x, o_f, m_f).to(tl.float32) + b_bias
        b_slope = 0.5 * (1.0 + tl.erf(b_u * SQRT_HALF)) + b_u * DENSITY_AT_0 * tl.exp(-0.5 * b_u * b_u)
        b_du = load_rows(d_out, o_t, m_t, s_out, o_f, m_f).to(tl.float32) * b_slope
        store_rows(d_x, b_du, o_t, m_t, width, o_f, m_f)
        b_sum += tl.sum(b_du, 0)
    tl.store(partial + tl.program_id(0).to(tl.int64) * width + o_f, b_sum, mask=m_f)


def _config(name: str, x: Tensor) -> dict[str, int]:
    return tiles.configuration("layer", name, common.device_class(x.device), x.element_size(), width=x.shape[1])


def forward(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + b), (T, F) in the dtype of x; ``bias`` is (F,)."""
    x = row_contiguous(x)
    n_rows, width = x.shape
    out = x.new_empty(n_rows, width)
    if n_rows:
        config = _config("bias_gelu_forward", x)
        grid = (triton.cdiv(n_rows, config["ROWS"]), triton.cdiv(width, config["BLOCK_F"]))
        bias_gelu_forward_kernel[grid](
            out=out, x=x, bias=bias.contiguous(), s_x=x.stride(0), n_rows=n_rows, width=width, **config
        )
    return out


def backward(d_out: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """dx (T, F) in the dtype of x, and db (F,) in float32."""
    x, d_out = row_contiguous(x), row_contiguous(d_out)
    n_rows, width = x.shape
    config = _config("bias_gelu_backward", x)
    # Whole tiles: the first row of a part is the first of a tile.
    rows_each = round_up(max(1, triton.cdiv(n_rows, MOST_PROGRAMS)), 2 * config["ROWS"])
    count = triton.cdiv(n_rows, rows_each)
    d_x, partial = x.new_empty(n_rows, width), x.new_empty(count, width, dtype=torch.float32)
    if n_rows:
        bias_gelu_backward_kernel[count, triton.cdiv(width, config["BLOCK_F"])](
            d_x=d_x,
            partial=partial,
            d_out=d_out,
            x=x,
            bias=bias.contiguous(),
            s_out=d_out.stride(0),
            s_x=x.stride(0),
            n_rows=n_rows,
            rows_each=rows_each,
            width=width,
            **config,
        )
    return d_x, partial.sum(0)
