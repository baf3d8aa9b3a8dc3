"""Compiled dropout: what it drops, how it scales, what it leaves to PyTorch."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from cmsbert_fast import CMSBertConfig, cpu_library, dropout
from cmsbert_fast.dropout import use_cheap_dropout

MISSING = cpu_library.why_not()
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def Dropout(p, backend="auto"):
    return dropout.Dropout(p, CMSBertConfig(backend=backend))


@needs_compiler
@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drops_at_its_rate_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    n = 400_003  # a part of what one counter gives
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


@needs_compiler
def test_elements_are_independent():
    """Of the 128 elements that share counters, and of those of neighbouring ones, each pair agrees as often as chance
    says."""
    torch.manual_seed(0)
    n = 20_000
    kept = (Dropout(0.5)(torch.ones(n, 128)) != 0).double() * 2 - 1
    deviation = n**-0.5
    correlation = kept.T @ kept / n - torch.eye(128, dtype=torch.float64)
    assert correlation.abs().max() < 6 * deviation
    assert (kept[1:] * kept[:-1]).mean(dim=0).abs().max() < 6 * deviation
    assert (kept[0] + kept[1]).abs().max() == 2  # not the same every time


@needs_compiler
@pytest.mark.parametrize("n", [1, 15, 127, 128, 129, 16384, 16385, 100_001])
def test_the_mask_hangs_on_seed_and_position_alone(n):
    """Not on what follows, on threads or on the dtype; beyond the end nothing is written."""
    mask = dropout._Compiled.apply(torch.ones(120_000), 7, 20_000) != 0
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for dtype in (torch.float32, torch.bfloat16):
                y = dropout._Compiled.apply(torch.ones(n, dtype=dtype), 7, 20_000)
                assert torch.equal(y != 0, mask[:n])
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(dropout._Compiled.apply(torch.ones(120_000), 7 + 2**40, 20_000) != 0, mask)


@needs_compiler
def test_the_mask_is_that_of_philox():
    """Word by word from the definition (Salmon et al., 2011), 7 rounds; 16 counters serve 128 elements."""

    def philox(counter, key):
        c, k = [counter, 0, 0, 0], [key & 0xFFFFFFFF, key >> 32]
        for _ in range(7):
            x, y = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = [y >> 32 ^ c[1] ^ k[0], y & 0xFFFFFFFF, x >> 32 ^ c[3] ^ k[1], x & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return c

    seed, dropped = 123456789 << 20, 30_000
    kept = (dropout._Compiled.apply(torch.ones(300), seed, dropped) != 0).tolist()
    for i in range(300):
        chunk, place, number = i // 128, i % 128 // 16, i % 16
        word = philox(16 * chunk + number, seed)[place // 2]
        assert kept[i] == ((word >> 16 * (place % 2) & 0xFFFF) >= dropped)


@needs_compiler
def test_keeps_nothing_for_the_backward_pass_and_computes_the_same_again():
    x = torch.randn(300, 7, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = Dropout(0.3)(x)
    assert not kept
    (once,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True, retain_graph=True)
    assert torch.equal(once, torch.where(y == 0, 0, once.max()))
    weight = torch.randn_like(once).requires_grad_()
    (gradient,) = torch.autograd.grad(y, x, weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    assert torch.equal(second, once)

    def layer(x):
        return Dropout(0.3)(x) ** 2

    torch.manual_seed(1)
    (plain,) = torch.autograd.grad(layer(x).sum(), x)
    torch.manual_seed(1)
    (again,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sum(), x)
    assert torch.equal(plain, again)


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


def is_pytorchs_own(module, dtype=torch.float32):
    x = torch.ones(100, dtype=dtype)
    torch.manual_seed(0)
    expected = nn.functional.dropout(x, 0.3)
    torch.manual_seed(0)
    return torch.equal(module(x), expected)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_is_pytorchs_own_where_the_backend_says_so(backend):
    assert is_pytorchs_own(Dropout(0.3, backend))


def test_is_pytorchs_own_where_the_compiled_form_cannot_run(monkeypatch):
    assert is_pytorchs_own(Dropout(0.3), torch.float64)
    with FakeTensorMode():
        assert Dropout(0.3)(torch.ones(3, 4)).shape == (3, 4)
    if MISSING is None:
        assert not is_pytorchs_own(Dropout(0.3))
        monkeypatch.setattr(cpu_library, "why_not", lambda: "no compiler")
    assert is_pytorchs_own(Dropout(0.3))
