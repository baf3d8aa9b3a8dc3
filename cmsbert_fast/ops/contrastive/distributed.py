"""The registered operator ``cmsbert_fast::contrastive_group``: the loss of a batch that the ranks of a group share.

Embeddings are gathered while they fit in ``GATHER_LIMIT_BYTES``; above it the ranks pass blocks around a ring.
Gradients are computed in the forward pass, while the other ranks' rows are at hand: backward exchanges nothing.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cmsbert_fast.ops.autograd import register_operator
from cmsbert_fast.ops.contrastive.engine import Engine, finish, target_weight, temperature_gradient
from cmsbert_fast.ops.contrastive.operator import (
    ARGUMENTS,
    engine_of,
    exact,
    keep_gradients,
    scale_gradients,
    undisturbed,
    wants_gradients,
)
from cmsbert_fast.ops.contrastive.types import Block, Call, Numbers

GATHER_LIMIT_BYTES = 2**30

# torch 2.13 renamed it.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)

# What ranks must agree on is exchanged as numbers: dtypes by their place here, -1 for none and for any other.
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_LABEL_DTYPES = (*_DTYPES, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def loss_of_group(call: Call, group: "dist.ProcessGroup") -> Tensor:
    """The loss of the batch whose rows the ranks of the group hold, 0-dim, on every rank; every rank must call."""
    return torch.ops.cmsbert_fast.contrastive_group(*call, group.group_name, wants_gradients(call))[0]


class _Agreed(NamedTuple):
    """What ranks must have in common; dtypes as numbers, which is what they exchange."""

    modalities: int
    d: int
    dtype: int
    labels: int

    def __str__(self) -> str:
        named = "no labels" if self.labels < 0 else f"labels of {_LABEL_DTYPES[self.labels]}"
        return f"{self.modalities} modalities of d={self.d} in {_DTYPES[self.dtype]}, {named}"


class Ring:
    """The ranks of a group, their row counts, and how blocks travel from each rank to the next.

    Attributes:
        counts: Rows of each rank; ``total`` and ``longest``, their sum and maximum.
        differentiable: Whether any rank needs gradients. All must then take part in the exchange of the backward pass,
            also one whose own rows need none (it may have none).

    Raises:
        ValueError: on every rank, if they would send one another messages of different meaning.
    """

    def __init__(
        self, group: "dist.ProcessGroup", embeddings: list[Tensor], labels: Tensor | None, differentiable: bool
    ):
        z = embeddings[0]
        self.group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        # On the CPU where the group can: reading the counts then does not wait for the GPU.
        devices = [device.type for device in group._device_types]
        device = torch.device("cpu") if "cpu" in devices else z.device
        label_dtype = _LABEL_DTYPES.index(labels.dtype) if labels is not None and labels.dtype in _LABEL_DTYPES else -1
        agreed = _Agreed(len(embeddings), z.shape[1], _DTYPES.index(z.dtype), label_dtype)
        own = torch.tensor([z.shape[0], int(differentiable), *agreed], device=device)
        gathered = own.new_zeros(self.ranks * len(own))
        _all_gather(gathered, own, group=group)
        numbers: list[list[int]] = gathered.view(self.ranks, -1).tolist()
        self.counts, self.differentiable = [row[0] for row in numbers], any(row[1] for row in numbers)
        first, *others = (_Agreed(*row[2:]) for row in numbers)
        for rank, theirs in enumerate(others, 1):
            if theirs != first:
                raise ValueError(
                    "All ranks of the group must give the same modalities, size d and dtypes, and all labels or none: "
                    f"rank 0 has {first}, but rank {rank} {theirs}."
                )
        self.total, self.longest = sum(self.counts), max(self.counts)

    def offset(self, rank: int) -> int:
        return sum(self.counts[:rank])

    def pad(self, tensor: Tensor) -> Tensor:
        """Every rank's message has the shape of the longest."""
        if tensor.shape[0] == self.longest:
            return tensor.contiguous()
        padded = tensor.new_zeros(self.longest, *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        return padded

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows of all ranks, in the order of ranks."""
        padded = self.pad(tensor)
        out = padded.new_empty(self.ranks, *padded.shape)
        # As bytes: not every transport knows every dtype.
        _all_gather(out.view(-1).view(torch.uint8), padded.view(-1).view(torch.uint8), group=self.group)
        if min(self.counts) == self.longest:
            return out.flatten(0, 1)
        return torch.cat([rows[:count] for rows, count in zip(out, self.counts, strict=True)])

    def start_pass(self, tensors: list[Tensor]) -> tuple[list[Tensor], "list[dist.Work]"]:
        """Sends to the next rank and receives from the one before; what arrives is there when all works are done."""
        received = [torch.empty_like(tensor) for tensor in tensors]
        following = dist.get_global_rank(self.group, (self.rank + 1) % self.ranks)
        preceding = dist.get_global_rank(self.group, (self.rank - 1) % self.ranks)
        operations = []
        for sent, into in zip(tensors, received, strict=True):
            operations.append(dist.P2POp(dist.isend, sent.view(-1).view(torch.uint8), following, self.group))
            operations.append(dist.P2POp(dist.irecv, into.view(-1).view(torch.uint8), preceding, self.group))
        return received, dist.batch_isend_irecv(operations)

    def walk(self, tensors: list[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """Yields (rank, its tensors) for every rank, beginning with this one; the next block travels meanwhile."""
        held = [self.pad(tensor) for tensor in tensors]
        for step in range(self.ranks):
            rank = (self.rank - step) % self.ranks
            count = self.counts[rank]
            if step + 1 < self.ranks:
                received, works = self.start_pass(held)
            yield rank, [tensor[:count] for tensor in held]
            if step + 1 < self.ranks:
                for work in works:
                    work.wait()
                held = received


class _Met(NamedTuple):
    """What a rank has after the exchange; without gradients where no rank needs them."""

    loss: Tensor
    own: Block
    raw: list[Tensor] | None = None  # as Engine.gradients
    radial: Tensor | None = None


def _meet_by_gathering(ring: Ring, engine: Engine, call: Call, numbers: Numbers) -> _Met:
    """Every rank holds the columns of all: one collective for the embeddings, two of O(n) numbers for the sums."""
    gathered = _unpack(ring.gather(_pack(call.embeddings)), len(call.embeddings))
    labels = None if call.labels is None else ring.gather(call.labels)
    columns = engine.make_block(gathered, labels, numbers)
    offset = ring.offset(ring.rank)
    mine = slice(offset, offset + call.rows)
    own = columns.part(mine)
    row_lse, column_lse, attraction = engine.statistics(own, columns, numbers)
    # Rows are complete on their rank and absent elsewhere; columns are in part on every rank.
    lse = torch.cat([torch.full_like(column_lse, -torch.inf), column_lse])
    lse[: len(row_lse), mine] = row_lse
    top = lse.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, group=ring.group)
    sums = torch.cat([(lse - top).exp_().flatten(), attraction[None]])
    dist.all_reduce(sums, group=ring.group)
    lse = top + sums[:-1].view_as(lse).log()
    loss = (lse.sum() - sums[-1]) / ring.total
    if not ring.differentiable:
        return _Met(loss, own)
    return _Met(loss, own, *engine.gradients(own.with_lse(lse[:, mine]), columns.with_lse(lse), numbers))


def _meet_in_a_ring(ring: Ring, engine: Engine, call: Call, numbers: Numbers) -> _Met:
    """Blocks travel from rank to rank: O(n_local) memory, and every similarity still serves both of its directions."""
    inverse_norm = engine.inverse_norms(call.embeddings)
    weight = inverse_norm.new_zeros(call.rows)
    if call.labels is not None:
        count = torch.full_like(call.labels, -1, dtype=torch.int64)
        for _, (others,) in ring.walk([call.labels]):
            if others.numel() and call.labels.numel():
                count += engine.count_related(call.labels, others, numbers.reach)
        weight = target_weight(count, numbers.smoothing, inverse_norm.dtype)
    own = Block(tuple(call.embeddings), call.labels, inverse_norm, weight, None, ring.offset(ring.rank))
    packed = _pack(call.embeddings)
    lse, attraction = _statistics_in_a_ring(ring, engine, own, packed, numbers)
    total = lse.sum() - attraction
    dist.all_reduce(total, group=ring.group)
    loss = total / ring.total
    if not ring.differentiable:
        return _Met(loss, own)
    own = own.with_lse(lse)
    raw = [torch.zeros_like(z, dtype=inverse_norm.dtype) for z in call.embeddings]
    radial = torch.zeros_like(inverse_norm)
    for block, (travelled,) in _walk_blocks(ring, own, packed, lse.T):
        block = block.with_lse(travelled.T.contiguous())
        part, along = engine.gradients(own, block, numbers)
        torch._foreach_add_(raw, part)
        radial += along
    return _Met(loss, own, raw, radial)


def _statistics_in_a_ring(
    ring: Ring, engine: Engine, own: Block, packed: Tensor, numbers: Numbers
) -> tuple[Tensor, Tensor]:
    """The global lse of the rank's own rows, (2P, n_local), and its part of the attraction."""
    modalities = len(own.embeddings)
    row_lse = own.inverse_norm.new_full((modalities * (modalities - 1) // 2, own.rows), -torch.inf)
    attraction = own.inverse_norm.new_zeros(())
    # The column sums of a block travel with it and come home after the last rank.
    column_lse = ring.pad(row_lse.T)
    for block, _ in _walk_blocks(ring, own, packed):
        part, column_part, attracted = engine.statistics(own, block, numbers)
        row_lse = torch.logaddexp(row_lse, part)
        column_lse[: block.rows] = torch.logaddexp(column_lse[: block.rows], column_part.T)
        attraction += attracted
        (column_lse,), works = ring.start_pass([column_lse])
        for work in works:
            work.wait()
    return torch.cat([row_lse, column_lse[: own.rows].T]), attraction


def _walk_blocks(ring: Ring, own: Block, packed: Tensor, *tensors: Tensor) -> Iterator[tuple[Block, list[Tensor]]]:
    """Every rank's block, beginning with this one's, and what travels with it; ``packed``: the own embeddings."""
    labels = [] if own.labels is None else [own.labels]
    for rank, (z, norm, weight, *rest) in ring.walk([packed, own.inverse_norm.T, own.weight, *labels, *tensors]):
        label = rest.pop(0) if labels else None
        z_m = _unpack(z, len(own.embeddings))
        yield Block(z_m, label, norm.T.contiguous(), weight, None, ring.offset(rank)), rest


def _pack(embeddings: list[Tensor]) -> Tensor:
    """M tensors (n, d) side by side, (n, M d): one message."""
    return torch.stack(embeddings, dim=1).flatten(1)


def _unpack(packed: Tensor, modalities: int) -> tuple[Tensor, ...]:
    return packed.unflatten(1, (modalities, -1)).unbind(1)


# ------------------------------------------------------------------ the operator


def _forward(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    *shared, group, differentiable = arguments
    call = Call(*shared)
    z = call.embeddings[0]
    ring = Ring(dist.distributed_c10d._resolve_process_group(group), call.embeddings, call.labels, differentiable)
    numbers = call.numbers
    tau = numbers.temperature
    if ring.total == 0:
        return tau.new_zeros(()), [e.new_zeros(e.shape) for e in call.embeddings], tau.new_zeros(())
    gathered_bytes = ring.ranks * ring.longest * z.shape[1] * len(call.embeddings) * z.element_size()
    gather = ring.ranks == 1 or gathered_bytes <= GATHER_LIMIT_BYTES
    with undisturbed(z):
        met = (_meet_by_gathering if gather else _meet_in_a_ring)(ring, engine_of(call.backend), call, numbers)
    loss = exact(met.loss, ring.total)
    if met.raw is None or met.radial is None:
        return loss, [e.new_zeros(e.shape) for e in call.embeddings], tau.new_zeros(())
    # DDP averages the gradients of the ranks; the sum is wanted.
    scale = ring.ranks / (ring.total * tau)
    # float16 would lose small gradients here, before a loss scale can reach them.
    dtype = tau.dtype if z.dtype == torch.float16 else z.dtype
    gradients = finish(met.own, met.raw, met.radial, scale, dtype)
    return loss, gradients, temperature_gradient(scale, tau, met.radial)


def _fake(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    call = Call(*arguments[: len(Call._fields)])
    z = call.embeddings[0]
    kept = call.dtype if z.dtype == torch.float16 else z.dtype
    gradients = [e.new_empty(e.shape, dtype=kept) for e in call.embeddings]
    return z.new_empty((), dtype=call.dtype), gradients, z.new_empty((), dtype=call.dtype)


register_operator(
    f"contrastive_group({ARGUMENTS}, str group, bool differentiable)"
    " -> (Tensor loss, Tensor[] gradients, Tensor temperature_gradient)",
    _forward,
    _fake,
    setup_context=keep_gradients,
    backward=scale_gradients,
)
