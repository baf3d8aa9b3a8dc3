"""A system that remembers something of every training example, as Self-MM does: to test how the trainer keeps it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmsbert_fast import CMSBertForSequenceClassification
from cmsbert_fast.models.losses import LossTerm
from cmsbert_fast.models.registry import VARIANTS, Variant


class Memory:
    """A moving average of every training example's predictions."""

    starts_with_validation = False
    row_names = ("logits",)

    def __init__(self, count: int):
        self.predictions = torch.zeros(count)
        self.seen: list[tuple[int, list[int]]] = []  # epoch and indices of every step

    def start(self, labels: Tensor) -> None:
        self.predictions = labels.clone()

    def targets(self, indices: np.ndarray) -> Tensor:
        return self.predictions[indices]

    def step(self, epoch: int, indices: np.ndarray, rows: Mapping[str, Tensor]) -> None:
        assert set(rows) == {"logits"}
        assert not rows["logits"].requires_grad
        self.seen.append((epoch, indices.tolist()))
        self.predictions[indices] = 0.5 * self.predictions[indices] + 0.5 * rows["logits"][:, 0]

    def validated(self, losses: Mapping[str, float]) -> None:
        assert list(losses) == ["task", "memory"]

    def report(self) -> dict[str, float]:
        return {"remembered": float(self.predictions.double().sum())}

    def state_dict(self) -> dict[str, Any]:
        return {"predictions": self.predictions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.predictions = state["predictions"]


class Remembering(CMSBertForSequenceClassification):
    """CMSBERT that is also to predict what it predicted before."""

    def losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, targets: Tensor | None = None, group: Any = None
    ) -> dict[str, LossTerm]:
        memory = rows["logits"].new_zeros(()) if targets is None else (rows["logits"][:, 0] - targets).abs().mean()
        return {**super().losses(rows, labels), "memory": LossTerm(memory, 0.25)}

    def training_state(self, count: int, **options: Any) -> Memory:
        assert (options["momentum"], options["seed"]) == (0.7, 0)
        return Memory(count)


def register() -> None:
    """Makes it known as ``--variant remembering``."""
    name = f"{__name__}:{Remembering.__name__}"
    VARIANTS["remembering"] = Variant(name, frozenset({"frames"}), state_options={"momentum": 0.7})  # type: ignore[index]
