"""What CMS attention takes besides queries, keys and values."""

from typing import NamedTuple

from torch import Tensor

from cmsbert_fast.packing import Packing

ACTIVATIONS = ("relu", "sigmoid", "tanh")  # sigma of Eq. 1 and 2, numbered so in the C++


class ModalityShift(NamedTuple):
    """What one modality (the face, the voice) contributes to :func:`cms_attention` (Eq. 1-4).

    The gate's input product is split, ``W_g [X_i; V_j] + b = p_i + r_j``, so that it costs O(N + N_m), not O(N N_m).
    Shapes are those of the packed form; those of the padded form stand in brackets.

    Attributes:
        token_gate: p_i = w_x . X_i, (T,) [(B, N)].
        frame_gate: r_j = w_f . V_j + b, (F,) [(B, N_m)].
        frames: V, (F, d_m) [(B, N_m, d_m)].
        weight: W_m, (H * d_h, d_m).
        cu_seqlens: (B + 1,) int32, where each sequence's frames lie; packed form only.
        max_length: The most frames of a sequence, or any larger number; packed form only.
        mask: (B, N_m) bool, True = valid, any pattern; padded form only. None = all valid.
    """

    token_gate: Tensor
    frame_gate: Tensor
    frames: Tensor
    weight: Tensor
    cu_seqlens: Tensor | None = None
    max_length: int | None = None
    mask: Tensor | None = None

    @property
    def packing(self) -> Packing:
        """Where the frames of each sequence lie (packed form)."""
        assert self.cu_seqlens is not None
        assert self.max_length is not None
        return Packing(self.cu_seqlens, self.max_length)
