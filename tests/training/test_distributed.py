"""Shares of the ranks, gradients over the ranks, memory of a process."""

import platform

import pytest

from cmsbert_fast.training.distributed import Ranks, share
from tests.training.helpers import CPU


@pytest.mark.parametrize(("count", "world_size"), [(8, 3), (2, 4), (12, 4), (0, 2)])
def test_shares(count, world_size):
    shares = [range(count)[share(count, Ranks(rank, world_size, CPU.device))] for rank in range(world_size)]
    assert [i for s in shares for i in s] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("ranks", "expected"), [(1, [[11.0] * 3, [0.0] * 3, [0.0] * 3]), (2, [[16.5] * 3, [0.0] * 3, [0.5] * 3])]
)
def test_gradients_are_averaged(tmp_path, start_code, ranks, expected):
    code = """
import torch
from cmsbert_fast.training import distributed
ranks = distributed.start("cpu")
used, unused, seldom = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(3))
gradients = distributed.Gradients([seldom, unused, used], ranks, bucket_bytes=1)  # reduced from the last on
for step in range(2):
    gradients.zero()
    with gradients.no_sync():
        ((ranks.rank + 1) * used).sum().backward()
    loss = (10 * (ranks.rank + 1) * used).sum()
    if ranks.rank:
        loss = loss + seldom.sum()
    loss.backward()
    gradients.finish()
print([p.grad.tolist() for p in (used, unused, seldom)], float(gradients.norm()))
gradients.clip(gradients.norm(), 1.0)
print(round(float(gradients.norm()), 4))
"""
    run = start_code(tmp_path, code, ranks=ranks)
    assert run.wait() == [0] * ranks, run.errors()
    assert run.output(0) == run.output(ranks - 1)
    averages, clipped = run.output().splitlines()
    assert averages.startswith(str(expected))
    assert clipped == "1.0"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_not_touched_anew(tmp_path, start_code):
    code = """
import resource, torch
from cmsbert_fast.training import distributed
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
distributed.keep_freed_memory()
faults()  # the heap grows, once
print(before, faults())
"""
    run = start_code(tmp_path, code, ranks=1)
    assert run.wait() == [0], run.errors()
    before, after = map(int, run.output().split())
    assert after < before / 100
