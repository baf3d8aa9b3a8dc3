"""Triton engine of the pairwise contrastive loss: float32, bfloat16 and float16 on GPUs.

Up to ``FEW`` rows (:mod:`cmsbert_fast.kernels.contrastive.call`) forward and backward of one process are two launches
each, as sorting labels alone would be more than that. Nothing synchronises the host at any size.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cmsbert_fast.kernels.contrastive import gradients, preparation, statistics
from cmsbert_fast.kernels.contrastive.call import Scalars, Side, are_few, side
from cmsbert_fast.ops.contrastive.engine import Engine, target_weight
from cmsbert_fast.ops.contrastive.torch import TorchEngine
from cmsbert_fast.ops.contrastive.types import LABEL_TOLERANCE, Block, Call, Numbers, Saved

SORTS = True  # whether many rows are sorted by label; bench.gpu measures what that gains


class TritonEngine(Engine):
    """See :class:`cmsbert_fast.ops.contrastive.engine.Engine`; what has no rows is left to PyTorch."""

    def inverse_norms(self, embeddings: Sequence[Tensor]) -> Tensor:
        return preparation.inverse_norms(embeddings)

    def count_related(self, labels: Tensor, columns: Tensor, reach: float) -> Tensor:
        if not labels.is_floating_point() or labels.numel() == 0:
            return TorchEngine().count_related(labels, columns, reach)
        return preparation.count_related(labels, columns.float().sort().values, reach)

    def statistics(self, rows: Block, columns: Block, numbers: Numbers) -> tuple[Tensor, Tensor, Tensor]:
        if rows.rows == 0 or columns.rows == 0:
            return TorchEngine().statistics(rows, columns, numbers)
        return statistics.statistics(*_sides(rows, columns), _scalars(numbers), rows.offset - columns.offset)

    def gradients(self, rows: Block, columns: Block, numbers: Numbers) -> tuple[list[Tensor], Tensor]:
        raw = [z.new_zeros(z.shape, dtype=torch.float32) for z in rows.embeddings]
        radial = torch.zeros_like(rows.inverse_norm)
        if rows.rows == 0 or columns.rows == 0:
            return raw, radial
        for chunk, part, along in _strips(rows, columns, numbers):
            for whole, strip in zip(raw, part, strict=True):
                whole[chunk] = strip
            radial[:, chunk] = along
        return raw, radial

    def forward(self, call: Call) -> tuple[Tensor, Saved]:
        if call.rows == 0:
            return super().forward(call)
        if not are_few(call.rows):
            return self._forward_of_many(call)
        z = call.embeddings[0]
        inverse_norm = z.new_empty(len(call.embeddings), call.rows, dtype=torch.float32)
        weight = z.new_empty(call.rows, dtype=torch.float32)
        rows = side(call.embeddings, call.labels, inverse_norm, weight)
        loss, lse = statistics.loss_of_square(rows, _scalars_of_square(call))
        return loss, Saved(lse, inverse_norm, weight)

    def _forward_of_many(self, call: Call) -> tuple[Tensor, Saved]:
        """What is saved is in the order of :func:`_in_order`."""
        order, embeddings, labels = _in_order(call)
        scalars, inverse_norm = _scalars_of_square(call), self.inverse_norms(embeddings)
        if labels is None:
            weight = torch.zeros_like(inverse_norm[0])
        elif order is not None and labels.is_floating_point():
            weight = preparation.target_weights(labels, scalars.reach, call.smoothing)
        else:
            count = self.count_related(labels, labels, scalars.reach) - 1
            weight = target_weight(count, call.smoothing, inverse_norm.dtype)
        rows = side(embeddings, labels, inverse_norm, weight)
        row_lse, column_lse, attraction = statistics.statistics(rows, rows, scalars, 0, ordered=order is not None)
        lse = torch.cat([row_lse, column_lse])
        return (lse.sum() - attraction) / call.rows, Saved(lse, inverse_norm, weight)

    def backward(self, call: Call, saved: Saved, grad: Tensor) -> tuple[list[Tensor], Tensor]:
        if call.rows == 0:
            return super().backward(call, saved, grad)
        if are_few(call.rows):
            rows = side(call.embeddings, call.labels, saved.inverse_norm, saved.weight, saved.lse)
            return gradients.gradients_of_square(rows, _scalars_of_square(call), grad)
        order, embeddings, labels = _in_order(call)
        rows = side(embeddings, labels, saved.inverse_norm, saved.weight, saved.lse)
        return gradients.gradients_of_large_square(rows, _scalars_of_square(call), grad, order)


def _in_order(call: Call) -> tuple[Tensor | None, Sequence[Tensor], Tensor | None]:
    """Rows sorted by label, so that related ones lie in a band of tiles: the order, embeddings (copies) and labels.

    Without labels the rows as they are; the order is then None. NaN comes last.
    """
    if call.labels is None or not SORTS:
        return None, call.embeddings, call.labels
    labels, order = call.labels.sort(stable=True)
    return order, [z[order] for z in call.embeddings], labels


def _side(block: Block) -> Side:
    return side(block.embeddings, block.labels, block.inverse_norm, block.weight, block.lse)


def _sides(rows: Block, columns: Block) -> tuple[Side, Side]:
    own = _side(rows)
    return own, own if rows is columns else _side(columns)


def _scalars(numbers: Numbers) -> Scalars:
    return Scalars(numbers.temperature, 0.0, numbers.smoothing, numbers.reach)


def _scalars_of_square(call: Call) -> Scalars:
    """A fixed temperature stays a number: to make a tensor of it would be one more launch."""
    return Scalars(call.temperature, call.fixed_temperature, call.smoothing, call.threshold + LABEL_TOLERANCE)


def _strips(rows: Block, columns: Block, numbers: Numbers) -> Iterator[tuple[slice, list[Tensor], Tensor]]:
    """As :func:`cmsbert_fast.kernels.contrastive.gradients.gradients`."""
    return gradients.gradients(*_sides(rows, columns), _scalars(numbers), rows.offset - columns.offset)
