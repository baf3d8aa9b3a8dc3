"""Matrix products in compiled C++ (``linear.cpp``), float32 or with operands rounded to bfloat16, from tensors of any
strides.
"""

import struct

import torch
from torch import Tensor

from cmsbert_fast.kernels.cpu import library

FEW_ROWS = 64  # of ``a`` up to which these are packed and ``b`` is read once, in place (FEW of the C++)

_CALL = struct.Struct("=19q")  # ``Product`` of the C++; pointers are integers


def matrix_product(
    a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """Fills ``out`` (m, n) with a b^T + bias, or GELU of that.

    Args:
        a: (m, depth), float32 or bfloat16, of any strides; copied where neither of them is 1.
        b: (n, depth), likewise.
        dtype: That of the products: float32, and then of the operands, or bfloat16, to which operands are rounded.
        out: Float32 or bfloat16; unit stride along n.
        bias: (n,), float32 or bfloat16.
        gelu: Whether GELU follows, in float32 before ``out`` is rounded.
    """
    a, b = _unit_stride(a), _unit_stride(b)
    bias = None if bias is None else bias.float().contiguous()
    call = _CALL.pack(
        *_layout(a),
        *_layout(b),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        out.stride(0),
        out.dtype == torch.bfloat16,
        *out.shape,
        a.shape[1],
        dtype == torch.bfloat16,
        gelu,
        torch.get_num_threads(),
        library.parallel_loop(),
    )
    library.run("matrix_product", call)
    return out


def _unit_stride(x: Tensor) -> Tensor:
    return x if 1 in x.stride() else x.contiguous()


def _layout(x: Tensor) -> tuple[int, int, int, bool]:
    """``Operand`` of the C++."""
    row, column = x.stride()
    return x.data_ptr(), row, column, x.dtype == torch.bfloat16
