"""The end of each half of BERT's layer, in one launch: bias, dropout, residual and LayerNorm of T rows of D numbers::

    s = residual + dropout(x + b)          y = (s - mean(s)) / sqrt(var(s) + eps) * w + c

y is stored in the dtype of the residual and, if asked for, once more rounded to that of the next matrix product; its
two gradients are added where they are read. Forward keeps mean and 1 / sqrt(var + eps) of each row. Backward computes s
and the mask anew, and with g = dy w and n = (s - mean) / sqrt(...)::

    ds = (g - mean(g) - n mean(g n)) / sqrt(...)       dx = ds, dropped as s was
    db = sum_t dx_t        dw = sum_t dy_t n_t         dc = sum_t dy_t

Backward is two launches. Each program sums the parameters' gradients over its own rows, one after another; PyTorch's
sum adds the programs' in a fixed order. No atomics.

With bfloat16 x and a float32 residual, 12 bytes a number move forward and 18 backward; with PyTorch's operators at
least 29 and 49 (``docs/kernels/layer.md``).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmsbert_fast.kernels import common, tiles
from cmsbert_fast.kernels.common import keep, load_rows, row_contiguous, store_rows

MAX_WIDTH = 2048  # a row is one tile, which at 4,096 would spill
LEAST_ROWS, MOST_PROGRAMS = 4, 256  # of backward: rows of a program, and partial sums of the parameters' gradients
COUNTS = ["n_rows", "rows_each", "threshold"]  # no kernel is compiled anew because one is a multiple of 16


class Parameters(NamedTuple):
    """The bias of the product before, and LayerNorm's weight and bias: each (D,)."""

    bias: Tensor
    weight: Tensor
    shift: Tensor


class Call(NamedTuple):
    """What forward and backward share.

    Attributes:
        x: (T, D), the product without its bias.
        residual: (T, D).
        seed: (1,) or more int64 on the device, of which the first number counts; None where nothing is dropped.
    """

    x: Tensor
    residual: Tensor
    parameters: Parameters
    eps: float
    dropout_p: float
    seed: Tensor | None


