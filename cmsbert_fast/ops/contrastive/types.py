"""One call of the contrastive loss, and the blocks of rows that its engines work on."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

LABEL_TOLERANCE = 1e-5  # labels are float32: 0.3 - 0.2 counts as 0.1


class Call(NamedTuple):
    """The arguments that all operators of the loss have, in the order of their schemas.

    Attributes:
        embeddings: M tensors (n, d) of one dtype, not normalised.
        labels: (n,), float32, float64 or integer; None: targets are the identity.
        temperature: 0-dim tensor, or None: ``fixed_temperature`` holds.
        smoothing: beta.
        threshold: delta.
        backend: "torch", "cpu" or "triton".
    """

    embeddings: list[Tensor]
    labels: Tensor | None
    temperature: Tensor | None
    fixed_temperature: float
    smoothing: float
    threshold: float
    backend: str

    @property
    def rows(self) -> int:
        return self.embeddings[0].shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """In which sums are accumulated."""
        return accumulation_dtype(self.embeddings[0].dtype)

    @property
    def numbers(self) -> "Numbers":
        if self.temperature is None:
            tau = self.embeddings[0].new_full((), self.fixed_temperature, dtype=self.dtype)
        else:
            tau = self.temperature.to(self.dtype)
        return Numbers(tau, self.smoothing, self.threshold)


class Numbers(NamedTuple):
    """What engines need to know besides blocks.

    Attributes:
        temperature: tau, 0-dim tensor.
        smoothing: beta.
        threshold: delta.
    """

    temperature: Tensor
    smoothing: float
    threshold: float

    @property
    def reach(self) -> float:
        """How much related labels of one sign may differ."""
        return self.threshold + LABEL_TOLERANCE


class Saved(NamedTuple):
    """What the forward pass of one process keeps for its backward pass; as in :class:`Block`."""

    lse: Tensor
    inverse_norm: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of the global batch, ready to be rows or columns of a similarity rectangle.

    Attributes:
        embeddings: M tensors (n, d), as given (not normalised).
        labels: (n,) or None (targets are the identity).
        inverse_norm: (M, n), 1 / max(|z|, 1e-12).
        weight: (n,), ``(1 - beta) / |S_i|``, 0 where S_i is empty.
        lse: (2P, n), log-sum-exp of each of :func:`directions` at each row; None before it is known.
        offset: global index of the first row.
    """

    embeddings: tuple[Tensor, ...]
    labels: Tensor | None
    inverse_norm: Tensor
    weight: Tensor
    lse: Tensor | None = None
    offset: int = 0

    @property
    def rows(self) -> int:
        return self.embeddings[0].shape[0]

    def with_lse(self, lse: Tensor) -> "Block":
        return replace(self, lse=lse)

    def part(self, rows: slice) -> "Block":
        """Some of the rows, without ``lse``."""
        return Block(
            tuple(z[rows] for z in self.embeddings),
            None if self.labels is None else self.labels[rows],
            self.inverse_norm[:, rows],
            self.weight[rows],
            offset=self.offset + rows.start,
        )


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def pairs(modalities: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(modalities) for b in range(a + 1, modalities)]


def directions(modalities: int) -> list[tuple[int, int]]:
    """(from, to): every pair forward, then every pair backward."""
    forward = pairs(modalities)
    return forward + [(b, a) for a, b in forward]
