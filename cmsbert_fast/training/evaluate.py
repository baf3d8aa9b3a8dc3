"""Predictions for a whole split, with their losses and metrics."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmsbert_fast.data.task import LabelKind, Labels
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.cmsbert.outputs import SUBNETWORKS
from cmsbert_fast.training.alignment import alignment
from cmsbert_fast.training.batches import Batches
from cmsbert_fast.training.distributed import Ranks, join_shares, share
from cmsbert_fast.training.errors import NotFinite
from cmsbert_fast.training.precision import autocast, held_weights, upcast


@dataclass(frozen=True, slots=True)
class Predictions:
    """A model's predictions for examples, in their order, on the CPU.

    Attributes:
        ids: n ids.
        rows: The model's rows by name, each (n, ...); at least float32.
        labels: (n,) float (scores) or int64 (classes), (n, K) float (several at once); None if any label is unknown.
    """

    ids: list[str]
    rows: dict[str, Tensor]
    labels: Tensor | None

    @property
    def logits(self) -> Tensor:
        """(n, num_labels)"""
        return self.rows["logits"]

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """z_m by modality, (n, d); empty for models without embeddings."""
        return {m: self.rows[f"{m}_embeds"] for m in SUBNETWORKS if f"{m}_embeds" in self.rows}


@torch.no_grad()
def predict(
    model: Classifier,
    batches: Batches,
    ranks: Ranks,
    batch_size: int,
    precision: str = "fp32",
    with_losses: bool = False,
) -> Predictions:
    """Predicts a whole split. Every rank computes its share and gets the whole.

    The ranks together compute ``batch_size`` examples at a time. ``with_losses``: :func:`losses` will read the rows.
    """
    rows_of = model.rows if with_losses else model.predicted_rows
    parts: dict[str, list[Tensor]] = {}
    mine = range(len(batches))[share(len(batches), ranks)]
    # A rank without examples computes one anyway, to learn the shapes of its empty rows.
    with _evaluating(model), held_weights(model, precision, ranks.device):
        for some in _chunks(mine or range(1), max(1, batch_size // ranks.world_size)):
            with autocast(precision, ranks.device):
                rows = rows_of(**batches.load(some, labels=False))
            for name, values in rows.items():
                parts.setdefault(name, []).append(upcast(values))
    own = {name: torch.cat(values)[: len(mine)] for name, values in parts.items()}
    joined = {name: join_shares(values, len(batches), ranks).cpu() for name, values in own.items()}
    return Predictions(batches.ids(range(len(batches))), joined, batches.labels())


def check_finite(predictions: Predictions) -> Predictions:
    """Returns the predictions if all are finite.

    Raises:
        NotFinite: Some are not; the message names their examples.
    """
    columns = [rows.reshape(len(rows), -1) for rows in predictions.rows.values() if rows.is_floating_point()]
    wrong = ~torch.cat(columns, dim=1).isfinite().all(dim=1)
    if wrong.any():
        ids = ", ".join(predictions.ids[i] for i in wrong.nonzero()[:, 0].tolist())
        raise NotFinite(f"the predictions for these examples are not finite; lower --learning-rate: {ids}")
    return predictions


@torch.no_grad()
def losses(model: Classifier, predictions: Predictions, batch_size: int) -> dict[str, float]:
    """The model's losses over a whole split predicted ``with_losses``, by name, in eval mode.

    All are means over the examples. A loss that compares the examples of a batch is averaged over consecutive batches
    of ``batch_size`` examples, whatever the number of ranks.
    """
    rows, labels, n = predictions.rows, predictions.labels, len(predictions.ids)
    assert labels is not None
    totals: dict[str, float] = {}  # times n
    with _evaluating(model), _on_cpu(model):
        terms = model.row_losses({**rows, "logits": predictions.logits.double()}, labels)
        for some in _chunks(range(n), batch_size):
            chunk = slice(some.start, some.stop)
            compared = model.global_losses({name: values[chunk] for name, values in rows.items()}, labels[chunk])
            for name, term in compared.items():
                totals[name] = totals.get(name, 0.0) + float(term.value) * len(some)
    found = {name: float(term.value) for name, term in terms.items()}
    return {**found, **{name: total / n for name, total in totals.items()}}


def measure(predictions: Predictions, labels: Labels) -> dict[str, float]:
    """The metrics of SPEC section 7 that mean something for the labels of a corpus."""
    from cmsbert_fast.training.metrics import metrics_of  # slow to import, not needed for prediction

    assert predictions.labels is not None
    return metrics_of(labels, predictions.logits.numpy(), predictions.labels.numpy())


def alignment_of(predictions: Predictions, labels: Labels) -> dict[str, Any] | None:
    """:func:`~cmsbert_fast.training.alignment.alignment`; None without embeddings, or of fewer than 2 examples."""
    if not predictions.embeddings or len(predictions.ids) < 2:
        return None
    known = predictions.labels if labels.kind is not LabelKind.SEVERAL else None
    return alignment(
        {name: z.numpy() for name, z in predictions.embeddings.items()},
        None if known is None else known.numpy(),
        bool(labels.classes),
    )


def selection(values: dict[str, float]) -> float:
    """The validation score, lower is better: MAE; for classes negative accuracy, or F1 where several are possible."""
    return values["mae"] if "mae" in values else -values["wa" if "wa" in values else "f1"]


def selected_metric(labels: Labels) -> str:
    """The name of the metric behind :func:`selection`."""
    return {LabelKind.CLASSES: "wa", LabelKind.SEVERAL: "f1"}.get(labels.kind, "mae")


@contextmanager
def _evaluating(model: Classifier) -> Iterator[None]:
    """The model in eval mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _on_cpu(model: Classifier) -> Iterator[None]:
    """Losses computed by the backend that runs on the CPU, where predictions are: "torch", whatever the model's is."""
    backend, model.config.backend = model.config.backend, "torch"
    try:
        yield
    finally:
        model.config.backend = backend


def _chunks(items: range, size: int) -> Iterator[range]:
    return (items[i : i + size] for i in range(0, len(items), size))
