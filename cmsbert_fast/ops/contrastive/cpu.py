"""The "cpu" engine of the pairwise contrastive loss, in float32: compiled C++ around products, which are PyTorch's or,
where they are faster, our own."""

import torch
from torch import Tensor

from cmsbert_fast.kernels.cpu import contrastive_call
from cmsbert_fast.kernels.cpu.contrastive_call import Targets
from cmsbert_fast.kernels.cpu.product import matrix_product
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.contrastive.engine import temperature_gradient
from cmsbert_fast.ops.contrastive.torch import TorchEngine, diagonal_targets, spread_labels
from cmsbert_fast.ops.contrastive.types import Block, Call, Numbers, directions, pairs

CHUNK_BYTES = 32 * 2**20  # one tile
AT_ONCE_BYTES = 192 * 2**20  # the tiles of all pairs and rows
ROWS = 4096  # of a product that is added to another, and has memory of its own


def fits_at_once(call: Call) -> bool:
    """Whether all tiles fit into memory of a fixed size, so that gradients can be computed beside the loss."""
    return len(pairs(len(call.embeddings))) * call.rows**2 * 4 <= AT_ONCE_BYTES


class CpuEngine(TorchEngine):
    """See :class:`cmsbert_fast.ops.contrastive.engine.Engine`."""

    def __init__(self) -> None:
        self._own = capability.why_not_own_products(torch.float32) is None

    def loss_and_gradients(self, call: Call) -> tuple[Tensor, list[Tensor], Tensor]:
        """The loss of one process and its gradients; requires at least one row and :func:`fits_at_once`.

        Each similarity is computed once.

        Returns:
            loss: 0-dim.
            gradients: M tensors (n, d), of the embeddings.
            temperature_gradient: 0-dim.
        """
        numbers, some = call.numbers, pairs(len(call.embeddings))
        normalised, inverse_norm = contrastive_call.normalise([z.float() for z in call.embeddings])
        weight = self.target_weights(call.labels, numbers, inverse_norm[0])
        block = Block(tuple(call.embeddings), call.labels, inverse_norm, weight)
        tau, targets = float(numbers.temperature), _targets(block, block, numbers)
        tiles = normalised.new_empty(len(some), call.rows, call.rows)
        for tile, (a, b) in zip(tiles, some, strict=True):
            self._product(normalised[a], normalised[b], tile)
        lse, attraction = tiles.new_empty(2, len(some), call.rows), tiles.new_empty(len(some), call.rows)
        contrastive_call.statistics(tiles, tau, targets, *lse, attraction)
        contrastive_call.gradients(tiles, tau, targets, *lse)
        gradients = [torch.empty_like(z) for z in normalised]
        begun = [False] * len(gradients)
        for tile, (a, b) in zip(tiles, some, strict=True):
            for to, g, others in ((a, tile, b), (b, tile.T, a)):
                self._add_product(gradients[to], g, normalised[others], accumulate=begun[to])
                begun[to] = True
        scale = 1 / (call.rows * numbers.temperature)
        radial = contrastive_call.finish(normalised, inverse_norm, gradients, float(scale))
        loss = (lse.sum() - attraction.sum()) / call.rows
        return loss, gradients, temperature_gradient(scale, numbers.temperature, radial)

    def statistics(self, rows: Block, columns: Block, numbers: Numbers) -> tuple[Tensor, Tensor, Tensor]:
        if rows.rows == 0 or columns.rows == 0:
            return super().statistics(rows, columns, numbers)
        some = pairs(len(rows.embeddings))
        tau, targets = float(numbers.temperature), _targets(rows, columns, numbers)
        row_lse, attraction = rows.inverse_norm.new_empty(2, len(some), rows.rows)
        column_lse = row_lse.new_full((len(some), columns.rows), -torch.inf)
        of_chunk = row_lse.new_empty(1, columns.rows)
        for pair, (a, b) in enumerate(some):
            others = _normalised(columns, b)
            for chunk in _chunks(rows, columns):
                tile = self._product(_normalised(rows, a, chunk), others)[None]
                sums = row_lse[pair, None, chunk], of_chunk, attraction[pair, None, chunk]
                contrastive_call.statistics(tile, tau, targets.of(chunk), *sums)
                column_lse[pair] = torch.logaddexp(column_lse[pair], of_chunk[0])
        return row_lse, column_lse, attraction.sum()

    def gradients(self, rows: Block, columns: Block, numbers: Numbers) -> tuple[list[Tensor], Tensor]:
        """If ``rows is columns``, each pair's tile serves both of its modalities."""
        if rows.rows == 0 or columns.rows == 0:
            return super().gradients(rows, columns, numbers)
        assert rows.lse is not None
        assert columns.lse is not None
        every, square = directions(len(rows.embeddings)), rows is columns
        tau, targets = float(numbers.temperature), _targets(rows, columns, numbers)
        opposite = columns.lse.roll(len(every) // 2, 0)
        raw = [torch.zeros_like(z, dtype=torch.float32) for z in rows.embeddings]
        for direction, (a, b) in enumerate(every):
            if square and a > b:
                continue
            others, other_lse = _normalised(columns, b), opposite[direction, None]
            for chunk in _chunks(rows, columns):
                own = _normalised(rows, a, chunk)
                g = self._product(own, others)
                own_lse = rows.lse[direction, None, chunk]
                contrastive_call.gradients(g[None], tau, targets.of(chunk), own_lse, other_lse)
                self._add_product(raw[a][chunk], g, others)
                if square:
                    self._add_product(raw[b], g.T, own)
        radial = torch.zeros_like(rows.inverse_norm)
        for modality, grad in enumerate(raw):
            for chunk in _chunks(rows, columns):
                radial[modality, chunk] = (_normalised(rows, modality, chunk) * grad[chunk]).sum(1)
        return raw, radial

    def _product(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        """a b^T, (m, n), of a (m, depth) and b (n, depth)."""
        out = a.new_empty(len(a), len(b)) if out is None else out
        return matrix_product(a, b, a.dtype, out) if self._own else torch.mm(a, b.T, out=out)

    def _add_product(self, total: Tensor, a: Tensor, b: Tensor, accumulate: bool = True) -> None:
        """Adds a b to ``total``, (m, n), of a (m, depth) and b (depth, n); overwrites it unless ``accumulate``."""
        if not self._own:
            torch.addmm(total, a, b, beta=int(accumulate), out=total)
        elif not accumulate:
            self._product(a, b.T, total)
        else:
            for to, rows in zip(total.split(ROWS), a.split(ROWS), strict=True):
                to += self._product(rows, b.T)


def _normalised(block: Block, modality: int, rows: slice = slice(None)) -> Tensor:
    return block.embeddings[modality][rows].float() * block.inverse_norm[modality, rows, None]


def _chunks(rows: Block, columns: Block) -> list[slice]:
    """Rows whose tile is worked on at a time."""
    step = max(1, CHUNK_BYTES // (4 * columns.rows))
    return [slice(start, min(start + step, rows.rows)) for start in range(0, rows.rows, step)]


def _targets(rows: Block, columns: Block, numbers: Numbers) -> Targets:
    return Targets(
        _labels(rows, numbers),
        _labels(columns, numbers),
        rows.weight.contiguous(),
        columns.weight.contiguous(),
        diagonal_targets(rows, numbers),
        rows.offset - columns.offset,
        numbers.reach,
    )


def _labels(block: Block, numbers: Numbers) -> Tensor | None:
    if block.labels is None:
        return None
    labels = spread_labels(block.labels, numbers.reach)
    return (labels if labels.is_floating_point() else labels.long()).contiguous()
