"""Losses over a whole split."""

import pytest
import torch

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertConfig, reference
from cmsbert_fast.models.cmsbert.outputs import SUBNETWORKS
from cmsbert_fast.training import evaluate
from cmsbert_fast.training.evaluate import Predictions


def test_validation_losses_are_means_over_samples(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    z = {m: torch.randn(10, 4, generator=generator, dtype=torch.float64) for m in SUBNETWORKS}
    labels = torch.arange(10).float() / 5
    logits = torch.randn(10, 1, generator=generator)
    rows = {"logits": logits, **{f"{m}_embeds": e for m, e in z.items()}}
    predictions = Predictions([str(i) for i in range(10)], rows, labels)
    config = CMSBertConfig(visual_size=1, acoustic_size=1, threshold=0.3)
    monkeypatch.setenv("CMSBERT_BACKEND", "triton")  # which has no kernels for the CPU
    with torch.device("meta"):  # predictions are on the CPU, whatever the model is on
        model = CMSBertCLRForSequenceClassification(config)
    losses = evaluate.losses(model, predictions, batch_size=4)
    assert list(losses) == ["task", "contrastive"]
    assert losses["task"] == pytest.approx(float(((logits[:, 0] - labels) ** 2).mean()), rel=1e-6)
    parts = [
        len(rows)
        * float(reference.pairwise_contrastive_loss(*(e[rows] for e in z.values()), labels[rows], 0.1, 0.9, 0.3))
        for rows in (torch.arange(0, 4), torch.arange(4, 8), torch.arange(8, 10))
    ]
    assert losses["contrastive"] == pytest.approx(sum(parts) / 10, rel=1e-9)
