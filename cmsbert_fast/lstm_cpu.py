"""The recurrence of :mod:`cmsbert_fast.lstm` in compiled C++ (``kernels/cpu/lstm.cpp``), float32.

Rows are in the order of a PackedSequence: step by step, within a step the longest sequence first.
"""

import struct

import torch
from torch import Tensor

from cmsbert_fast import cpu_library
from cmsbert_fast.backends import requested_backend


def is_wanted(frames: Tensor, backend: str = "auto") -> bool:
    """Whether the compiled recurrence runs for frames like these: the backend allows it and it can."""
    if requested_backend(backend) not in ("auto", "cpu"):
        return False
    return frames.device.type == "cpu" and frames.dtype == torch.float32 and cpu_library.why_not() is None


_CALL = struct.Struct("=12q")  # ``LSTM`` of the C++; pointers are integers


def forward(batch_sizes: Tensor, weight_hh: Tensor, gates: Tensor, hidden: Tensor, cells: Tensor) -> None:
    """Fills ``hidden`` and ``cells`` (F, d); ``gates`` (F, 4d) are the products with the frames and become activated.

    Args:
        batch_sizes: (steps,) int64: how many sequences are alive.
        weight_hh: (4d, d).
        gates, hidden, cells: Contiguous.
    """
    _run("lstm_forward", batch_sizes, weight_hh, gates, hidden, cells)


def backward(
    batch_sizes: Tensor, weight_hh: Tensor, gates: Tensor, hidden: Tensor, cells: Tensor, d_hidden: Tensor
) -> Tensor:
    """Gradients of the gates before activation, (F, 4d), from those of the hidden states, (F, d)."""
    d_gates = torch.empty(len(d_hidden), gates.shape[1])
    _run("lstm_backward", batch_sizes, weight_hh, gates, hidden, cells, d_hidden.contiguous(), d_gates)
    return d_gates


def _run(
    name: str,
    batch_sizes: Tensor,
    weight_hh: Tensor,
    gates: Tensor,
    hidden: Tensor,
    cells: Tensor,
    d_hidden: Tensor | None = None,
    d_gates: Tensor | None = None,
) -> None:
    if weight_hh.stride(1) != 1:
        weight_hh = weight_hh.contiguous()
    call = _CALL.pack(
        batch_sizes.data_ptr(),
        len(batch_sizes),
        weight_hh.shape[1],
        weight_hh.data_ptr(),
        weight_hh.stride(0),
        gates.data_ptr(),
        hidden.data_ptr(),
        cells.data_ptr(),
        0 if d_hidden is None else d_hidden.data_ptr(),
        0 if d_gates is None else d_gates.data_ptr(),
        torch.get_num_threads(),
        cpu_library.parallel_loop(),
    )
    cpu_library.run(name, call)
