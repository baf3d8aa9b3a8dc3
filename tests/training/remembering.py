"""Two systems to test the trainer with.

Both remember something of every training example, as Self-MM does. The second also compares the utterances of the
global batch, as MISA and MFM do.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cmsbert_fast import CMSBertForSequenceClassification
from cmsbert_fast.models.gathering import gather_rows
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

    def targets(self, indices: Tensor) -> Tensor:
        return self.predictions[indices]

    def step(self, epoch: int, indices: Tensor, rows: Mapping[str, Tensor]) -> None:
        assert set(rows) == {"logits"}
        assert not rows["logits"].requires_grad
        assert (indices.dtype, rows["logits"].dtype) == (torch.int64, torch.float32)
        self.seen.append((epoch, indices.tolist()))
        self.predictions[indices] = 0.5 * self.predictions[indices] + 0.5 * rows["logits"][:, 0]

    def validated(self, losses: Mapping[str, float]) -> None:
        assert list(losses)[:2] == ["task", "memory"]

    def report(self) -> dict[str, float]:
        return {"remembered": float(self.predictions.double().sum())}

    def state_dict(self) -> dict[str, Any]:
        return {"predictions": self.predictions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.predictions = state["predictions"]


class Remembering(CMSBertForSequenceClassification):
    """CMSBERT that is also to predict what it predicted before."""

    def row_losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, targets: Tensor | None = None
    ) -> dict[str, LossTerm]:
        memory = rows["logits"].new_zeros(()) if targets is None else (rows["logits"][:, 0] - targets).abs().mean()
        return {**super().row_losses(rows, labels), "memory": LossTerm(memory, 0.25)}

    def training_state(self, count: int, **options: Any) -> Memory:
        assert (options["momentum"], options["seed"]) == (0.7, 0)
        return Memory(count)


class Comparing(Remembering):
    """The same, which is also to spread its predictions as the labels are spread."""

    has_global_terms = True

    def global_losses(self, rows: Mapping[str, Tensor], labels: Tensor, group: Any = None) -> dict[str, LossTerm]:
        assert group is None or self.training
        own = {"scores": rows["logits"][:, 0], "labels": labels}
        spread = {name: values.std() for name, values in gather_rows(own, group).items()}
        return {"spread": LossTerm((spread["scores"] - spread["labels"]).square(), 0.5, per_row=False)}


SYSTEMS = {"remembering": Remembering, "comparing": Comparing}


def register() -> None:
    """Makes them known as ``--variant remembering`` and ``--variant comparing``."""
    for name, kind in SYSTEMS.items():
        path = f"{__name__}:{kind.__name__}"
        VARIANTS[name] = Variant(path, frozenset({"frames"}), state_options={"momentum": 0.7})  # type: ignore[index]


def unregister() -> None:
    """Undoes :func:`register`."""
    for name in SYSTEMS:
        del VARIANTS[name]  # type: ignore[attr-defined]
