"""Dropout with 16 bits an element: what it drops, how it scales, what it leaves to PyTorch."""

import pytest
import torch
from torch import nn

from cmsbert_fast import CMSBertConfig
from cmsbert_fast.ops.dropout import api as dropout
from cmsbert_fast.ops.dropout.api import use_cheap_dropout


def Dropout(p, backend="auto"):
    return dropout.Dropout(p, CMSBertConfig(backend=backend))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_drops_at_its_rate_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    n = 400_003  # no multiple of 4
    x = torch.ones(n, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    assert y.dtype == dtype
    kept = y != 0
    deviation = (p * (1 - p) / n) ** 0.5
    assert abs((1 - kept.double().mean()) - p) < 5 * deviation
    scale = 1 / (1 - round(p * 2**16) / 2**16)
    assert torch.equal(y[kept], torch.full_like(y[kept], scale))
    weight = torch.randn(n).to(dtype)
    (gradient,) = torch.autograd.grad(y, x, weight)
    assert torch.equal(gradient, (weight * kept).mul(scale))


def test_elements_are_independent():
    """Of four elements that share a draw, and of neighbouring draws, each pair agrees as often as chance says."""
    torch.manual_seed(0)
    kept = Dropout(0.5)(torch.ones(100_000, 8)) != 0
    for i in range(8):
        for j in range(i):
            assert abs((kept[:, i] == kept[:, j]).double().mean() - 0.5) < 5 * 0.5 / 100_000**0.5
    assert abs((kept[1:] == kept[:-1]).double().mean() - 0.5) < 5 * 0.5 / 800_000**0.5


def test_repeats_with_the_seed():
    def draw():
        torch.manual_seed(3)
        return Dropout(0.3)(torch.ones(5, 7)), Dropout(0.3)(torch.ones(5, 7))

    (a, b), (c, d) = draw(), draw()
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert not torch.equal(a, b)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_all_or_nothing(p):
    assert (Dropout(p)(torch.ones(9)) == 1 - p).all()


def test_does_nothing_in_evaluation_and_takes_no_elements():
    x = torch.randn(4, 3)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.5)(torch.zeros(0, 3)).shape == (0, 3)


def test_strided_input():
    x = torch.arange(1.0, 13).view(4, 3).T.expand(5, 3, 4)
    y = Dropout(0.25)(x)
    assert 0 < (y == 0).sum() < x.numel()
    torch.testing.assert_close(y, torch.where(y == 0, 0, x / 0.75))


def test_replaces_every_dropout_below_a_module():
    model = nn.Sequential(nn.Dropout(0.2), nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.4))]))
    keys = list(model.state_dict())
    use_cheap_dropout(model, CMSBertConfig())
    assert [m.p for m in model.modules() if isinstance(m, dropout.Dropout)] == [0.2, 0.4]
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_is_pytorchs_own_where_the_backend_says_so(backend):
    x = torch.ones(100)
    torch.manual_seed(0)
    expected = nn.functional.dropout(x, 0.3)
    torch.manual_seed(0)
    assert torch.equal(Dropout(0.3, backend)(x), expected)
    torch.manual_seed(0)
    assert not torch.equal(Dropout(0.3)(x), expected)
