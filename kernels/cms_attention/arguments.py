"""Arguments of the CMS attention kernels: NamedTuples of tensors, strides and sizes.

Kernels are compiled without a modality or dropout that is absent. Counts that change from batch to batch (``COUNTS``)
are arguments of their own, for Triton specialises whatever lies in a tuple.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cmsbert_fast.kernels.cms_attention.call import Call, Modality
from cmsbert_fast.kernels.common import row_contiguous

# No kernel is compiled anew because one of these is 1 or a multiple of 16.
COUNTS = ["n_batch", "n_rows", "n_rows_v", "n_rows_a", "n_frame_rows", "n_tiles", "length", "length_v", "length_a",
          "length_f", "threshold"]  # fmt: skip


class Sequences(NamedTuple):
    """Where the tokens of each sequence lie."""

    cu: Tensor | None  # (B + 1,) int32; None in the padded form
    mask: Tensor | None  # (B, N) uint8; None = all valid


class Heads(NamedTuple):
    """A tensor of tokens and heads: (T, H, d_h), padded (B, N, H, d_h); the last dimension is contiguous."""

    data: Tensor
    s_b: int  # strides over sequences (unused in the packed form), rows and heads
    s_n: int
    s_h: int


class Dropout(NamedTuple):
    """Dropout of the probabilities; what is drawn is compared with the argument ``threshold``."""

    seed: Tensor  # (1,) int64
    keep_scale: float  # 1 / (1 - p)


class Source(NamedTuple):
    """One modality of one call, of frames of size ``size``; strides as in :class:`Heads`. Absent: see ``ABSENT``."""

    token_gate: Tensor  # p
    s_pb: int
    s_pn: int
    frame_gate: Tensor  # r
    s_rb: int
    s_rn: int
    frames: Tensor
    s_xb: int
    s_xn: int
    weight: Tensor  # W
    s_w: int
    cu: Tensor | None  # of the frames
    mask: Tensor | None
    size: int
    i_mean: int  # the first column of its mean frames


# Not None itself: Triton 3.6 cannot compare a tuple that holds None, as a present Source may, with None.
ABSENT = Source(*(None,) * len(Source._fields))


class SourceGradients(NamedTuple):
    """What backward writes of one modality, contiguous."""

    token_gate: Tensor
    frame_gate: Tensor
    frames: Tensor | None  # None: not asked for


def _row_strides(x: Tensor, packed: bool) -> tuple[int, int]:
    """Strides over sequences and rows; those of a packed tensor's sequences are unused."""
    return (0, x.stride(0)) if packed else (x.stride(0), x.stride(1))


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def sequences(call: Call) -> Sequences:
    """The tokens' sequences of a call."""
    return Sequences(call.cu_seqlens, _bytes(call.mask))


def heads(x: Tensor, packed: bool) -> Heads:
    """A tensor of tokens and heads; copied where its last dimension is not contiguous."""
    x = row_contiguous(x)
    return Heads(x, *_row_strides(x, packed), x.stride(-2))


def dropout(call: Call) -> Dropout | None:
    """The dropout of a call."""
    if call.dropout_p == 0:
        return None
    assert call.seed is not None
    return Dropout(call.seed, 1.0 / (1.0 - call.dropout_p))


def source(m: Modality | None, packed: bool, i_mean: int) -> Source:
    """A modality of a call, whose mean frames begin at column ``i_mean``."""
    if m is None:
        return ABSENT
    frames, weight = row_contiguous(m.frames), row_contiguous(m.weight)
    return Source(
        m.token_gate,
        *_row_strides(m.token_gate, packed),
        m.frame_gate,
        *_row_strides(m.frame_gate, packed),
        frames,
        *_row_strides(frames, packed),
        weight,
        weight.stride(0),
        m.cu_seqlens,
        _bytes(m.mask),
        frames.shape[-1],
        i_mean,
    )
