"""The backward pass of a step: one path for whole batches, micro-batches, ranks and any losses."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from cmsbert_fast.models.base import Classifier, TrainingState
from cmsbert_fast.models.losses import LossTerm, total_loss
from cmsbert_fast.training import distributed
from cmsbert_fast.training.batches import Batches, place
from cmsbert_fast.training.distributed import Gradients, Ranks
from cmsbert_fast.training.gradcache import gradcache_backward
from cmsbert_fast.training.precision import autocast
from cmsbert_fast.training.settings import TrainingSettings


class StepLosses(NamedTuple):
    """The losses of a step, detached.

    Attributes:
        values: By name, 0-dim; averaged over the ranks, they are those of the global batch.
        weights: By name, the weight of each in the loss.
        rows: The model's rows for this rank's examples, from before the step.
    """

    values: dict[str, Tensor]
    weights: dict[str, float | Tensor]
    rows: dict[str, Tensor]


def backward(
    model: Classifier,
    batches: Batches,
    indices: np.ndarray,
    gradients: Gradients,
    ranks: Ranks,
    settings: TrainingSettings,
    state: TrainingState | None = None,
) -> StepLosses:
    """Adds the gradients of a global batch: averaged over the ranks, they are those of the batch's loss.

    Args:
        model: In training mode.
        batches: The training examples.
        indices: The global batch.
        gradients: The model's gradients.
        ranks: This process.
        settings: Micro-batches and precision.
        state: The model's state, if any.
    """
    mine = indices[distributed.share(len(indices), ranks)]
    assert len(mine), "preflight.check lets no batch be smaller than the number of ranks"
    parts = np.array_split(mine, min(settings.accumulation, len(mine)))
    # Losses that compare utterances need the rows of all micro-batches at once; others take each by itself.
    groups = [parts] if model.has_global_terms else [[part] for part in parts]
    found = []
    for i, group in enumerate(groups):
        targets = None if state is None else state.targets(place(np.concatenate(group), ranks.device))
        scale = sum(map(len, group)) * ranks.world_size / len(indices)
        inputs = [batches.load(part) for part in group]
        with nullcontext() if i + 1 == len(groups) else gradients.no_sync():
            found.append(_backward_together(model, inputs, targets, scale, gradients, ranks, settings.precision))
    if len(found) == 1:
        return found[0]
    values = {name: torch.stack([losses.values[name] for losses in found]).sum() for name in found[0].values}
    rows = {name: torch.cat([losses.rows[name] for losses in found]) for name in found[0].rows}
    return StepLosses(values, found[0].weights, rows)


def backward_of(
    model: Classifier, inputs: Mapping[str, Any], gradients: Gradients, ranks: Ranks, settings: TrainingSettings
) -> StepLosses:
    """:func:`backward` in one process, from a whole batch's inputs and labels, without micro-batches or a state."""
    return _backward_together(model, [dict(inputs)], None, 1.0, gradients, ranks, settings.precision)


def _backward_together(
    model: Classifier,
    micro_batches: Sequence[dict[str, Any]],
    targets: Tensor | None,
    scale: float,
    gradients: Gradients,
    ranks: Ranks,
    precision: str,
) -> StepLosses:
    """:func:`backward` for micro-batches whose losses take all their rows together.

    ``scale`` turns means over their rows into terms of the global batch's mean, times the number of ranks.
    """
    labels = torch.cat([inputs.pop("labels") for inputs in micro_batches])

    def forward(inputs: dict[str, Any]) -> dict[str, Tensor]:
        with autocast(precision, ranks.device):
            return model.rows(**inputs)

    def loss(rows: dict[str, Tensor]) -> tuple[Tensor, dict[str, LossTerm]]:
        # As in model(labels=...): a whole batch's losses use the precision of its forward pass.
        with autocast(precision, ranks.device) if len(micro_batches) == 1 else nullcontext():
            found = model.losses(rows, labels, targets, ranks.group)
        if not model.has_global_terms and not all(term.per_row for term in found.values()):
            raise TypeError(f"{type(model).__name__} has global losses; its has_global_terms must be True.")
        terms = {
            name: term._replace(value=term.value * scale) if term.per_row else term for name, term in found.items()
        }
        return total_loss(terms), terms

    result = gradcache_backward(forward, micro_batches, loss, no_sync=gradients.no_sync)
    terms: dict[str, LossTerm] = result.loss[1]
    return StepLosses(
        {name: term.value for name, term in terms.items()},
        {name: term.weight for name, term in terms.items()},
        cast(dict[str, Tensor], result.outputs),
    )
