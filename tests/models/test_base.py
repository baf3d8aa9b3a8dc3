"""The one interface: forward is rows and losses, and a system that nobody has heard of trains through it."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertForSequenceClassification
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.losses import LossTerm, task_loss, total_loss
from cmsbert_fast.training.gradcache import gradcache_backward
from tests.models.small import config, packed

LABELS = torch.tensor([1.0, 1.05, -2.0, 0.0])


@pytest.mark.parametrize("form", ["padded", "full", "packed"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [CMSBertForSequenceClassification, CMSBertCLRForSequenceClassification])
def test_forward_is_rows_and_losses_to_the_bit(batch, kind, training, form):
    torch.manual_seed(0)
    model = kind(config(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)).train(training)
    if kind.has_global_terms:
        model.nu.fill_(0.3)
    batch = {name: x.float() if x.is_floating_point() else x for name, x in batch.items()}
    full = {name: x for name, x in batch.items() if "mask" not in name}
    inputs = {"padded": batch, "full": full, "packed": packed(batch)}[form]
    torch.manual_seed(1)
    output = model(**inputs, labels=LABELS)
    output.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.manual_seed(1)
    rows = model.rows(**inputs)
    terms = model.losses(rows, LABELS)
    total_loss(terms).backward()
    assert all(torch.equal(rows[name], output[name]) for name in rows)
    assert all(torch.equal(term.value, output[f"{name}_loss"]) for name, term in terms.items())
    assert torch.equal(total_loss(terms), output.loss)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(term.per_row for term in model.row_losses(rows, LABELS).values())
    found = model.global_losses(rows, LABELS).values()
    assert kind.has_global_terms == bool(found)
    assert not any(term.per_row for term in found)
    assert all(len(row) == 4 for row in rows.values())


class Third(Classifier):
    """One layer; its loss is the mean absolute error and how far the batch's codes lie from their mean."""

    config_class = PreTrainedConfig
    has_global_terms = True

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.code, self.head, self.dropout = nn.Linear(6, 4), nn.Linear(4, 1), nn.Dropout(0.3)
        self.post_init()

    def rows(self, features: Tensor) -> dict[str, Tensor]:
        codes = torch.tanh(self.code(features))
        return {"logits": self.head(self.dropout(codes)), "codes": codes}

    def row_losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, targets: Tensor | None = None
    ) -> dict[str, LossTerm]:
        return {"task": LossTerm(task_loss(rows["logits"], labels, "l1"))}

    def global_losses(self, rows: Mapping[str, Tensor], labels: Tensor, group: None = None) -> dict[str, LossTerm]:
        spread = (rows["codes"] - rows["codes"].mean(dim=0)).norm()
        return {"spread": LossTerm(spread, 0.25, per_row=False)}


@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [7, 1, 4]])
def test_a_third_system_accumulates_to_one_batch(sizes):
    """Its per-row and its global term, through the function that the trainer uses."""
    torch.manual_seed(0)
    model = Third(PreTrainedConfig()).double().eval()
    features, labels = torch.randn(12, 6, dtype=torch.float64), torch.randn(12, dtype=torch.float64) + 1
    terms = model.losses(model.rows(features), labels)
    total_loss(terms).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    assert all(gradient.abs().max() > 1e-3 for gradient in expected)
    model.zero_grad()

    def loss(rows: dict[str, Tensor]) -> tuple[Tensor, dict[str, LossTerm]]:
        found = model.losses(rows, labels)
        return total_loss(found), found

    result = gradcache_backward(model.rows, features.split(sizes), loss)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)
    assert {name: term.per_row for name, term in result.loss[1].items()} == {"task": True, "spread": False}
    for name, term in result.loss[1].items():
        torch.testing.assert_close(term.value, terms[name].value.detach())
        assert not term.value.requires_grad
    assert result.outputs["codes"].shape == (12, 4)


def test_forward_of_a_third_system():
    model = Third(PreTrainedConfig()).eval()
    features, labels = torch.randn(3, 6), torch.randn(3)
    rows = model.rows(features)
    output = model(features=features, labels=labels)
    assert list(output) == ["loss", "logits"]  # SequenceClassifierOutput has no codes
    assert torch.equal(output.loss, total_loss(model.losses(rows, labels)))
    assert torch.equal(output.logits, rows["logits"])
    assert model(features=features).loss is None
    assert torch.equal(model(features=features, return_dict=False)[0], rows["logits"])


def test_a_batch_is_shared_with_nobody_outside_a_process_group():
    assert Third(PreTrainedConfig()).train().batch_group() is None
