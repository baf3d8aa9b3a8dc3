"""The LSTM's recurrence in compiled C++ (``kernels/cpu/lstm.cpp``), float32.

Rows are in the order of time (:mod:`cmsbert_fast.ops.lstm.steps`). The operands of the products with W_hh may be
rounded to bfloat16.
"""

import struct

import torch
from torch import Tensor

from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.kernels.cpu.product import matrix_product
from cmsbert_fast.ops.capability import why_not_own_products, why_slow_bfloat16
from cmsbert_fast.ops.lstm import torch as plain


def product_dtype() -> torch.dtype:
    """The dtype of the recurrence's products: bfloat16 under autocast to it, if the CPU is fast at it, or float32."""
    rounds = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return torch.bfloat16 if rounds and why_slow_bfloat16(torch.device("cpu")) is None else torch.float32


_CALL = struct.Struct("=14q")  # ``LSTM`` of the C++; pointers are integers


def forward(
    batch_sizes: Tensor,
    weight_hh: Tensor,
    gates: Tensor,
    hidden: Tensor,
    cells: Tensor,
    rounded_hidden: Tensor | None = None,
) -> None:
    """Fills ``hidden`` and ``cells`` (F, d); ``gates`` (F, 4d) are the products with the frames and become activated.

    Args:
        batch_sizes: (steps,) int64: how many sequences are alive.
        weight_hh: (4d, d).
        gates, hidden, cells: Contiguous.
        rounded_hidden: (F, d, or d + 1 where d is odd, with a last column of 0) bfloat16, to be filled with ``hidden``
            rounded: products are in bfloat16. None = in float32.
    """
    _run("lstm_forward", batch_sizes, weight_hh, gates, hidden, cells, None, None, rounded_hidden, None)


def backward(
    batch_sizes: Tensor, weight_hh: Tensor, gates: Tensor, cells: Tensor, d_hidden: Tensor, products: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gradients of the gates before activation (F, 4d) from those of the hidden states (F, d): in float32, and in the
    dtype of the products, which may be the same tensor."""
    d_gates = gates.new_empty(len(d_hidden), gates.shape[1])  # gates may have rows of no sequence behind
    rounded_d_gates = None if products == torch.float32 else torch.empty_like(d_gates, dtype=products)
    tensors = (gates, None, cells, d_hidden.contiguous(), d_gates, None, rounded_d_gates)
    _run("lstm_backward", batch_sizes, weight_hh, *tensors)
    return d_gates, d_gates if rounded_d_gates is None else rounded_d_gates


def product(x: Tensor, weight: Tensor, out: Tensor, bias: Tensor) -> None:
    """Fills ``out`` with x W^T + b, float32."""
    if why_not_own_products(x.dtype) is None:
        matrix_product(x, weight, x.dtype, out, bias)
    else:
        torch.addmm(bias, x, weight.T, out=out)


def transposed_product(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """x^T y, a weight's gradient: a product in the dtype of x and y, and a result in another."""
    if why_not_own_products(x.dtype) is None:
        return matrix_product(x.T, y.T, x.dtype, x.new_empty(x.shape[1], y.shape[1], dtype=dtype))
    return plain.transposed_product(x, y, dtype)


def _run(name: str, batch_sizes: Tensor, weight_hh: Tensor, *tensors: Tensor | None) -> None:
    if weight_hh.stride(1) != 1:
        weight_hh = weight_hh.contiguous()
    call = _CALL.pack(
        batch_sizes.data_ptr(),
        len(batch_sizes),
        weight_hh.shape[1],
        weight_hh.data_ptr(),
        weight_hh.stride(0),
        *(0 if tensor is None else tensor.data_ptr() for tensor in tensors),
        torch.get_num_threads(),
        library.parallel_loop(),
    )
    library.run(name, call)
