"""Losses over a whole split."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from cmsbert_fast import (
    CMSBertCLRForSequenceClassification,
    CMSBertConfig,
    CMSBertForSequenceClassification,
    reference,
)
from cmsbert_fast.models.cmsbert.outputs import SUBNETWORKS
from cmsbert_fast.models.losses import LossTerm
from cmsbert_fast.training import evaluate
from cmsbert_fast.training.evaluate import Predictions
from tests.models.baselines import steps
from tests.models.baselines.systems import system
from tests.models.baselines.utterances import utterances
from tests.models.small import config
from tests.training.helpers import CPU


def test_validation_losses_are_means_over_samples(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    z = {m: torch.randn(10, 4, generator=generator, dtype=torch.float64) for m in SUBNETWORKS}
    labels = torch.arange(10).float() / 5
    logits = torch.randn(10, 1, generator=generator)
    rows = {"logits": logits, **{f"{m}_embeds": e for m, e in z.items()}}
    predictions = Predictions([str(i) for i in range(10)], rows, labels)
    whole = CMSBertConfig(visual_size=1, acoustic_size=1, threshold=0.3)
    monkeypatch.setenv("CMSBERT_BACKEND", "triton")  # which has no kernels for the CPU
    with torch.device("meta"):  # predictions are on the CPU, whatever the model is on
        model = CMSBertCLRForSequenceClassification(whole)
    losses = evaluate.losses(model, predictions, batch_size=4)
    assert list(losses) == ["task", "contrastive"]
    assert losses["task"] == pytest.approx(float(((logits[:, 0] - labels) ** 2).mean()), rel=1e-6)
    parts = [
        len(rows)
        * float(reference.pairwise_contrastive_loss(*(e[rows] for e in z.values()), labels[rows], 0.1, 0.9, 0.3))
        for rows in (torch.arange(0, 4), torch.arange(4, 8), torch.arange(8, 10))
    ]
    assert losses["contrastive"] == pytest.approx(sum(parts) / 10, rel=1e-9)
    assert model.config.backend == "auto"


class Noting(CMSBertForSequenceClassification):
    """Notes how its losses are called."""

    has_global_terms = True

    def row_losses(self, rows: Mapping[str, Tensor], labels: Tensor, targets: None = None) -> dict[str, LossTerm]:
        self.seen = [("row", self.training, self.config.backend, len(labels))]
        return super().row_losses(rows, labels)

    def global_losses(self, rows: Mapping[str, Tensor], labels: Tensor, group: None = None) -> dict[str, LossTerm]:
        self.seen.append(("global", self.training, self.config.backend, len(labels)))
        if len(labels) == 1:
            raise RuntimeError("nothing to compare")
        return {"spread": LossTerm(rows["logits"].var(), per_row=False)}


@pytest.mark.parametrize("training", [False, True])
def test_losses_of_a_split_are_taken_in_eval_mode(training):
    """Those of rows of the whole split, once; global ones in batches, and never of more."""
    model = Noting(config(backend="reference")).train(training)
    labels = torch.linspace(-1, 1, 6)
    predictions = Predictions(list("abcdef"), {"logits": labels[:, None] ** 2}, labels)
    losses = evaluate.losses(model, predictions, batch_size=4)
    assert model.seen == [(kind, False, "torch", n) for kind, n in (("row", 6), ("global", 4), ("global", 2))]
    spread = (4 * float(predictions.logits[:4].var()) + 2 * float(predictions.logits[4:].var())) / 6
    assert losses == {"task": pytest.approx(float(((labels**2 - labels) ** 2).mean())), "spread": spread}
    assert (model.training, model.config.backend) == (training, "reference")
    with pytest.raises(RuntimeError, match="nothing to compare"):
        evaluate.losses(model, predictions, batch_size=5)
    assert (model.training, model.config.backend) == (training, "reference")


class Stored(steps.Loaded):
    """A whole split."""

    def __len__(self):
        return len(self.batch)

    def ids(self, indices):
        return [str(k) for k in indices]

    def labels(self):
        return None

    def load(self, indices, labels=True):
        found = super().load(np.asarray(indices))
        return found if labels else {name: value for name, value in found.items() if name != "labels"}


def test_rows_that_only_losses_read_are_left_out():
    model = system("mfm")
    batches = Stored(utterances(aligned=True), model)
    scores = evaluate.predict(model, batches, CPU, 4)
    assert scores.rows.keys() == {"logits"}
    whole = evaluate.predict(model, batches, CPU, 4, with_losses=True)
    assert whole.rows.keys() > {"text_error", "shared_code"}
    assert torch.equal(whole.logits, scores.logits)
