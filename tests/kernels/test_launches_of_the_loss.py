"""How much the loss of many rows launches: a budget, counted without a GPU (:mod:`tests.kernels.launches`)."""

import pytest
import torch

from cmsbert_fast.ops.capability import HAS_TRITON
from tests.kernels.aot import needs_compiler
from tests.kernels.launches import count_launches

MOST = {"scores": {"sort": 1, "index": 3, "norm": 1, "count": 1, "statistics": 1, "merge": 2}}
MOST["classes"] = MOST["scores"] | {"count": 0, "sort": 2, "searchsorted": 2, "of weights": 8}
MOST["none"] = {"norm": 1, "zeros_like": 1, "statistics": 1, "merge": 2}
SUMS = 5  # of the log-sum-exps: two sums, cat, difference, quotient


@needs_compiler
@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("learned", [True, False], ids=["learned temperature", "fixed temperature"])
@pytest.mark.parametrize("kind", MOST)
def test_forward(kind: str, learned: bool) -> None:
    """Scores are sorted once, and neither a fixed temperature nor the targets' weights are made by PyTorch."""
    from cmsbert_fast.ops.contrastive.triton import TritonEngine
    from cmsbert_fast.ops.contrastive.types import Call

    labels = {"scores": torch.zeros(1100), "classes": torch.zeros(1100, dtype=torch.int64), "none": None}[kind]
    tau = torch.ones(()) if learned else None
    call = Call([torch.zeros(1100, 16) for _ in range(3)], labels, tau, 0.1, 0.9, 0.1, "triton")
    launches = count_launches(lambda: TritonEngine().forward(call))
    assert launches.total() <= sum(MOST[kind].values()) + SUMS, launches
    for name in ("sort", "norm", "count", "statistics", "merge"):
        assert launches[name] == MOST[kind].get(name, 0), launches
