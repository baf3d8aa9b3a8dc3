"""Plain-PyTorch engine of the pairwise contrastive loss: any device and dtype, chunked over rows, memory O(n).

An engine works on a rectangle: the rows of one :class:`Block` against the columns of another. One process has one block
and one square; under data parallelism every rank has its own rows and meets the columns of all. An engine prepares
blocks (:func:`make_block`, or :func:`inverse_norms` and :func:`count_related` where a rank does not hold all labels)
and has three functions; the Triton engine (``cmsbert_fast.kernels.contrastive``) has the same:

- :func:`statistics`: log-sum-exps of rows and columns from one similarity tile a pair, and the attraction term;
- :func:`gradients`: the gradient with respect to the normalised rows;
- :func:`finish`: through the normalisation, to the embeddings.

With s_ij = <a_i, b_j>/tau (a, b normalised) and targets t (Eq. 23), both directions of a pair together are
``mean_i [lse_j s_ij + lse_j s_ji - sum_j (t_ij + t_ji) s_ij]`` and have the gradient ``G_ij/n`` with respect to s_ij,
where ``G_ij = exp(s_ij - rowlse_i) + exp(s_ij - collse_j) - (t_ij + t_ji)``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

EPSILON = 1e-12  # torch.nn.functional.normalize's
LABEL_TOLERANCE = 1e-5  # labels are float32: 0.3 - 0.2 counts as 0.1
CHUNK_BYTES = 32 * 2**20  # one (rows, n) matrix; about six are alive at a time
COMPARISONS = 2**18  # pairs of labels up to which all are compared: bisection is some 20 operators a step


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of the global batch, ready to be rows or columns of a similarity rectangle.

    Attributes:
        embeddings: M tensors (n, d), as given (not normalised).
        labels: (n,) or None (targets are the identity).
        inverse_norm: (M, n), 1 / max(|z|, EPSILON).
        weight: (n,), (1 - beta) / \\|S_i\\|, 0 where S_i is empty.
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


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def inverse_norms(embeddings: tuple[Tensor, ...]) -> Tensor:
    """Returns (M, n): 1 / max(|z|, EPSILON) in the accumulation dtype."""
    dtype = accumulation_dtype(embeddings[0].dtype)
    norms = [torch.linalg.vector_norm(z, dim=1, dtype=dtype) for z in embeddings]
    return torch.stack(norms).clamp_min(EPSILON).reciprocal()


def spread_labels(labels: Tensor, threshold: float) -> Tensor:
    """Moves labels of different signs apart by more than delta, so that one comparison decides S_i; classes stay."""
    if not labels.is_floating_point():
        return labels
    return labels + labels.sign() * (2 * (threshold + LABEL_TOLERANCE))


def count_related(labels: Tensor, columns: Tensor, threshold: float) -> Tensor:
    """How many of ``columns`` are related to each of ``labels`` (Eq. 23), a label itself included: (n,), int64.

    O(n log n): the related labels are one run of the sorted ones. The ends of the run are found by bisection with the
    same rounded comparison that the tiles make, and not by looking up y + delta: the two differ at the edge by a
    rounding, and the targets would not sum to 1 there. Few labels are all compared.
    """
    columns, labels = spread_labels(columns, threshold), spread_labels(labels, threshold)
    reach = threshold + LABEL_TOLERANCE
    if labels.is_floating_point() and labels.numel() * columns.numel() <= COMPARISONS:
        return ((labels[:, None] - columns).abs_() <= reach).sum(1)
    ordered = columns.sort().values
    if not labels.is_floating_point():
        labels = labels.contiguous()  # or PyTorch warns
        return torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)

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


def target_weight(count: Tensor, smoothing: float, dtype: torch.dtype) -> Tensor:
    """(1 - beta) / |S_i| from |S_i|; 0 where S_i is empty."""
    return ((1.0 - smoothing) / count.clamp_min(1).to(dtype)).masked_fill_(count <= 0, 0.0)


def make_block(embeddings: tuple[Tensor, ...], labels: Tensor | None, smoothing: float, threshold: float) -> Block:
    """The block of one process that holds the whole batch."""
    inverse_norm = inverse_norms(embeddings)
    if labels is None or labels.numel() == 0:
        weight = inverse_norm.new_zeros(embeddings[0].shape[0])
    else:
        weight = target_weight(count_related(labels, labels, threshold) - 1, smoothing, inverse_norm.dtype)
    return Block(embeddings, labels, inverse_norm, weight)


class _Rectangle:
    """Similarities and targets of one rectangle, a chunk of rows at a time."""

    def __init__(self, rows: Block, columns: Block, temperature: Tensor, smoothing: float, threshold: float):
        self.rows, self.columns, self.threshold = rows, columns, threshold
        self.dtype = rows.inverse_norm.dtype
        self.temperature = temperature.to(self.dtype)
        self.labels = [
            None if block.labels is None else spread_labels(block.labels, threshold) for block in (rows, columns)
        ]
        self.diagonal_target = torch.ones_like(rows.weight).masked_fill_(rows.weight > 0, smoothing)
        self.step = max(1, CHUNK_BYTES // (self.dtype.itemsize * max(columns.rows, 1)))
        # One chunk of one square: pairs share what is alive anyway.
        self._whole = rows is columns and self.step >= rows.rows
        self._targets: Tensor | None = None
        self._normalised: dict[int, Tensor] = {}

    def chunks(self):
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
        if own.is_floating_point():
            mask = (own[chunk, None] - other).abs_() <= self.threshold + LABEL_TOLERANCE
        else:
            mask = own[chunk, None] == other
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


def pairs(modalities: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(modalities) for b in range(a + 1, modalities)]


def directions(modalities: int) -> list[tuple[int, int]]:
    """(from, to): every pair forward, then every pair backward."""
    forward = pairs(modalities)
    return forward + [(b, a) for a, b in forward]


def statistics(
    rows: Block, columns: Block, temperature: Tensor, smoothing: float, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps over one rectangle, every similarity computed once.

    Args:
        rows, columns: blocks of n_r and n_c rows.
        temperature: 0-dim tensor.

    Returns:
        row_lse: (P, n_r), of the directions a -> b with a < b, over these columns.
        column_lse: (P, n_c), of the directions b -> a, over these rows.
        attraction: 0-dim, the sum of (t_ij + t_ji) s_ij over pairs and the rectangle.
    """
    work = _Rectangle(rows, columns, temperature, smoothing, threshold)
    some = pairs(len(rows.embeddings))
    row_lse = rows.inverse_norm.new_full((len(some), rows.rows), -torch.inf)
    column_lse = rows.inverse_norm.new_full((len(some), columns.rows), -torch.inf)
    attraction = rows.inverse_norm.new_zeros(())
    if rows.rows == 0 or columns.rows == 0:
        return row_lse, column_lse, attraction
    for pair, (a, b) in enumerate(some):
        others = work.normalised(columns, b).T
        for chunk in work.chunks():
            s = (work.normalised(rows, a, chunk) @ others).div_(work.temperature)
            row_lse[pair, chunk] = s.logsumexp(1)
            column_lse[pair] = torch.logaddexp(column_lse[pair], s.logsumexp(0))
            attraction += work.attraction(s, chunk)
    return row_lse, column_lse, attraction


