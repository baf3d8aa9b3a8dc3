"""``Call`` of the C++ (``cms_attention.h``): its layout, and how it is run."""

import struct

from torch import Tensor

from cmsbert_fast.kernels.cpu import library

ACTIVATIONS = ("relu", "sigmoid", "tanh")  # sigma of Eq. 1 and 2, numbered so in the C++
_HEADS, _MODALITY = "3q", "15q"
CALL = struct.Struct(f"={_HEADS * 4}5qd3qd9q{_MODALITY * 2}")  # pointers are integers
ABSENT = (0,) * 15
_BAD_CU_SEQLENS = 1  # ``Status`` of common.h


def modality_layout(
    gates: tuple[int, int, int, int],
    frames: Tensor,
    weight: Tensor | None,
    cu_seqlens: Tensor,
    gradients: tuple[int, ...] = (0, 0, 0, 0),
) -> tuple[int, ...]:
    """``Modality`` of the C++.

    Args:
        gates: Addresses and strides of the tokens' and of the frames' gates.
        frames: (F, d_m) with unit stride along d_m.
        weight: (D, d_m), likewise; None where the C++ fills it in.
        cu_seqlens: (B + 1,) int32, contiguous.
        gradients: Addresses.
    """
    of_frames = frames.data_ptr(), frames.stride(0)
    of_weight = (0, 0) if weight is None else (weight.data_ptr(), weight.stride(0))
    return (*gates, *of_frames, *of_weight, cu_seqlens.data_ptr(), *frames.shape, *gradients)


def run_on_sequences(name: str, call: bytes) -> None:
    """Calls a function of the library that takes sequences.

    Raises:
        ValueError: ``cu_seqlens`` is invalid.
    """
    if library.run(name, call) == _BAD_CU_SEQLENS:
        raise ValueError("cu_seqlens must start at 0, never fall, and end at or below the number of rows.")
