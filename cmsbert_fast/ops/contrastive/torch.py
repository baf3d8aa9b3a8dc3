"""Plain-PyTorch engine of the pairwise contrastive loss: any device and dtype, chunked over rows, memory O(n)."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cmsbert_fast.ops.contrastive.engine import EPSILON, Engine
from cmsbert_fast.ops.contrastive.types import (
    Block,
    Numbers,
    accumulation_dtype,
    directions,
    pairs,
)

CHUNK_BYTES = 32 * 2**20  # one (rows, n) matrix; about six are alive at a time
COMPARISONS = 2**18  # pairs of labels up to which all are compared: bisection is some 20 operators a step


def spread_labels(labels: Tensor, reach: float) -> Tensor:
    """Moves scores of different signs apart by more than ``reach``: one comparison decides S_i. Classes stay."""
    return labels + labels.sign() * (2 * reach) if labels.is_floating_point() else labels


def diagonal_targets(block: Block, numbers: Numbers) -> Tensor:
    """t_ii of each row, (n,): 1 where nothing is related."""
    return torch.ones_like(block.weight).masked_fill_(block.weight > 0, numbers.smoothing)


def _count_by_bisection(labels: Tensor, ordered: Tensor, reach: float) -> Tensor:
    """How many of sorted scores are within ``reach`` of each score; both are spread.

    The ends of the run are found with the same rounded comparison that the tiles make, and not by looking up y + delta:
    the two differ at the edge by a rounding, and the targets would not sum to 1 there.
    """

    def first(beyond: Callable[[Tensor], Tensor]) -> Tensor:
        low = torch.zeros_like(labels, dtype=torch.int64)
        high = torch.full_like(low, ordered.numel())
        for _ in range(ordered.numel().bit_length()):
            middle = (low + high) // 2
            stop = beyond(ordered[middle.clamp_max(ordered.numel() - 1)]) | (low >= high)
            high = torch.where(stop, torch.minimum(middle, high), high)
            low = torch.where(stop, low, middle + 1)
        return low

    # NaN is sorted last and is related to nothing.
    start = first(lambda y: (labels - y <= reach) | y.isnan())
    end = first(lambda y: ~(y - labels <= reach))
    return (end - start).clamp_min(0)


class _Rectangle:
    """Similarities and targets of one rectangle, a chunk of rows at a time."""

    def __init__(self, rows: Block, columns: Block, numbers: Numbers):
        self.rows, self.columns, self.reach = rows, columns, numbers.reach
        self.dtype = rows.inverse_norm.dtype
        self.temperature = numbers.temperature.to(self.dtype)
        self.labels = [
            None if block.labels is None else spread_labels(block.labels, self.reach) for block in (rows, columns)
        ]
        self.diagonal_target = diagonal_targets(rows, numbers)
        self.step = max(1, CHUNK_BYTES // (self.dtype.itemsize * max(columns.rows, 1)))
        # One chunk of one square: pairs share what is alive anyway.
        self._whole = rows is columns and self.step >= rows.rows
        self._targets: Tensor | None = None
        self._normalised: dict[int, Tensor] = {}

    def chunks(self) -> Iterator[slice]:
        return (slice(start, start + self.step) for start in range(0, self.rows.rows, self.step))

    def normalised(self, block: Block, modality: int, chunk: slice = slice(None)) -> Tensor:
        if modality in self._normalised:
            return self._normalised[modality]
        out = block.embeddings[modality][chunk].to(self.dtype) * block.inverse_norm[modality, chunk, None]
        if self._whole:
            self._normalised[modality] = out
        return out

    def diagonal(self, matrix: Tensor, chunk: slice) -> tuple[Tensor, slice]:
        """A view of the entries of (chunk, all columns) where both are the same example, and their rows."""
        shift = self.rows.offset + chunk.start - self.columns.offset
        if not -matrix.shape[0] < shift < matrix.shape[1]:
            return matrix.new_empty(0), slice(0, 0)
        view = matrix.diagonal(shift)
        start = chunk.start + max(0, -shift)
        return view, slice(start, start + view.shape[0])

    def related(self, chunk: slice) -> Tensor | None:
        """Whether column j is in S_i."""
        own, other = self.labels
        if own is None or other is None:
            return None
        scores = own.is_floating_point()
        mask = (own[chunk, None] - other).abs_() <= self.reach if scores else own[chunk, None] == other
        self.diagonal(mask, chunk)[0].fill_(False)
        return mask

    def targets(self, chunk: slice) -> Tensor | None:
        """t_ij + t_ji; None where there are no labels, so that the targets are the identity."""
        if self._targets is not None:
            return self._targets
        related = self.related(chunk)
        if related is None:
            return None
        targets = (self.rows.weight[chunk, None] + self.columns.weight).mul_(related)
        diagonal, index = self.diagonal(targets, chunk)
        diagonal += 2 * self.diagonal_target[index]
        if self._whole:
            self._targets = targets
        return targets

    def attraction(self, s: Tensor, chunk: slice) -> Tensor:
        """Sum of (t_ij + t_ji) s_ij. Overwrites ``s``."""
        targets = self.targets(chunk)
        if targets is not None:
            return s.mul_(targets).sum()
        diagonal, index = self.diagonal(s, chunk)
        return 2 * (self.diagonal_target[index] * diagonal).sum()

    def subtract_targets(self, g: Tensor, chunk: slice) -> None:
        targets = self.targets(chunk)
        if targets is not None:
            g -= targets
        else:
            diagonal, index = self.diagonal(g, chunk)
            diagonal -= 2 * self.diagonal_target[index]


class TorchEngine(Engine):
    """See :class:`cmsbert_fast.ops.contrastive.engine.Engine`."""

    def inverse_norms(self, embeddings: Sequence[Tensor]) -> Tensor:
        dtype = accumulation_dtype(embeddings[0].dtype)
        norms = [torch.linalg.vector_norm(z, dim=1, dtype=dtype) for z in embeddings]
        return torch.stack(norms).clamp_min(EPSILON).reciprocal()

    def count_related(self, labels: Tensor, columns: Tensor, reach: float) -> Tensor:
        """O(n log n): the related labels are one run of the sorted ones. Few labels are all compared."""
        columns, labels = spread_labels(columns, reach), spread_labels(labels, reach)
        if labels.is_floating_point() and labels.numel() * columns.numel() <= COMPARISONS:
            return ((labels[:, None] - columns).abs_() <= reach).sum(1)
        ordered = columns.sort().values
        if labels.is_floating_point():
            return _count_by_bisection(labels, ordered, reach)
        labels = labels.contiguous()  # or PyTorch warns
        return torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)

    def statistics(self, rows: Block, columns: Block, numbers: Numbers) -> tuple[Tensor, Tensor, Tensor]:
        work = _Rectangle(rows, columns, numbers)
        some = pairs(len(rows.embeddings))
        row_lse = rows.inverse_norm.new_full((len(some), rows.rows), -torch.inf)
        column_lse = rows.inverse_norm.new_full((len(some), columns.rows), -torch.inf)
        attraction = rows.inverse_norm.new_zeros(())
        if rows.rows == 0 or columns.rows == 0:
            return row_lse, column_lse, attraction
        for pair, (a, b) in enumerate(some):
            others = work.normalised(columns, b)
            for chunk in work.chunks():
                s = (work.normalised(rows, a, chunk) @ others.T).div_(work.temperature)
                row_lse[pair, chunk] = s.logsumexp(1)
                column_lse[pair] = torch.logaddexp(column_lse[pair], s.logsumexp(0))
                attraction += work.attraction(s, chunk)
        return row_lse, column_lse, attraction

    def gradients(self, rows: Block, columns: Block, numbers: Numbers) -> tuple[list[Tensor], Tensor]:
        """If ``rows is columns``, each pair's tile serves both of its modalities."""
        assert rows.lse is not None
        assert columns.lse is not None
        work = _Rectangle(rows, columns, numbers)
        every = directions(len(rows.embeddings))
        raw = [z.new_zeros(z.shape, dtype=work.dtype) for z in rows.embeddings]
        radial = torch.zeros_like(rows.inverse_norm)
        square = rows is columns
        if rows.rows == 0 or columns.rows == 0:
            return raw, radial
        for direction, (a, b) in enumerate(every):
            opposite = (direction + len(every) // 2) % len(every)
            if square and a > b:
                continue
            others = work.normalised(columns, b)
            for chunk in work.chunks():
                own = work.normalised(rows, a, chunk)
                cosine = own @ others.T
                s = cosine / work.temperature
                g = (s - rows.lse[direction, chunk, None]).exp_()
                g += s.sub_(columns.lse[opposite]).exp_()
                del s
                work.subtract_targets(g, chunk)
                raw[a][chunk].addmm_(g, others)
                if square:
                    raw[b].addmm_(g.T, own)
                cosine *= g
                radial[a, chunk] += cosine.sum(1)
                if square:
                    radial[b] += cosine.sum(0)
        return raw, radial