def gradients(
    rows: Block, columns: Block, temperature: Tensor, smoothing: float, threshold: float
) -> tuple[list[Tensor], Tensor]:
    """Gradient of n tau * loss with respect to the normalised rows, as far as these columns contribute to it.

    Both blocks carry their global ``lse``. If ``rows is columns``, each pair's tile serves both of its modalities.

    Returns:
        raw: M tensors (n_r, d) in the accumulation dtype, sum_b sum_j G_ij b_j.
        radial: (M, n_r), <normalised row, raw>.
    """
    assert rows.lse is not None
    assert columns.lse is not None
    work = _Rectangle(rows, columns, temperature, smoothing, threshold)
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


def finish(block: Block, raw: list[Tensor], radial: Tensor, scale: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """``scale`` times ``raw`` through z / max(|z|, EPSILON): the embeddings' gradients. Overwrites ``raw``."""
    out = []
    for z, inverse, grad, along in zip(block.embeddings, block.inverse_norm, raw, radial, strict=True):
        # A clamped norm is a constant: nothing flows through it.
        along = torch.where(inverse < 0.9999 / EPSILON, along * inverse, 0.0)
        for start in range(0, z.shape[0], 8192):
            chunk = slice(start, start + 8192)
            grad[chunk].addcmul_(z[chunk].to(grad.dtype), along[chunk, None], value=-1)
        out.append(grad.mul_((scale * inverse)[:, None]).to(dtype))
    return out
