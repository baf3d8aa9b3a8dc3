"""Adapters and quantised weights: what a wrapped linear layer computes is what the model computes."""

import copy

import pytest
import torch
from torch import nn

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertForSequenceClassification
from cmsbert_fast.models.adapters import is_plain, weight_and_bias
from cmsbert_fast.models.layers import FusionLayer
from cmsbert_fast.models.losses import total_loss
from cmsbert_fast.models.registry import BASELINES
from tests.models.baselines.systems import needs, system
from tests.models.baselines.utterances import labels, packed, utterances
from tests.models.small import config, lively

LABELS = torch.tensor([1.0, 1.05, -2.0, 0.0], dtype=torch.float64)


class LowRank(nn.Module):
    """x W^T + b + x A^T B^T, as PEFT's LoRA wraps a layer."""

    def __init__(self, layer: nn.Linear, rank: int = 2):
        super().__init__()
        self.base_layer, self.in_features = layer, layer.in_features
        generator = torch.Generator().manual_seed(layer.in_features)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features, generator=generator).to(layer.weight))
        self.up = nn.Parameter(0.3 * torch.randn(layer.out_features, rank, generator=generator).to(layer.weight))

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + x @ self.down.T @ self.up.T

    def merged(self) -> nn.Linear:
        self.base_layer.weight.data += self.up.data @ self.down.data
        return self.base_layer


def wrap(model: nn.Module) -> list[str]:
    """Wraps every linear layer; their names."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LowRank(model.get_submodule(name)))
    return names


def merge(model: nn.Module, names: list[str]) -> nn.Module:
    merged = copy.deepcopy(model)
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(merged.get_submodule(parent), last, merged.get_submodule(name).merged())
    return merged


def check(model, forward, tolerance=1e-12) -> None:
    """Every adapter changes the result and is trained; merged, the model computes the same."""
    with torch.no_grad():
        before = forward(model)[0]
    names = wrap(model)
    logits, loss = forward(model)
    loss.backward()
    for name in names:
        layer = model.get_submodule(name)
        weight = layer.base_layer.weight
        silent = weight.requires_grad and not weight.grad.any()  # behind a ReLU that nothing passes
        assert silent or (layer.down.grad.any() and layer.up.grad.any()), name
    assert (logits - before).abs().max() > 1e-3
    with torch.no_grad():  # PyTorch's fused layers are for inference
        torch.testing.assert_close(forward(model)[0], logits.detach(), rtol=0, atol=tolerance)
        torch.testing.assert_close(forward(merge(model, names))[0], logits.detach(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("kind", [CMSBertForSequenceClassification, CMSBertCLRForSequenceClassification])
def test_every_linear_layer_takes_an_adapter(kind, backend, batch):
    torch.manual_seed(0)
    dtype = torch.float32 if backend == "cpu" else torch.float64
    # tanh: no gate is 0 everywhere.
    model = lively(kind(config(backend=backend, gate_activation="tanh"))).to(dtype)

    def forward(model):
        output = model(**batch, labels=LABELS.to(dtype))
        return output.logits, output.loss

    check(model, forward, tolerance=1e-3 if backend == "cpu" else 1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_every_linear_layer_of_a_baseline_takes_an_adapter(name):
    model, batch = system(name), utterances("word_frames" in needs(name), "frames_of_words" in needs(name))
    inputs, scores = packed(batch, model), labels(batch)
    state = model.training_state(len(batch))
    if state is not None:
        state.start(scores)
    # Self-MM's targets start as the scores, where they weigh nothing.
    targets = None if state is None else state.targets(torch.arange(len(batch)))
    targets = None if targets is None else targets + 0.5

    def forward(model):
        rows = model.rows(**inputs)
        return rows["logits"], total_loss(model.losses(rows, scores, targets))

    check(model, forward)


def test_weight_and_bias_are_those_of_the_layer_or_of_its_outputs():
    layer = nn.Linear(4, 3).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    assert weight_and_bias(layer, x) == (layer.weight, layer.bias)
    wrapped = LowRank(layer)
    assert not is_plain(wrapped)
    weight, bias = weight_and_bias(wrapped, x)
    torch.testing.assert_close(x @ weight.T + bias, wrapped(x), rtol=0, atol=1e-14)


def test_a_bias_that_an_adapter_adds_to_a_shift_is_refused(batch):
    model = lively(CMSBertForSequenceClassification(config()))
    attention = model.bert.encoder.layer[0].attention.self
    wrapped = LowRank(attention.shift_visual)
    forward = wrapped.forward
    wrapped.forward = lambda x: forward(x) + 1
    attention.shift_visual = wrapped
    with pytest.raises(ValueError, match="shift_visual has no bias"):
        model(**batch)


def test_the_fusion_layer_with_called_parts_is_pytorchs():
    torch.manual_seed(0)
    layer = FusionLayer(8, 2, 32, 0.3, config()).double().eval()
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    plain = layer(x)
    wrapped = LowRank(layer.linear1)
    wrapped.up.data.zero_()
    layer.linear1 = wrapped
    torch.testing.assert_close(layer(x), plain, rtol=0, atol=1e-14)
    assert (layer.train()(x) - plain).abs().max() > 0.1  # dropout
