"""Inputs of the tests of the contrastive loss, and the comparison with the reference in float64.

The Triton kernels run on a GPU, or slowly in Triton's interpreter (``TRITON_INTERPRET=1``), as
``tests/kernels/test_contrastive_kernels.py`` does with these tests.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cmsbert_fast import pairwise_contrastive_loss, reference
from cmsbert_fast.kernels.cpu import library
from tests.interpreter import INTERPRETED

DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
without_triton = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1")
without_library = pytest.mark.skipif(DEVICE == "cuda" or library.why_not() is not None, reason="needs a C++ compiler")
BACKENDS = [
    "torch",
    pytest.param("cpu", marks=without_library),
    pytest.param("triton", marks=without_triton),
]


def tile(m: int, n: int, k: int) -> dict[str, int]:
    return {"BM": m, "BN": n, "BK": k, "num_warps": 4, "num_stages": 2}


def size(n: int, backend: str, large: bool = True) -> int:
    """Rows of a test that ``many_tiles`` makes a large one: ``n``, but on a GPU what is large there."""
    return 1229 if large and backend == "triton" and DEVICE == "cuda" else n


def embeddings(
    n: int, d: int = 7, modalities: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, d, generator=generator) * 3).to(DEVICE, dtype) for _ in range(modalities)]


def score_labels(n: int, seed: int = 1) -> Tensor:
    """Scores in steps of 0.1, as MOSI has them: many exactly delta apart, some 0."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-12, 13, (n,), generator=generator) / 10).to(DEVICE)


def allocations(run: Callable[[], object]) -> list[int]:
    """Bytes that a CPU gives and, below 0, takes back, in the order of time: every allocation of PyTorch's."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def compute(z: list[Tensor], temperature: float, function) -> tuple[Tensor, list[Tensor]]:
    z = [e.detach().clone().requires_grad_() for e in z]
    tau = torch.tensor(temperature, dtype=torch.promote_types(z[0].dtype, torch.float32), device=z[0].device)
    tau.requires_grad_()
    three = [*z, *[None] * (3 - len(z))]
    loss = function(three, tau)
    return loss.detach(), [g.detach() for g in torch.autograd.grad(loss, [*z, tau])]


def check(
    z: list[Tensor],
    labels: Tensor | None,
    backend: str,
    *,
    temperature: float = 0.1,
    smoothing: float | None = 0.9,
    threshold: float = 0.1,
    tolerance: float = 2e-5,
    function=pairwise_contrastive_loss,
) -> None:
    """Loss and gradients, also the temperature's, are the reference's in float64 to ``tolerance``, row by row."""
    smoothing = None if labels is None else smoothing
    loss, grads = compute(
        z, temperature, lambda three, tau: function(*three, labels, tau, smoothing, threshold, backend=backend)
    )
    expected, wanted = compute(
        [e.double() for e in z],
        temperature,
        lambda three, tau: reference.pairwise_contrastive_loss(*three, labels, tau, smoothing, threshold),
    )
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    assert [g.dtype for g in grads[:-1]] == [e.dtype for e in z]
    for got, want in zip(grads[:-1], wanted[:-1], strict=True):
        scale = want.norm(dim=1, keepdim=True)
        scale = scale + scale.median() + 1e-4
        torch.testing.assert_close(got / scale, want / scale, rtol=0, atol=tolerance)
    # A sum of n^2 terms of both signs over tau^2.
    bound = tolerance * (1 + 1 / temperature**2)
    torch.testing.assert_close(grads[-1].double(), wanted[-1], rtol=tolerance, atol=bound)
