"""Losses that compare sets of rows: CMD and the difference loss of MISA, MMD of MFM.

They are functions of the whole set, not means over rows. In training give them the global batch
(:func:`cmsbert_fast.models.gathering.gather_rows`), as terms with ``per_row=False``. They compute in float32 at least,
whatever autocast says.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec

import numpy as np
import torch
from torch import Tensor

_Arguments = ParamSpec("_Arguments")


def _in_full_precision(function: Callable[_Arguments, Tensor]) -> Callable[_Arguments, Tensor]:
    """Autocast off, and float16 and bfloat16 sets cast to float32."""

    @functools.wraps(function)
    def call(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> Tensor:
        first = next(x for x in arguments if isinstance(x, Tensor))
        half = (torch.float16, torch.bfloat16)
        wide = [x.float() if isinstance(x, Tensor) and x.dtype in half else x for x in arguments]
        with torch.autocast(first.device.type, enabled=False):
            return function(*wide, **options)  # type: ignore[arg-type]

    return call


@_in_full_precision
def central_moment_discrepancy(a: Tensor, b: Tensor, moments: int = 5) -> Tensor:
    """CMD(a, b) = |E a - E b| + sum over k = 2..moments of |E (a - E a)^k - E (b - E b)^k| (Zellinger et al. 2017).

    For values in (0, 1), where the paper's factors are 1. Its gradient is 0 where a moment is equal; published code has
    NaN there.

    Args:
        a, b: (n, d), (m, d).
        moments: The highest.
    """
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    total = torch.linalg.vector_norm(mean_a - mean_b)
    for k in range(2, moments + 1):
        difference = (a - mean_a).pow(k).mean(dim=0) - (b - mean_b).pow(k).mean(dim=0)
        total = total + torch.linalg.vector_norm(difference)
    return total


@_in_full_precision
def difference_loss(x: Tensor, y: Tensor) -> Tensor:
    """How far two subspaces are from orthogonal: the mean square of the entries of X^T Y (MISA).

    X and Y are the sets less their means, each row then divided by its norm + 1e-6; the norms have no gradient. The
    value grows with the square of the number of rows.

    Args:
        x, y: (n, d), (n, e), rows of the same utterances.
    """
    return (_directions(x).T @ _directions(y)).square().mean()


def _directions(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(dim=0)
    return centred / (torch.linalg.vector_norm(centred.detach(), dim=1, keepdim=True) + 1e-6)


@_in_full_precision
def maximum_mean_discrepancy(z: Tensor, g: Tensor) -> Tensor:
    """MMD(z, g) = mean k(g, g') + mean k(z, z') - 2 mean k(g, z), over all pairs, those of equal rows included (MFM).

    k(x, x') = exp(-|x - x'|^2 / d^2).

    Args:
        z: (n, d).
        g: (m, d), for MFM a sample of N(0, I) (:func:`gaussian`).
    """
    return _mean_kernel(g, g) + _mean_kernel(z, z) - 2 * _mean_kernel(g, z)


def _mean_kernel(x: Tensor, y: Tensor) -> Tensor:
    squares = (x[:, None] - y).square().sum(dim=-1)  # not by products of rows: equal rows must be at distance 0
    return torch.exp(-squares / x.shape[1] ** 2).mean()


def gaussian(like: Tensor, *seeds: int) -> Tensor:
    """A sample of N(0, I) of the shape of ``like``: the same on every rank and device for the same seeds."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]))
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)
