"""Losses of sets, by hand and by their definition."""

import math

import pytest
import torch

from cmsbert_fast.models.baselines.set_losses import (
    central_moment_discrepancy,
    difference_loss,
    gaussian,
    maximum_mean_discrepancy,
)

LOSSES = [central_moment_discrepancy, difference_loss, maximum_mean_discrepancy]
every_loss = pytest.mark.parametrize("loss", LOSSES)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def sets(n=7, d=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return a.to(dtype), b.square().to(dtype)


def test_cmd_by_hand():
    # Means equal; variances 1/4 and 0; third and fifth moments 0; fourth 1/16.
    assert central_moment_discrepancy(column(0, 1), column(0.5, 0.5)).item() == pytest.approx(0.3125, abs=1e-15)
    assert central_moment_discrepancy(column(0, 1), column(0.5, 0.5), 3).item() == pytest.approx(0.25, abs=1e-15)


def test_cmd_by_definition():
    a, b = sets()
    expected = (a.mean(0) - b.mean(0)).norm()
    for k in range(2, 6):
        moments = [torch.stack([(x[:, j] - x[:, j].mean()).pow(k).mean() for j in range(4)]) for x in (a, b)]
        expected = expected + (moments[0] - moments[1]).norm()
    torch.testing.assert_close(central_moment_discrepancy(a, b), expected, rtol=1e-13, atol=0)


def test_cmd_of_a_set_and_itself_is_0_with_a_gradient():
    """Published code has NaN there."""
    a, _ = sets()
    x, y = a.clone().requires_grad_(), a.clone().requires_grad_()
    loss = central_moment_discrepancy(x, y)
    loss.backward()
    assert loss == 0
    assert x.grad.isfinite().all()
    assert y.grad.isfinite().all()


def points(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_difference_by_hand():
    across, along = points((1, 0), (-1, 0)), points((0, 1), (0, -1))
    assert difference_loss(across, along).item() == pytest.approx(1, abs=1e-5)
    twice = points((1, 0), (-1, 0), (1, 0), (-1, 0))
    assert difference_loss(twice, points((0, 1), (0, 1), (0, -1), (0, -1))).item() == pytest.approx(0, abs=1e-12)
    # Twice the batch, four times the value.
    pair = difference_loss(across.repeat(2, 1), along.repeat(2, 1))
    assert pair.item() == pytest.approx(4, abs=1e-4)


def test_the_norms_of_the_difference_have_no_gradient():
    x, y = sets()
    x.requires_grad_()
    difference_loss(x, y).backward()
    given = x.detach().clone().requires_grad_()
    centred = given - given.mean(0)
    norms, right = (centred.detach().norm(dim=1), (y - y.mean(0)).norm(dim=1))
    product = (centred / (norms[:, None] + 1e-6)).T @ ((y - y.mean(0)) / (right[:, None] + 1e-6))
    product.square().mean().backward()
    torch.testing.assert_close(x.grad, given.grad, rtol=1e-12, atol=1e-14)


def test_mmd_by_hand():
    z, g = points((0, 0), (2, 0)), points((0, 0), (0, 0))
    assert maximum_mean_discrepancy(z, g).item() == pytest.approx((1 - 1 / math.e) / 2, abs=1e-15)
    assert maximum_mean_discrepancy(z, z).item() == pytest.approx(0, abs=1e-15)


@every_loss
def test_order_of_rows(loss):
    a, b = sets()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(loss(a[order], b[order]), loss(a, b), rtol=1e-12, atol=0)


@every_loss
def test_one_row(loss):
    a, b = sets(1)
    a.requires_grad_()
    loss(a, b).backward()
    assert a.grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_float32_whatever_autocast_says(loss, dtype):
    a, b = sets(dtype=dtype)
    expected = loss(a.float(), b.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(a, b)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("loss", [central_moment_discrepancy, maximum_mean_discrepancy])
def test_gradients(loss):
    """Not of the difference loss: its norms count as constants."""
    a, b = sets(4, 3)
    assert torch.autograd.gradcheck(loss, (a.requires_grad_(), b.requires_grad_()))


def test_gaussian_depends_on_its_seeds_only():
    like = torch.zeros(500, 3, dtype=torch.float64)
    sample = gaussian(like, 0, 7)
    assert torch.equal(sample, gaussian(like + 1, 0, 7))
    assert not torch.equal(sample, gaussian(like, 0, 8))
    assert not torch.equal(sample, gaussian(like, 1, 7))
    assert sample.dtype == torch.float64
    assert abs(sample.mean()) < 0.1
    assert abs(sample.std() - 1) < 0.1
