"""The numbers of a step, copied from the device while it keeps computing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmsbert_fast.training import distributed
from cmsbert_fast.training.backward import StepLosses
from cmsbert_fast.training.distributed import Ranks


@dataclass(frozen=True, slots=True)
class StepNumbers:
    """The numbers of a step, on the host.

    Attributes:
        loss: The weighted sum of ``losses``.
        losses: Losses of the global batch, by name.
        gradient_norm: Before clipping.
        stop: Whether a rank was asked to stop.
    """

    loss: float
    losses: dict[str, float]
    gradient_norm: float
    stop: bool


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Numbers of a step in transit from the device; read one step later, so a GPU never waits for the host."""

    step: int
    learning_rate: float
    indices: np.ndarray
    names: tuple[str, ...]  # of the losses
    values: Tensor  # losses and stop requests, averaged over the ranks; then loss weights, gradient norm
    copied: Any  # CUDA event; None on the CPU

    @classmethod
    def of(
        cls,
        step: int,
        learning_rate: float,
        indices: np.ndarray,
        losses: StepLosses,
        norm: Tensor,
        stop: bool,
        ranks: Ranks,
    ) -> "StepRecord":
        """Averages a step's numbers over the ranks and starts copying them to the host."""
        averaged = torch.stack([*losses.values.values(), norm.new_full((), float(stop))]).double()
        averaged = distributed.sum_over_ranks(averaged, ranks) / ranks.world_size
        weights = [
            weight.detach() if isinstance(weight, Tensor) else norm.new_full((), weight, dtype=torch.float64)
            for weight in (losses.weights[name] for name in losses.values)
        ]
        same = torch.stack([value.double() for value in (*weights, norm)])
        values = torch.cat([averaged, same]).to("cpu", non_blocking=True)
        copied = None
        if ranks.device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record()
        return cls(step, learning_rate, indices, tuple(losses.values), values, copied)

    def read(self) -> StepNumbers:
        """The numbers; waits for their copy."""
        if self.copied is not None:
            self.copied.synchronize()
        count = len(self.names)
        losses, (stop,), weights, (norm,) = (part.tolist() for part in self.values.split([count, 1, count, 1]))
        loss = sum(weight * value for weight, value in zip(weights, losses, strict=True))
        return StepNumbers(loss, dict(zip(self.names, losses, strict=True)), norm, stop > 0)
