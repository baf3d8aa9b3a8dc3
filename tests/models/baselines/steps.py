"""A step of training for the small systems, by the function that the trainer uses."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.utils._pytree import tree_leaves_with_path

from cmsbert_fast.models.base import Classifier, TrainingState
from cmsbert_fast.training.backward import StepLosses, backward
from cmsbert_fast.training.distributed import Gradients, Ranks, join_shares, sum_over_ranks
from tests.models.baselines.utterances import Utterance, labels, packed

ALONE = Ranks(0, 1, torch.device("cpu"))
# One of each model: with several ranks its hooks stay on the parameters.
_GRADIENTS: WeakKeyDictionary[Classifier, Gradients] = WeakKeyDictionary()
OPTIONS = dict(seed=0, momentum=0.9)  # settings that a training state may read


class Loaded:
    """Takes the place of :class:`cmsbert_fast.training.batches.Batches`."""

    def __init__(self, batch: Sequence[Utterance], model: Classifier):
        self.batch, self.model = batch, model

    def load(self, indices: np.ndarray) -> dict[str, Any]:
        some = [self.batch[i] for i in indices]
        return packed(some, self.model) | {"labels": labels(some)}


def new_state(model: Classifier, batch: Sequence[Utterance]) -> TrainingState | None:
    state = model.training_state(len(batch), **OPTIONS)
    if state is not None:
        state.start(labels(batch))
    return state


def gradients_of(
    model: Classifier,
    batch: Sequence[Utterance],
    parts: int = 1,
    ranks: Ranks = ALONE,
    state: TrainingState | None = None,
) -> tuple[dict[str, torch.Tensor], StepLosses]:
    """The gradients of the whole batch's loss by parameter, and the losses."""
    model.train()
    if model not in _GRADIENTS:
        _GRADIENTS[model] = Gradients(model, ranks)
    gradients = _GRADIENTS[model]
    gradients.zero()
    settings: Any = SimpleNamespace(accumulation=parts, precision="fp32")
    losses = backward(model, Loaded(batch, model), np.arange(len(batch)), gradients, ranks, settings, state)  # type: ignore[arg-type]
    gradients.finish()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, losses


def train(
    model: Classifier,
    batch: Sequence[Utterance],
    steps: int,
    rate: float = 1e-2,
    parts: int = 1,
    ranks: Ranks = ALONE,
    state: TrainingState | None = None,
) -> list[float]:
    """Steps of Adam on one batch, each an epoch; the task loss before each, on one rank. ``state`` None = a new one."""
    state = state or new_state(model, batch)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    found = []
    for step in range(steps):
        _, losses = gradients_of(model, batch, parts, ranks, state)
        optimizer.step()
        if state is not None:
            rows = {name: join_shares(losses.rows[name].detach(), len(batch), ranks) for name in state.row_names}
            state.step(step + 1, torch.arange(len(batch)), rows)
        found.append(float(losses.values["task"]))
    return found


class Step(NamedTuple):
    """What a step computes: ``gradients`` by parameter, ``values`` of the losses, ``memory`` of the system before."""

    gradients: dict[str, torch.Tensor]
    values: dict[str, torch.Tensor]
    memory: dict[str, torch.Tensor]


def one_step(model: Classifier, batch: Sequence[Utterance], parts: int = 1, ranks: Ranks = ALONE) -> Step:
    """A first step; of a system that remembers something, the one after three others."""
    state = new_state(model, batch)
    if state is not None:
        train(model, batch, 3, parts=parts, ranks=ranks, state=state)
    gradients, losses = gradients_of(model, batch, parts, ranks, state)
    values = sum_over_ranks(torch.stack(list(losses.values.values())), ranks) / ranks.world_size
    memory = {} if state is None else {f"{path}": value for path, value in tree_leaves_with_path(state.state_dict())}
    return Step(gradients, dict(zip(losses.values, values, strict=True)), memory)
