"""Processes that are ranks of a group, and the small model that they train."""

import contextlib
import datetime
from collections.abc import Iterator
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

RANKS = 4
# Rows of each rank, by the size of the group.
COUNTS = {1: [23], 2: [9, 14], 4: [7, 0, 11, 5]}


@contextlib.contextmanager
def joined(rank: int, store: str, ranks: int) -> Iterator[None]:
    """This process is a rank of a group; the ranks leave together, as one that leaves while others talk aborts them."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timeout)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


class Model(nn.Module):
    """Three linear projections, dropout and a learned temperature."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.ModuleList(nn.Linear(6, 8) for _ in range(3)).double()
        self.dropout = nn.Dropout(dropout)
        self.temperature = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*(layer(self.dropout(x)) for layer in self.layers), self.temperature.expand(len(x)))


def data(n: int = 23) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(-12, 13, (n,), generator=generator) / 10
    return torch.randn(n, 6, generator=generator, dtype=torch.float64), labels


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def assert_same(got: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@contextlib.contextmanager
def counted(ring: bool, ranks: int) -> Iterator[None]:
    """The ranks must meet, and only as said: in a ring, or by gathering (always where there is one rank).

    Whatever they send or receive must have ended when they part: a rank that leaves while its message is still under
    way aborts the others.
    """
    from cmsbert_fast.ops.contrastive import distributed

    messages: list[mock.Mock] = []
    start = dist.batch_isend_irecv

    def recorded(operations: list[dist.P2POp]) -> list[mock.Mock]:
        works = [mock.Mock(wraps=work) for work in start(operations)]
        assert len(works) == len(operations)
        messages.extend(works)
        return works

    with (
        mock.patch.object(distributed, "_meet_in_a_ring", wraps=distributed._meet_in_a_ring) as in_a_ring,
        mock.patch.object(distributed, "_meet_by_gathering", wraps=distributed._meet_by_gathering) as by_gathering,
        mock.patch.object(dist, "batch_isend_irecv", recorded),
    ):
        yield
    taken, other = (in_a_ring, by_gathering) if ring and ranks > 1 else (by_gathering, in_a_ring)
    assert (taken.call_count > 0 or ranks == 1, other.call_count) == (True, 0)
    assert bool(messages) == (ring and ranks > 1)
    assert all(work.wait.call_count == 1 for work in messages)
