"""Rows behind the last utterance, as a batch rounded up to a static shape has them: whatever they hold stays out."""

import pytest
import torch

from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.kernels.cpu import library
from tests.models.small import config, lively, packed

LABELS = torch.tensor([0.5, -1.0, 2.0, 0.0])


def with_rest(rows, value, dim=0):
    """Three rows more."""
    shape = list(rows.shape)
    shape[dim] = 3
    return torch.cat([rows, rows.new_full(shape, value)], dim=dim)


def loss_and_gradients(model, inputs, run=None):
    model.zero_grad()
    output = (model if run is None else run)(**inputs, labels=LABELS.to(model.dtype))
    output.loss.backward()
    return output.loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "backend",
    [
        "reference",
        "torch",
        pytest.param("cpu", marks=pytest.mark.skipif(library.why_not() is not None, reason="no compiler")),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_are_those_without_the_rows(batch, backend, value):
    model = lively(CMSBertCLRForSequenceClassification(config(backend=backend)))
    inputs = packed(batch)
    if backend == "cpu":  # compiled for float32 only
        model = model.float()
        inputs |= {name: inputs[name].float() for name in ("visual", "acoustic")}
    ids = inputs.pop("input_ids")
    inputs["inputs_embeds"] = model.bert.embeddings.word_embeddings(ids).detach()
    loss, gradients = loss_and_gradients(model, inputs)
    assert len(gradients) > 40
    rest = {name: with_rest(inputs[name], value) for name in ("visual", "acoustic")}
    rest["inputs_embeds"] = with_rest(inputs["inputs_embeds"], value, dim=1)
    rest["position_ids"] = with_rest(inputs["position_ids"], 0, dim=1)
    with_them, actual = loss_and_gradients(model, inputs | rest)
    tolerance = dict(rtol=1e-4, atol=1e-5) if backend == "cpu" else {}
    torch.testing.assert_close(with_them, loss, **tolerance)
    assert actual.keys() == gradients.keys()
    for name, expected in gradients.items():
        torch.testing.assert_close(actual[name], expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_the_rows_get_no_gradient(batch):
    model = lively(CMSBertCLRForSequenceClassification(config()))
    inputs = packed(batch)
    visual = with_rest(inputs["visual"], torch.nan).requires_grad_()
    model(**inputs | dict(visual=visual), labels=LABELS).loss.backward()
    assert visual.grad is not None
    assert visual.grad.isfinite().all()
    assert visual.grad[:-3].abs().sum() > 0
    assert not visual.grad[-3:].any()


def test_padding_that_holds_nan_under_compile(batch):
    """Compiled, a padded batch keeps its padding as rows of no utterance."""
    model = lively(CMSBertCLRForSequenceClassification(config(num_hidden_layers=1)))
    loss, gradients = loss_and_gradients(model, batch)
    poisoned = {name: batch[name].clone() for name in ("visual", "acoustic")}
    for name, frames in poisoned.items():
        frames[~batch[f"{name}_mask"].bool()] = torch.nan
    with_nan, actual = loss_and_gradients(model, batch | poisoned, torch.compile(model, backend="aot_eager"))
    torch.testing.assert_close(with_nan, loss)
    for name, expected in gradients.items():
        torch.testing.assert_close(actual[name], expected, msg=lambda text, name=name: f"{name}: {text}")
