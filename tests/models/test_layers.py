"""The fusion's Transformer layer."""

import pytest
import torch
from torch import nn

from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.models.layers import FusionLayer
from cmsbert_fast.ops.linear import api
from tests.models.small import config

DROPOUT = 0.3


def gradients(layer, x):
    torch.manual_seed(2)  # of dropout
    y = layer(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("training", [False, True])
def test_the_layer_is_pytorchs(training):
    torch.manual_seed(0)
    ours = FusionLayer(8, 2, 32, DROPOUT, config()).double().train(training)
    plain = nn.TransformerEncoderLayer(8, 2, 32, DROPOUT, batch_first=True).double().train(training)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)
    for actual, expected in zip(gradients(ours, x), gradients(plain, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)
    with torch.no_grad():
        torch.manual_seed(2)
        actual = ours(x)
        torch.manual_seed(2)
        torch.testing.assert_close(actual, plain(x), rtol=0, atol=1e-13)


def test_hooks_of_the_attention_run():
    layer, ran = FusionLayer(8, 2, 32, DROPOUT, config()).eval(), []
    x = torch.randn(5, 3, 8)
    expected = layer(x)
    layer.self_attn.register_forward_hook(lambda *_: ran.append(1))
    torch.testing.assert_close(layer(x), expected)
    assert ran


@pytest.mark.parametrize("grad", [False, True])
def test_all_products_are_the_operators(monkeypatch, grad):
    """None is left to PyTorch's own fused layer, which a model in evaluation would take."""
    shapes, real = [], api.linear
    monkeypatch.setattr(api, "linear", lambda x, w, *rest: (shapes.append(tuple(w.shape)), real(x, w, *rest))[1])
    monkeypatch.setattr("cmsbert_fast.models.layers.linear", api.linear)
    fusion = CMSBertCLRForSequenceClassification(config()).fusion.eval()
    d = fusion.out_proj.in_features
    with torch.set_grad_enabled(grad):
        fusion([torch.randn(2, d) for _ in range(3)])
    assert shapes == [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d), (d, 3 * d), (1, d)]
