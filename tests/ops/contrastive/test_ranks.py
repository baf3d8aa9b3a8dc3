"""How the ranks of a group agree on what they exchange, and which way."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.ops.contrastive.ranks import Model, assert_same, counted, data, gradients, joined


def work_without_gradients_on_one_rank(rank: int, store: str) -> None:
    from cmsbert_fast import pairwise_contrastive_loss
    from cmsbert_fast.ops.contrastive import distributed

    with joined(rank, store, 2):
        distributed.GATHER_LIMIT_BYTES = 0
        x, y = data()
        model = Model()
        if rank == 0:
            *z, _ = model(x)
            loss = pairwise_contrastive_loss(*z, y, model.temperature, group=dist.group.WORLD)
            (loss / 2).backward()
            single = Model()
            *z, _ = single(x)
            expected = pairwise_contrastive_loss(*z, y, single.temperature)
            expected.backward()
            torch.testing.assert_close(loss, expected)
            assert_same(gradients(model), gradients(single))
        else:
            nothing = [torch.zeros(0, 8, dtype=torch.float64)] * 3
            tau = model.temperature.detach()
            loss = pairwise_contrastive_loss(*nothing, torch.zeros(0), tau, group=dist.group.WORLD)
            assert not loss.requires_grad


def test_a_rank_may_need_no_gradients(tmp_path: Path) -> None:
    """A rank without rows gives plain zeros: it still passes the others' blocks on in the backward exchange."""
    run: Callable[..., None] = mp.spawn
    run(work_without_gradients_on_one_rank, args=(str(tmp_path / "store"),), nprocs=2)


def work_that_disagrees(rank: int, store: str) -> None:
    from cmsbert_fast import pairwise_contrastive_loss
    from cmsbert_fast.ops.contrastive import distributed

    with joined(rank, store, 2):
        z, y = torch.randn(4, 8), torch.randn(4)
        odd = [
            ([z, z, z], None, "no labels"),
            ([z, z, z], y.long(), "labels of torch.int64"),
            ([z[:, :4]] * 3, y, "d=4"),
            ([z.double()] * 3, y, "torch.float64"),
            ([z, z, None], y, "2 modalities"),
        ]
        for limit in (0, 2**30):
            distributed.GATHER_LIMIT_BYTES = limit
            for embeddings, labels, named in odd:
                given, targets = (embeddings, labels) if rank else ([z, z, z], y)
                smoothing = None if targets is None else 0.9
                with pytest.raises(ValueError, match=f"All ranks.*rank 0 has 3 .*d=8 .* but rank 1 .*{named}"):
                    pairwise_contrastive_loss(*given, targets, smoothing=smoothing, group=dist.group.WORLD)
        pairwise_contrastive_loss(z, z, z, y, group=dist.group.WORLD)  # the group is as good as before


def test_ranks_that_disagree_are_told(tmp_path: Path) -> None:
    """Otherwise they would wait for one another, or read one another's bytes as something else."""
    run: Callable[..., None] = mp.spawn
    run(work_that_disagrees, args=(str(tmp_path / "store"),), nprocs=2)


def work_at_the_limit(rank: int, store: str) -> None:
    from cmsbert_fast import pairwise_contrastive_loss
    from cmsbert_fast.ops.contrastive import distributed

    with joined(rank, store, 2):
        assert distributed.GATHER_LIMIT_BYTES == 2**30  # as the README says
        z = [torch.randn(5 - 2 * rank, 8, dtype=torch.bfloat16) for _ in range(3)]
        gathered = 2 * 5 * 8 * 3 * 2  # ranks, rows of the longest, d, modalities, bytes
        for limit, ring in ((gathered, False), (gathered - 1, True)):
            distributed.GATHER_LIMIT_BYTES = limit
            with counted(ring, 2):
                pairwise_contrastive_loss(*z, smoothing=None, group=dist.group.WORLD)


def test_size_decides_how_ranks_meet(tmp_path: Path) -> None:
    run: Callable[..., None] = mp.spawn
    run(work_at_the_limit, args=(str(tmp_path / "store"),), nprocs=2)


def test_ranks_agree_on_the_cpu(tmp_path: Path) -> None:
    """Reading what the others hold must not wait for the embeddings' device, where the group also has a CPU's backend.

    A meta tensor stands for a GPU's: nothing can be read from it.
    """
    from cmsbert_fast.ops.contrastive import distributed

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        z = [torch.empty(5, 4, device="meta")] * 3
        ring = distributed.Ring(dist.group.WORLD, z, torch.empty(5, device="meta"), True)
        assert (ring.counts, ring.differentiable) == ([5], True)
    finally:
        dist.destroy_process_group()
