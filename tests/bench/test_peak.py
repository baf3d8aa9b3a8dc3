"""The probe of the CPU's own limit."""

import pytest
import torch

from bench import peak
from cmsbert_fast.kernels.cpu import build, library


@pytest.mark.skipif(library.why_not() is not None, reason="there is no compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_runs_on_all_threads(monkeypatch, dtype):
    monkeypatch.setattr(peak, "TIMES", 1000)
    for threads in (1, 2):
        assert 1e8 < peak.flops_per_second(dtype, threads) < 1e14


def test_there_is_no_limit_without_a_compiler(monkeypatch):
    def missing():
        raise build.BuildError("none")

    monkeypatch.setattr(build, "_require_compiler", missing)
    assert peak.flops_per_second(torch.float32, 1) is None
