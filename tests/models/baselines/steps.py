"""A step of training for the small systems, by the function that the trainer uses."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cmsbert_fast.models.base import Classifier, TrainingState
from cmsbert_fast.training.backward import StepLosses, backward
from cmsbert_fast.training.distributed import Gradients, Ranks
from tests.models.baselines.utterances import Utterance, labels, packed

ALONE = Ranks(0, 1, torch.device("cpu"))
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
    gradients = Gradients(model.parameters(), ranks)
    gradients.zero()
    settings: Any = SimpleNamespace(accumulation=parts, precision="fp32")
    losses = backward(model, Loaded(batch, model), np.arange(len(batch)), gradients, ranks, settings, state)  # type: ignore[arg-type]
    gradients.finish()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, losses


def train(model: Classifier, batch: Sequence[Utterance], steps: int, rate: float = 1e-2) -> list[float]:
    """Steps of Adam on one batch; the task loss before each."""
    state = new_state(model, batch)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    found = []
    for step in range(steps):
        _, losses = gradients_of(model, batch, state=state)
        optimizer.step()
        if state is not None:
            rows = {name: losses.rows[name].detach() for name in state.row_names}
            state.step(step + 1, torch.arange(len(batch)), rows)
        found.append(float(losses.values["task"]))
    return found
