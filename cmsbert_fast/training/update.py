"""The arithmetic of a training step: gradients of a batch, clipping, AdamW."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cmsbert_fast.models.base import Classifier, TrainingState
from cmsbert_fast.training.backward import StepLosses, backward, backward_of
from cmsbert_fast.training.batches import Batches
from cmsbert_fast.training.distributed import Gradients, Ranks
from cmsbert_fast.training.settings import TrainingSettings


class Updated(NamedTuple):
    """What a step tells, on the device.

    Attributes:
        losses: Of the batch, from before the step.
        norm: Of the gradients before clipping, 0-dim.
    """

    losses: StepLosses
    norm: Tensor


class Update:
    """One step: called with a global batch, changes the model. Never waits for the device."""

    def __init__(
        self,
        model: Classifier,
        batches: Batches,
        gradients: Gradients,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        settings: TrainingSettings,
        state: TrainingState | None,
    ):
        self.model, self.batches, self.gradients, self.optimizer = model, batches, gradients, optimizer
        self.ranks, self.settings, self.state = ranks, settings, state

    def __call__(self, indices: np.ndarray) -> Updated:
        """A step on the examples of these indices."""
        self.gradients.zero()
        losses = backward(self.model, self.batches, indices, self.gradients, self.ranks, self.settings, self.state)
        return Updated(losses, self._step())

    def of_inputs(self, inputs: Mapping[str, Any]) -> Updated:
        """A step on the whole batch's inputs and labels, in one process: its launches depend on their shapes alone."""
        self.gradients.zero()
        losses = backward_of(self.model, inputs, self.gradients, self.ranks, self.settings)
        return Updated(losses, self._step())

    def _step(self) -> Tensor:
        settings = self.settings
        self.gradients.finish()
        norm = self.gradients.norm()
        if settings.max_grad_norm is not None:
            self.gradients.clip(norm, settings.max_grad_norm)
        if settings.max_grad_value is not None:
            self.gradients.clip_values(settings.max_grad_value)
        self.optimizer.step()
        return norm
