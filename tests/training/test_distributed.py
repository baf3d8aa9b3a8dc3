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
model = torch.nn.ParameterList([seldom, unused, used])  # reduced from the last on
gradients = distributed.Gradients(model, ranks, bucket_bytes=1)
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


FORWARD = """
import torch
from torch import distributed as dist
from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.models.losses import total_loss
from cmsbert_fast.training import distributed
from tests.models.small import config, lively
ranks = distributed.start("cpu")
torch.manual_seed(0)
model = lively(CMSBertCLRForSequenceClassification(config()))
model.nu.fill_(0.3)
labels = torch.tensor([1.0, 1.05, -2.0, 0.0], dtype=torch.float64)
batch = dict(
    input_ids=torch.randint(0, 50, (4, 9)),
    visual=torch.randn(4, 6, 5, dtype=torch.float64),
    acoustic=torch.randn(4, 8, 3, dtype=torch.float64),
)
mine = distributed.share(4, ranks)
own = {name: values[mine] for name, values in batch.items()}
model.train()
whole = model.losses(model.rows(**batch), labels)
total_loss(whole).backward()
expected = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
trained = model(**own, labels=labels[mine])
trained.loss.backward()
for p, gradient in zip(model.parameters(), expected, strict=True):
    dist.all_reduce(p.grad)
    torch.testing.assert_close(p.grad / 2, gradient, rtol=1e-9, atol=1e-12)
torch.testing.assert_close(trained.contrastive_loss, whole["contrastive"].value)
assert max(gradient.abs().max() for gradient in expected) > 1e-3
model.eval()
local = model(**own, labels=labels[mine])
terms = model.losses(model.rows(**own), labels[mine])
assert torch.equal(local.contrastive_loss, terms["contrastive"].value)
assert torch.equal(local.loss, total_loss(terms))
assert abs(local.contrastive_loss - trained.contrastive_loss) > 1e-3
distributed.wait_for_all(ranks)
"""


def test_forward_with_labels_shares_a_batch_in_training_only(tmp_path, start_code):
    """As under DistributedDataParallel: averaged gradients are those of one process; evaluation is a rank's own."""
    run = start_code(tmp_path, FORWARD, ranks=2)
    assert run.wait() == [0, 0], run.errors()
