"""Dropout of the CMS attention kernels: rate, independence, seed and gradients."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsbert_fast import ModalityShift, cms_attention, reference
from tests.kernels.cms_attention.cases import DEVICE, all_classes, make_case, public, runs_kernels


def dropout_mask(seed: int, n: int, batch: int, heads: int, p: float, packed: bool = False) -> Tensor:
    """Which probabilities are kept, (B, H, N, N), read off z: uniform attention over one-hot values, and no shift."""
    size = -(-n // 16) * 16
    zeros = torch.zeros(batch, n, heads, size, device=DEVICE)
    value = torch.eye(n, size, device=DEVICE)[None, :, None].expand(batch, n, heads, size)
    torch.manual_seed(seed)
    if packed:
        cu = torch.arange(batch + 1, dtype=torch.int32, device=DEVICE) * n
        flat = [x.flatten(0, 1) for x in (zeros, zeros, value)]
        gate = zeros[:, :, 0, 0].flatten()
        visual = ModalityShift(gate, gate, gate[:, None], torch.zeros(heads * size, 1, device=DEVICE), cu, n)
        z = cms_attention(*flat, visual, cu_seqlens=cu, max_seqlen=n, dropout_p=p, backend="triton").unflatten(
            0, (batch, n)
        )
    else:
        gate = zeros[:, :, 0, 0]
        visual = ModalityShift(gate, gate, gate[..., None], torch.zeros(heads * size, 1, device=DEVICE))
        z = cms_attention(zeros, zeros, value, visual, dropout_p=p, backend="triton")
    z = z[..., :n].transpose(1, 2)  # (B, H, N, N)
    kept = z != 0
    torch.testing.assert_close(z[kept], torch.full_like(z[kept], 1 / (n * (1 - p))))
    return kept


def check_rate(kept: Tensor, p: float) -> None:
    """The number kept is binomial: within five standard deviations."""
    deviation = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - p)) < 5 * deviation


def check_independence(kept: Tensor, other: Tensor) -> None:
    """Two masks (B, H, N, N) of rate 1/2, and all parts of the first among themselves, are uncorrelated.

    As +1 and -1, M products of independent numbers have a mean beyond 7 / sqrt(M) with a probability below 2 exp(-24.5)
    (Hoeffding), hence below 1e-5 for all distances between two entries together. In row-major order all pairs of heads,
    sequences, queries or keys at one offset have one distance, shifted copies too: where all heads share a mask the
    correlation is 1 - 1/H, where two of four do in one sequence of four 1/16, and at 65,536 entries 0.027 is allowed.
    """
    sign = kept.double() * 2 - 1

    def largest(x: Tensor, y: Tensor) -> Tensor:
        """The largest mean product over all distances, all in one product of Fourier transforms."""
        spectrum = torch.fft.rfft(x.flatten()) * torch.fft.rfft(y.flatten()).conj()
        return torch.fft.irfft(spectrum, n=x.numel()).abs() / x.numel()

    limit = 7 / kept.numel() ** 0.5
    assert largest(sign, sign)[1:].max() < limit  # [0] is 1
    assert largest(sign, other.double() * 2 - 1).max() < limit  # another call
    assert largest(sign, sign.transpose(-1, -2)).max() < limit + 1 / kept.shape[-1]  # a transpose shares its diagonal
    upper = torch.ones(kept.shape[-2:]).triu(1).bool()
    mirrored = sign[..., upper] * sign.transpose(-1, -2)[..., upper]
    assert mirrored.mean().abs() < 7 / mirrored.numel() ** 0.5


@runs_kernels
@all_classes
def test_dropout_rate_and_independence(shape_class: str) -> None:
    check_rate(dropout_mask(0, 64, 4, 4, 0.1), 0.1)
    kept = dropout_mask(0, 64, 4, 4, 0.5)
    check_rate(kept, 0.5)
    check_independence(kept.cpu(), dropout_mask(1, 64, 4, 4, 0.5).cpu())


def spoilt_masks() -> Iterator[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def fair() -> Tensor:
        return torch.rand(4, 4, 64, 64, generator=generator) < 0.5

    def spoilt(name: str, change: Callable[[Tensor], None]) -> tuple[str, Tensor, Tensor]:
        mask = fair()
        change(mask)
        return name, mask, fair()

    def copy(to: Any, source: Any) -> Callable[[Tensor], None]:
        return lambda mask: mask[to].copy_(mask[source].clone())

    everything = slice(None)
    yield spoilt("heads share", lambda mask: mask[:, 1:].copy_(mask[:, :1].expand(-1, 3, -1, -1)))
    yield spoilt("sequences share", lambda mask: mask[1:].copy_(mask[:1].expand(3, -1, -1, -1)))
    yield spoilt("two heads of one sequence share", copy((0, 3), (0, 1)))
    yield spoilt("another head's, one query later", lambda mask: mask[:, 1, 1:].copy_(mask[:, 0, :-1].clone()))
    yield spoilt(
        "queries in pairs", copy((everything, everything, slice(0, None, 2)), (..., slice(1, None, 2), everything))
    )
    yield spoilt("an eighth of the keys in pairs", copy((..., slice(0, None, 8)), (..., slice(1, None, 8))))
    yield spoilt("symmetric", lambda mask: mask.copy_(mask.triu() | mask.triu(1).transpose(-1, -2)))
    first = fair()
    yield "another call shares", first, first
    yield "another call shifted by a head", first, first.roll(1, dims=1)


@pytest.mark.parametrize(("name", "kept", "other"), list(spoilt_masks()), ids=lambda v: v if isinstance(v, str) else "")
def test_dependent_dropout_would_be_found(name: str, kept: Tensor, other: Tensor) -> None:
    with pytest.raises(AssertionError):
        check_independence(kept, other)


def test_wrong_dropout_rate_would_be_found() -> None:
    fair = torch.rand(4, 4, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.9
    check_rate(fair, 0.1)
    with pytest.raises(AssertionError):
        check_rate(fair, 0.11)


@runs_kernels
@all_classes
def test_dropout_does_not_depend_on_form_or_class(shape_class: str) -> None:
    mask = dropout_mask(3, 20, 2, 2, 0.5)
    assert torch.equal(mask, dropout_mask(3, 20, 2, 2, 0.5))
    assert torch.equal(mask, dropout_mask(3, 20, 2, 2, 0.5, packed=True))
    assert not torch.equal(mask, dropout_mask(4, 20, 2, 2, 0.5))
    # the counter-based definition, whatever the tiles: the same in every shape class
    torch.manual_seed(3)
    assert mask.sum() == KEPT.setdefault("sum", mask.sum())
    assert torch.equal(mask, KEPT.setdefault("mask", mask))


KEPT: dict[str, Tensor] = {}


@runs_kernels
@all_classes
def test_gradients_under_dropout(shape_class: str) -> None:
    """Against autograd through the same computation with the mask read off above."""
    n, heads, p = 20, 2, 0.25
    case = make_case([n, n], [9, 5], [4, 1], heads=heads, head_size=16)
    kept = dropout_mask(7, n, 2, heads, p).cpu()
    leaves = [x.clone().requires_grad_() for x in case.leaves]
    a = torch.zeros(2, n, heads * 16, dtype=torch.float64)
    for i, m in enumerate(case.modalities):
        gate, r, x, w = leaves[3 + 4 * i : 7 + 4 * i]
        a = a + reference.shift(torch.relu(gate[:, :, None] + r[:, None]), x, w, m[4])
    q, k, v = ((x + a.unflatten(-1, (heads, 16))).transpose(1, 2) for x in leaves[:3])
    probabilities = torch.softmax(q @ k.transpose(-1, -2) * 0.25, dim=-1) * kept / (1 - p)
    z = (probabilities @ v).transpose(1, 2)
    expected = [z, *torch.autograd.grad(z, leaves, case.d_out)]
    torch.manual_seed(7)
    actual = public(case, torch.float32, "triton", packed=False, dropout_p=p)
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= 1e-4 * max(1.0, e.abs().max())
