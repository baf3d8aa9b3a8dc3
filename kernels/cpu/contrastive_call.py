"""The C++ of the contrastive loss (``contrastive.cpp``): layouts of its calls, and how they are run."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmsbert_fast.kernels.cpu import library

_TILES = struct.Struct("=4qd3qd11q")  # ``Contrastive`` of the C++; pointers are integers
_ROWS = struct.Struct("=15qd2q")  # ``Rows``
_LABELS = {torch.float32: 0, torch.float64: 1, torch.int64: 2}


class Targets(NamedTuple):
    """What decides the targets t_ij of some rows and columns; contiguous.

    Attributes:
        own_labels, labels: Of the rows and of the columns: float32 or float64, related where they differ by at most
            ``reach``, or int64, where they are equal. None: nothing is related.
        own_weights, weights: Likewise; t_ij of related labels is the row's, t_ji the column's. Float32.
        diagonal: (rows,), t_ii, float32.
        shift: Column of row 0 where both are one example; may lie outside.
        reach: See above.
    """

    own_labels: Tensor | None
    labels: Tensor | None
    own_weights: Tensor
    weights: Tensor
    diagonal: Tensor
    shift: int
    reach: float

    def of(self, rows: slice) -> "Targets":
        """Those of some of the rows; the slice has a start."""
        return self._replace(
            own_labels=None if self.own_labels is None else self.own_labels[rows],
            own_weights=self.own_weights[rows],
            diagonal=self.diagonal[rows],
            shift=self.shift + rows.start,
        )


def normalise(embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """z / max(|z|, 1e-12) of M tensors (n, d), float32: (M, n, d), and (M, n), by what rows were multiplied."""
    embeddings = [z if z.stride(1) == 1 else z.contiguous() for z in embeddings]
    normalised = embeddings[0].new_empty(len(embeddings), *embeddings[0].shape)
    inverse_norms = normalised.new_empty(normalised.shape[:2])
    _run_on_rows("contrastive_normalise", embeddings, normalised, inverse_norms)
    return normalised, inverse_norms


def finish(normalised: Tensor, inverse_norms: Tensor, gradients: Sequence[Tensor], scale: float) -> Tensor:
    """Overwrites the gradients of normalised rows with those of the rows, times ``scale``.

    Args:
        normalised, inverse_norms: As :func:`normalise` gives them.
        gradients: M tensors (n, d), float32, contiguous.

    Returns:
        (M, n): the products of each normalised row with its gradient.
    """
    radial = torch.empty_like(inverse_norms)
    _run_on_rows("contrastive_finish", (), normalised, inverse_norms, gradients, radial, scale)
    return radial


def statistics(
    cosines: Tensor, temperature: float, targets: Targets, row_lse: Tensor, column_lse: Tensor, attraction: Tensor
) -> None:
    """Reads each tile once.

    Args:
        cosines: (tiles, rows, columns), float32, contiguous.
        temperature: tau; s is cosine / tau.
        targets: Those of every tile.
        row_lse: (tiles, rows), float32, unit stride along rows; filled with the log-sum-exps of s over columns.
        column_lse: (tiles, columns), likewise; over rows.
        attraction: As ``row_lse``, strides included; filled with sums over columns of (t_ij + t_ji) s_ij.
    """
    _run_on_tiles("contrastive_statistics", cosines, temperature, targets, row_lse, column_lse, attraction)


def gradients(cosines: Tensor, temperature: float, targets: Targets, row_lse: Tensor, column_lse: Tensor) -> None:
    """Overwrites each tile's cosines with exp(s - row_lse) + exp(s - column_lse) - (t_ij + t_ji).

    Args: as for :func:`statistics`.
    """
    _run_on_tiles("contrastive_gradients", cosines, temperature, targets, row_lse, column_lse, None)


def _run_on_tiles(
    name: str,
    cosines: Tensor,
    temperature: float,
    targets: Targets,
    row_lse: Tensor,
    column_lse: Tensor,
    attraction: Tensor | None,
) -> None:
    labels = targets.labels
    call = _TILES.pack(
        *cosines.shape,
        cosines.data_ptr(),
        temperature,
        _address(targets.own_labels),
        _address(labels),
        0 if labels is None else _LABELS[labels.dtype],
        targets.reach,
        targets.own_weights.data_ptr(),
        targets.weights.data_ptr(),
        targets.diagonal.data_ptr(),
        targets.shift,
        row_lse.data_ptr(),
        row_lse.stride(0),
        column_lse.data_ptr(),
        column_lse.stride(0),
        _address(attraction),
        torch.get_num_threads(),
        library.parallel_loop(),
    )
    library.run(name, call)


def _run_on_rows(
    name: str,
    embeddings: Sequence[Tensor],
    normalised: Tensor,
    inverse_norms: Tensor,
    gradients: Sequence[Tensor] = (),
    radial: Tensor | None = None,
    scale: float = 0.0,
) -> None:
    call = _ROWS.pack(
        *normalised.shape,
        *_three([z.data_ptr() for z in embeddings]),
        *_three([z.stride(0) for z in embeddings]),
        normalised.data_ptr(),
        inverse_norms.data_ptr(),
        *_three([z.data_ptr() for z in gradients]),
        _address(radial),
        scale,
        torch.get_num_threads(),
        library.parallel_loop(),
    )
    library.run(name, call)


def _three(numbers: list[int]) -> list[int]:
    """One for each modality; 0 where there is none."""
    return numbers + [0] * (3 - len(numbers))


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
