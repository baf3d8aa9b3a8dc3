"""What forward and backward of CMS attention take, keep and give, and which kernels serve a call."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmsbert_fast.kernels.common import round_up

# Forward takes one launch up to these lengths, frame counts and frame sizes, and two beyond. "Short" is what fits into
# one tile, "medium" what takes several, "long" what takes two launches. float32 tiles are too large to be short.
SHORT_TOKENS, MEDIUM_TOKENS, ONE_LAUNCH_FRAMES, ONE_LAUNCH_FRAME_SIZE = 64, 128, 512, 128
SHORT_ITEM_SIZE = 2
MAX_HEAD_SIZE = 128


def mean_width(size: int) -> int:
    """Columns of the mean frames of one modality: a multiple of 16, so that rows stay aligned for matrix products."""
    return round_up(size, 16)


class Modality(NamedTuple):
    """One modality of one call; shapes as in :class:`cmsbert_fast.ModalityShift`."""

    token_gate: Tensor
    frame_gate: Tensor
    frames: Tensor
    weight: Tensor
    cu_seqlens: Tensor | None
    mask: Tensor | None
    max_length: int


class Call(NamedTuple):
    """The arguments that forward and backward share. Shapes as in :func:`cmsbert_fast.cms_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    visual: Modality | None
    acoustic: Modality | None
    cu_seqlens: Tensor | None
    mask: Tensor | None
    max_length: int
    activation: str
    scale: float
    dropout_p: float
    seed: Tensor | None
    varlen: bool = False  # PyTorch's varlen attention may serve it

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those present."""
        return tuple(m for m in (self.visual, self.acoustic) if m is not None)

    @property
    def rows(self) -> int:
        """T, or B * N in the padded form."""
        return math.prod(self.query.shape[:-2])

    @property
    def batch(self) -> int:
        """B."""
        return self.query.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def shape_class(self) -> str:
        """ "short", "medium" or "long"; follows from shapes alone."""
        one_launch = self.max_length <= MEDIUM_TOKENS and all(
            m.max_length <= ONE_LAUNCH_FRAMES and m.frames.shape[-1] <= ONE_LAUNCH_FRAME_SIZE for m in self.modalities
        )
        if not one_launch:
            return "long"
        one_tile = self.max_length <= SHORT_TOKENS and self.query.element_size() <= SHORT_ITEM_SIZE
        # Without a modality single tiles save nothing, and spill registers on sm_80.
        return "short" if one_tile and self.modalities else "medium"

    @property
    def by_varlen(self) -> bool:
        """Whether PyTorch's varlen attention serves the forward pass.

        It has no masks, no dropout and only 16 bits; sequences of one tile are not worth its ten launches.
        """
        plain = self.cu_seqlens is not None and self.dropout_p == 0
        fits = self.query.element_size() == 2 and self.query.shape[-1] % 8 == 0
        return self.varlen and plain and fits and self.max_length > SHORT_TOKENS

    @property
    def mean_columns(self) -> tuple[int, int]:
        """Columns of the mean frames: where the acoustic ones begin, and how many there are in all.

        Columns beyond a modality's own are 0.
        """
        first = 0 if self.visual is None else mean_width(self.visual.frames.shape[-1])
        return first, first + (0 if self.acoustic is None else mean_width(self.acoustic.frames.shape[-1]))


class Saved(NamedTuple):
    """What forward keeps for backward; what a shape class does not need is empty."""

    mean: Tensor  # (rows, columns) m^v and m^a side by side
    shift: Tensor  # (rows, D) a; not of short sequences
    lse: Tensor  # (H, rows) log-sum-exp to base 2; not of short sequences


def empty_outputs(call: Call) -> tuple[Tensor, Saved]:
    """Unwritten z and what is kept for backward; on any device, the meta device too."""
    q = call.query
    heads, head_size = q.shape[-2:]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    mean = torch.empty((call.rows, call.mean_columns[1]), dtype=q.dtype, device=q.device)
    long_rows = 0 if call.shape_class == "short" else call.rows
    shift_rows = long_rows if call.modalities else 0
    shift = torch.empty((shift_rows, heads * head_size), dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, long_rows), dtype=torch.float32, device=q.device)
    return out, Saved(mean, shift, lse)


class Gradients(NamedTuple):
    """What backward returns; the weights' gradients follow from ``shift`` (da) and forward's mean frames."""

    query: Tensor
    key: Tensor
    value: Tensor
    shift: Tensor  # (rows, D); empty without a modality
    token_gates: tuple[Tensor, Tensor]  # visual, acoustic; empty where absent
    frame_gates: tuple[Tensor, Tensor]
    frames: tuple[Tensor, Tensor]  # empty where not asked for

    @property
    def flat(self) -> list[Tensor]:
        """All of them, in the order of the fields."""
        of_tokens = [self.query, self.key, self.value, self.shift]
        return [*of_tokens, *self.token_gates, *self.frame_gates, *self.frames]

    @classmethod
    def from_flat(cls, tensors: Sequence[Tensor]) -> "Gradients":
        """The inverse of :attr:`flat`."""
        query, key, value, shift, token_v, token_a, frame_v, frame_a, frames_v, frames_a = tensors
        return cls(query, key, value, shift, (token_v, token_a), (frame_v, frame_a), (frames_v, frames_a))


def empty_gradients(call: Call, frames_wanted: tuple[bool, bool]) -> Gradients:
    """Unwritten gradients; on any device, the meta device too."""
    q = call.query
    options: dict[str, Any] = {"dtype": q.dtype, "device": q.device}
    dq, dk, dv = (torch.empty(q.shape, **options) for _ in range(3))
    hidden_size = q.shape[-2] * q.shape[-1]
    d_shift = torch.empty((call.rows if call.modalities else 0, hidden_size), **options)
    pair = (call.visual, call.acoustic)
    none = (0,)
    token_gates = tuple(torch.empty(none if m is None else m.token_gate.shape, **options) for m in pair)
    frame_gates = tuple(torch.empty(none if m is None else m.frame_gate.shape, **options) for m in pair)
    frames = tuple(
        torch.empty(m.frames.shape if m is not None and wanted else none, **options)
        for m, wanted in zip(pair, frames_wanted, strict=True)
    )
    return Gradients(dq, dk, dv, d_shift, token_gates, frame_gates, frames)  # type: ignore[arg-type]
