"""Rows of the global batch: values and gradients are those of one process, over 1, 2 and 4 gloo ranks."""

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from cmsbert_fast.models import gathering
from cmsbert_fast.models.gathering import gather_rows

RANKS = 4
# Rows of each rank, by the size of the group.
COUNTS = {1: [11], 2: [4, 7], 4: [3, 0, 6, 2]}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(11, 6, generator=generator), torch.randn(6, 4, generator=generator, dtype=torch.float64)


def rows_of(features: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Two of two dimensions and more, one of one; one in another dtype; one that the loss does not read."""
    codes = torch.tanh(features.double() @ weight)
    return {"codes": codes.unflatten(1, (2, 2)), "norms": codes.norm(dim=1).float(), "unread": codes}


def compared(rows: dict[str, Tensor]) -> Tensor:
    """No mean over rows: standard deviations, and products of all pairs."""
    pairs = rows["codes"].flatten(1) @ rows["codes"].flatten(1).T
    return pairs.sigmoid().mean() * rows["norms"].std() + rows["codes"].std(dim=0).sum()


def one_process() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    features, weight = data()
    weight.requires_grad_()
    rows = rows_of(features, weight)
    loss = compared({name: values.double() for name, values in rows.items()})
    loss.backward()
    return rows, loss, weight.grad


def check(rank: int, group: dist.ProcessGroup) -> None:
    ranks = dist.get_world_size(group)
    features, weight = data()
    weight.requires_grad_()
    own = features.split(COUNTS[ranks])[rank]
    rows = gather_rows(rows_of(own, weight), group)
    expected, expected_loss, expected_gradient = one_process()
    for name, values in expected.items():
        assert rows[name].dtype == torch.float64
        torch.testing.assert_close(rows[name], values.double())
    loss = compared(rows)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    loss.backward()
    dist.all_reduce(weight.grad, group=group)  # a rank without rows has a gradient as well
    torch.testing.assert_close(weight.grad / ranks, expected_gradient, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        assert torch.equal(gather_rows({"only": own[:, 0]}, group)["only"], features[:, 0])


def check_dtypes(group: dist.ProcessGroup) -> None:
    half = {"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.ones(2, dtype=torch.float16)}
    assert {values.dtype for values in gather_rows(half, group).values()} == {torch.float32}


def check_collectives(rank: int, group: dist.ProcessGroup) -> None:
    """Two, whatever the number of tensors."""
    calls, original = [], gathering._all_gather
    gathering._all_gather = lambda *arguments: (calls.append(arguments), original(*arguments))[1]
    features, weight = data()
    gather_rows(rows_of(features[:rank], weight), group)
    gathering._all_gather = original
    assert len(calls) == 2


def rank_main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=timeout)
    try:
        for ranks in COUNTS:
            group = dist.new_group(list(range(ranks)))
            if rank < ranks:
                check(rank, group)
                check_dtypes(group)
        check_collectives(rank, dist.group.WORLD)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def test_rows_and_gradients_over_ranks(tmp_path: Path) -> None:
    mp.spawn(rank_main, (str(tmp_path / "store"),), nprocs=RANKS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_process_has_the_whole_batch(dtype: torch.dtype) -> None:
    rows = {"codes": torch.ones(2, 3, dtype=dtype)}
    gathered = gather_rows(rows, None)["codes"]
    assert torch.equal(gathered, rows["codes"].to(gathered.dtype))
    assert gathered.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gather_rows({}, None) == {}
