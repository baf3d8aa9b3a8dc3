"""What the ranks of a large group say to one another: message by message, seen from several ranks of a fake group.

A fake group moves nothing: its collectives return at once. What a rank asks for is what NCCL would be asked for, which
waits for ever where ranks ask for different things.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from cmsbert_fast import pairwise_contrastive_loss
from cmsbert_fast.ops.contrastive import distributed as group_loss
from cmsbert_fast.training.distributed import BUCKET_BYTES, Gradients, Ranks

RANKS = 4
CPU = torch.device("cpu")
Message = tuple[Any, ...]


@contextlib.contextmanager
def rank_of(rank: int, ranks: int = RANKS) -> Iterator[list[Message]]:
    """This process is a rank of a fake group; yields what it asks for, in order."""
    asked: list[Message] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            tensors = [x for x in arguments if isinstance(x, Tensor)]
            asked.append((function.__name__, *(f"{x.dtype} {tuple(x.shape)}" for x in tensors)))
            return function(*arguments, **options)

        return call

    def exchange(operations: list[dist.P2POp]) -> list[Any]:
        for x in operations:
            asked.append((x.op.__name__, (x.peer - rank) % ranks, x.tensor.numel() * x.tensor.element_size()))
        return [mock.Mock() for _ in operations]

    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        with (
            mock.patch.object(dist, "all_reduce", noted(dist.all_reduce)),
            mock.patch.object(group_loss, "_all_gather", noted(group_loss._all_gather)),
            mock.patch.object(dist, "batch_isend_irecv", exchange),
        ):
            yield asked
    finally:
        dist.destroy_process_group()


def layers() -> nn.Sequential:
    """Of 4 MB each, a BERT-base's largest; with a small one at each end."""
    sizes = [8, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 8]
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


def backward(model: nn.Module, ranks: Ranks, skip: bool = False, events: list[str] | None = None) -> None:
    """One step's gradients; ``skip``: this rank's rows do not reach the last layer."""
    gradients = Gradients(model, ranks)
    for name, parameter in model.named_parameters() if events is not None else ():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: events.append(name))
    gradients.zero()
    (model[:-1] if skip else model)(torch.ones(2, 8)).sum().backward()
    if events is not None:
        events.append("backward is done")
    gradients.finish()


def test_buckets_are_neither_small_nor_large() -> None:
    model = layers()
    with rank_of(1) as asked:
        backward(model, Ranks(1, RANKS, CPU))
    counts = [int(message[1].rpartition("(")[2].rstrip(",)")) for message in asked]
    assert {message[0] for message in asked} == {"all_reduce"}
    assert sum(counts) == sum(p.numel() for p in model.parameters())
    largest = max(p.numel() for p in model.parameters())
    assert len(counts) > 1
    assert all(BUCKET_BYTES <= 4 * count < BUCKET_BYTES + 4 * largest for count in counts[:-1])


def test_buckets_travel_while_the_backward_pass_goes_on() -> None:
    """Each is on its way as soon as it is full: before the layers in front of it have their gradients."""
    model, events = layers(), []
    with (
        rank_of(2),
        mock.patch.object(dist, "all_reduce", side_effect=lambda *_, **__: events.append("sent") or mock.Mock()),
    ):
        backward(model, Ranks(2, RANKS, CPU), events=events)
    sent = [i for i, event in enumerate(events) if event == "sent"]
    done = events.index("backward is done")
    assert len(sent) > 1
    assert sent[0] < events.index("0.weight")
    assert all(i < done for i in sent)


@pytest.mark.parametrize("skipping", [[], [0], [1, 3]])
def test_what_a_rank_reduces_does_not_depend_on_the_rank(skipping: list[int]) -> None:
    """Nor on what its rows reach: what a rank misses it sends as zeros, in the same order."""
    said = []
    for rank in range(RANKS):
        with rank_of(rank) as asked:
            backward(layers(), Ranks(rank, RANKS, CPU), skip=rank in skipping)
        said.append(asked)
    assert said[0]
    assert said == [said[0]] * RANKS


@pytest.mark.parametrize("ring", [False, True], ids=["gathered", "ring"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_what_a_rank_asks_of_the_loss_does_not_depend_on_the_rank(
    ring: bool, modalities: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring: to the next, from the one before, a block at a time, RANKS - 1 times for each walk around it."""
    monkeypatch.setattr(group_loss, "GATHER_LIMIT_BYTES", 0 if ring else 2**30)
    rows, size, said = 6, 8, []
    for rank in range(RANKS):
        torch.manual_seed(rank)
        z: list[Tensor | None] = [torch.randn(rows, size, requires_grad=True) for _ in range(modalities)]
        z += [None] * (3 - modalities)
        with rank_of(rank) as asked:
            loss = pairwise_contrastive_loss(*z, torch.randn(rows).round(), group=dist.group.WORLD)
            loss.backward()
        said.append(asked)
    assert said[0]
    assert said == [said[0]] * RANKS
    travelling = [message for message in said[0] if message[0] in ("isend", "irecv")]
    assert bool(travelling) == ring
    if not ring:
        return
    assert {message[:2] for message in travelling} == {("isend", 1), ("irecv", RANKS - 1)}
    # Every message of a rank is one that another receives: sent and received in turns, of the same size.
    sent, received = travelling[::2], travelling[1::2]
    assert [(message[0], message[2]) for message in sent] == [("isend", message[2]) for message in received]
    # Embeddings go around once for the forward and once for the backward pass, RANKS - 1 times each; no message is
    # larger, and all that is not embeddings are a few numbers a row.
    block = rows * size * modalities * 4
    sizes = [message[2] for message in sent]
    assert max(sizes) == block
    assert sizes.count(block) == 2 * (RANKS - 1)
    assert max(x for x in sizes if x < block) <= 4 * rows * 2 * modalities * modalities