@triton.jit
def _row_vector(p_x, o_d, m_d):
    """A parameter as a float32 row [1, D]."""
    return tl.load(p_x + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _sum_before_norm(x, residual, b_bias, seed, o_t, m_t, s_x, s_r, o_d, m_d, keep_scale, threshold):
    """s of the rows ``o_t``, float32, and which numbers of x are kept."""
    b_x = load_rows(x, o_t, m_t, s_x, o_d, m_d).to(tl.float32) + b_bias
    b_keep = m_t[:, None] & m_d[None, :]
    if seed is not None:
        b_keep = b_keep & keep(tl.load(seed), 0, 0, o_t[:, None], o_d[None, :], threshold)
        b_x = tl.where(b_keep, b_x * keep_scale, 0.0)
    return b_x + load_rows(residual, o_t, m_t, s_r, o_d, m_d).to(tl.float32), b_keep


@triton.jit(do_not_specialize=COUNTS)
def residual_norm_forward_kernel(
    out, rounded, mean, inverse, x, residual, parameters, seed, s_x, s_r, n_rows, width, eps, keep_scale, threshold,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Programs: one for every ROWS rows."""
    o_t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_d = tl.arange(0, BLOCK_D)
    m_t, m_d = o_t < n_rows, o_d < width
    b_bias = _row_vector(parameters.bias, o_d, m_d)
    b_s, _ = _sum_before_norm(x, residual, b_bias, seed, o_t, m_t, s_x, s_r, o_d, m_d, keep_scale, threshold)
    b_mean = tl.sum(b_s, 1) / width
    b_centred = tl.where(m_d[None, :], b_s - b_mean[:, None], 0.0)
    b_inverse = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / width + eps)
    b_y = b_centred * b_inverse[:, None] * _row_vector(parameters.weight, o_d, m_d)
    b_y += _row_vector(parameters.shift, o_d, m_d)
    store_rows(out, b_y, o_t, m_t, width, o_d, m_d)
    if rounded is not None:
        store_rows(rounded, b_y, o_t, m_t, width, o_d, m_d)
    tl.store(mean + o_t, b_mean, mask=m_t)
    tl.store(inverse + o_t, b_inverse, mask=m_t)


@triton.jit(do_not_specialize=COUNTS)
def residual_norm_backward_kernel(
    d_x, d_residual, partial, d_out, d_rounded, mean, inverse, x, residual, parameters, seed, s_out, s_rounded, s_x,
    s_r, n_rows, rows_each, width, keep_scale, threshold, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Programs: one for every ``rows_each`` rows, which it takes one by one."""
    i_program = tl.program_id(0)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < width
    b_bias, b_w = _row_vector(parameters.bias, o_d, m_d), _row_vector(parameters.weight, o_d, m_d)
    b_db = tl.zeros([1, BLOCK_D], tl.float32)
    b_dw = tl.zeros([1, BLOCK_D], tl.float32)
    b_dc = tl.zeros([1, BLOCK_D], tl.float32)
    i_first = i_program * rows_each
    for i_row in range(i_first, tl.minimum(i_first + rows_each, n_rows)):
        o_t = i_row + tl.arange(0, 1)
        m_t = o_t < n_rows
        b_s, b_keep = _sum_before_norm(x, residual, b_bias, seed, o_t, m_t, s_x, s_r, o_d, m_d, keep_scale, threshold)
        b_inverse = tl.load(inverse + o_t)[:, None]
        b_n = tl.where(m_d[None, :], (b_s - tl.load(mean + o_t)[:, None]) * b_inverse, 0.0)
        b_dy = tl.zeros([1, BLOCK_D], tl.float32)
        if d_out is not None:
            b_dy += load_rows(d_out, o_t, m_t, s_out, o_d, m_d).to(tl.float32)
        if d_rounded is not None:
            b_dy += load_rows(d_rounded, o_t, m_t, s_rounded, o_d, m_d).to(tl.float32)
        b_g = b_dy * b_w
        b_mean_g = tl.sum(b_g, 1)[:, None] / width
        b_mean_gn = tl.sum(b_g * b_n, 1)[:, None] / width
        b_ds = (b_g - b_mean_g - b_n * b_mean_gn) * b_inverse
        store_rows(d_residual, b_ds, o_t, m_t, width, o_d, m_d)
        if seed is not None:
            b_ds = tl.where(b_keep, b_ds * keep_scale, 0.0)
        store_rows(d_x, b_ds, o_t, m_t, width, o_d, m_d)
        b_db += b_ds
        b_dw += b_dy * b_n
        b_dc += b_dy
    p_partial = partial + i_program.to(tl.int64) * 3 * width + o_d[None, :]
    tl.store(p_partial, b_db, mask=m_d[None, :])
    tl.store(p_partial + width, b_dw, mask=m_d[None, :])
    tl.store(p_partial + 2 * width, b_dc, mask=m_d[None, :])


def _shared(call: Call) -> dict[str, object]:
    """The arguments that both kernels take from the same place."""
    x, residual = row_contiguous(call.x), row_contiguous(call.residual)
    return {
        "x": x,
        "residual": residual,
        "parameters": Parameters(*(p.contiguous() for p in call.parameters)),
        "seed": call.seed if call.dropout_p else None,
        "s_x": x.stride(0),
        "s_r": residual.stride(0),
        "n_rows": x.shape[0],
        "width": x.shape[1],
        "keep_scale": 1.0 / (1.0 - call.dropout_p),
        "threshold": round(call.dropout_p * 2**24),
        "BLOCK_D": triton.next_power_of_2(x.shape[1]),
    }


def _config(name: str, call: Call) -> dict[str, int]:
    device = common.device_class(call.x.device)
    return tiles.configuration("layer", name, device, call.x.element_size(), width=call.x.shape[1])


def forward(call: Call, rounded: torch.dtype | None) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """y (T, D) in the residual's dtype and in ``rounded`` (None: not stored); mean and 1 / sqrt(var + eps), (T,)."""
    (n_rows, width), like = call.x.shape, call.residual
    out = like.new_empty(n_rows, width)
    narrow = None if rounded is None else like.new_empty(n_rows, width, dtype=rounded)
    mean, inverse = (like.new_empty(n_rows, dtype=torch.float32) for _ in range(2))
    if n_rows:
        config = _config("residual_norm_forward", call)
        given = {"out": out, "rounded": narrow, "mean": mean, "inverse": inverse, "eps": call.eps}
        residual_norm_forward_kernel[triton.cdiv(n_rows, config["ROWS"]),](**given, **_shared(call), **config)
    return out, narrow, mean, inverse


def programs(n_rows: int) -> tuple[int, int]:
    """Backward's programs and the rows of each; the last may have fewer."""
    rows_each = max(LEAST_ROWS, triton.cdiv(n_rows, MOST_PROGRAMS))
    return triton.cdiv(n_rows, rows_each), rows_each


def backward(
    call: Call, d_out: Tensor | None, d_rounded: Tensor | None, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dx and dresidual (T, D) in their dtypes; those of the parameters, (3, D) in float32.

    Of the two gradients of y either may be None.
    """
    n_rows, width = call.x.shape
    d_x, d_residual = call.x.new_empty(n_rows, width), call.residual.new_empty(n_rows, width)
    count, rows_each = programs(n_rows)
    partial = call.x.new_empty(count, 3, width, dtype=torch.float32)
    if n_rows:
        d_out, d_rounded = (None if d is None else row_contiguous(d) for d in (d_out, d_rounded))
        residual_norm_backward_kernel[count,](
            d_x=d_x,
            d_residual=d_residual,
            partial=partial,
            d_out=d_out,
            d_rounded=d_rounded,
            mean=mean,
            inverse=inverse,
            s_out=0 if d_out is None else d_out.stride(0),
            s_rounded=0 if d_rounded is None else d_rounded.stride(0),
            rows_each=rows_each,
            **_shared(call),
            **_config("residual_norm_backward", call),
        )
    return d_x, d_residual, partial.sum(0)
