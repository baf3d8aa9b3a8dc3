"""What the contrastive kernels are called with: NamedTuples, which Triton takes as arguments, and the look-up of tiles.

M modalities have P = M (M - 1) / 2 pairs (0, 1), (0, 2), (1, 2) and 2 P directions: every pair forward, then every pair
backward.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmsbert_fast.kernels import tiles
from cmsbert_fast.kernels.common import TF32X3, device_class, dot_precision, row_contiguous

# Counts of tiles and the like: no kernel is compiled anew because one of them is 1 or a multiple of 16. The numbers of
# rows are not among them: a multiple of 16 makes loads of labels, norms and sums wide, and spares registers.
COUNTS = [
    "diagonal",
    "steps",
    "groups",
    "row_groups",
    "column_groups",
    "row_blocks",
    "column_blocks",
    "radial_tiles",
    "blocks",
    "splits",
]

FEW = 1024  # see are_few
LARGEST_BOUND = 40.0  # of 1 / tau: exp(-2 * 40) is a normal float32, exp(2 * 40) finite


class Side(NamedTuple):
    """The rows or the columns of a rectangle of similarities; :func:`side` makes one.

    Attributes:
        embeddings: M tensors (n, d) of one dtype, not normalised, the last dimension contiguous.
        strides: Their row strides.
        labels: (n,), float32 (scores) or int64 (classes); None: targets are the identity.
        inverse_norm: (M, n), 1 / max(|z|, 1e-12), float32.
        weight: (n,), ``(1 - beta) / |S_i|``, 0 where S_i is empty, float32.
        lse: (2P, n), log-sum-exps of the directions, float32; needed by gradients only.
        norm_stride, lse_stride: Row strides of ``inverse_norm`` and ``lse``.
        n: Number of rows.
    """

    embeddings: tuple[Tensor, ...]
    strides: tuple[int, ...]
    labels: Tensor | None
    inverse_norm: Tensor
    weight: Tensor | None
    lse: Tensor | None
    norm_stride: int
    lse_stride: int
    n: int

    @property
    def modalities(self) -> int:
        return len(self.embeddings)

    @property
    def pairs(self) -> int:
        return self.modalities * (self.modalities - 1) // 2

    @property
    def d(self) -> int:
        return self.embeddings[0].shape[1]


def side(
    embeddings: Sequence[Tensor],
    labels: Tensor | None,
    inverse_norm: Tensor,
    weight: Tensor | None,
    lse: Tensor | None = None,
) -> Side:
    """A :class:`Side`; copies embeddings and labels only where the kernels cannot read them as they are."""
    z = tuple(row_contiguous(e) for e in embeddings)
    if labels is not None:
        labels = labels.to(torch.float32 if labels.is_floating_point() else torch.int64).contiguous()
    return Side(
        embeddings=z,
        strides=tuple(e.stride(0) for e in z),
        labels=labels,
        inverse_norm=inverse_norm,
        weight=weight,
        lse=lse,
        norm_stride=inverse_norm.stride(0),
        lse_stride=0 if lse is None else lse.stride(0),
        n=z[0].shape[0],
    )


class Scalars(NamedTuple):
    """The numbers of a call.

    Attributes:
        temperature: tau, a 0-dim tensor, or None: ``fixed_temperature`` holds.
        smoothing: beta.
        reach: Labels of one sign that differ by at most this much are related: delta and its tolerance.
    """

    temperature: Tensor | None
    fixed_temperature: float
    smoothing: float
    reach: float


def are_few(rows: int) -> bool:
    """Whether forward and backward of so many rows in one process are two launches each."""
    return rows <= FEW


def bound(rows: Side, columns: Side, scalars: Scalars) -> bool | None:
    """Whether exponentials need no maximum (``primitives.is_bounded``); None: the temperature is on the device.

    Few rows keep the maximum: launches are what they cost, and it makes a probability of 1 exact.
    """
    if are_few(max(rows.n, columns.n)):
        return False
    if scalars.temperature is not None:
        return None
    return 0.0 < 1.0 / scalars.fixed_temperature <= LARGEST_BOUND


def tile(kernel: str, rows: Side, columns: Side) -> dict[str, int]:
    """BM, BN, BK, warps and stages of a kernel for this rectangle."""
    z = rows.embeddings[0]
    longest = max(rows.n, columns.n)
    return tiles.configuration(
        "contrastive", kernel, device_class(z.device), z.element_size(), rows=longest, width=rows.d
    )


def precision(z: Tensor) -> str:
    """How a kernel multiplies embeddings like these."""
    return dot_precision(z.dtype, device_class(z.device), TF32X3)
