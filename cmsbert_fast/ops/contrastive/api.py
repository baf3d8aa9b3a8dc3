"""Pairwise contrastive loss among two or three modalities (Eq. 17-19) with label smoothing (Eq. 23), as one operator.

:func:`pairwise_contrastive_loss` is public; this module checks its arguments, chooses the backend and holds the
registered operators ``cmsbert_fast::contrastive`` (one process) and ``cmsbert_fast::contrastive_group`` (all ranks of a
process group).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cmsbert_fast import reference
from cmsbert_fast.ops.autograd import once_differentiable
from cmsbert_fast.ops.contrastive import torch as contrastive_torch
from cmsbert_fast.ops.contrastive.torch import Block
from cmsbert_fast.ops.dispatch import choose_backend

# Above this size of the gathered embeddings, ranks pass blocks around a ring instead.
GATHER_LIMIT_BYTES = 2**30


def pairwise_contrastive_loss(
    linguistic: Tensor | None,
    visual: Tensor | None,
    acoustic: Tensor | None,
    labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    smoothing: float | None = 0.9,
    threshold: float = 0.1,
    *,
    group: "dist.ProcessGroup | None" = None,
    backend: str = "auto",
) -> Tensor:
    """Sum of the contrastive losses of every ordered pair of modalities (Eq. 19), with smoothed targets (Eq. 23).

    Each direction m -> m' is the mean over examples i of ``- sum_j t_ij log softmax_j(cos(z_mi, z_m'j) / temperature)``
    with ``t_ii = smoothing`` and ``1 - smoothing`` shared equally by S_i, the other examples whose label has the same
    sign and differs by at most ``threshold`` (and 1e-5, labels being float32). Where S_i is empty, or ``smoothing`` is
    None, the target is the example itself.

    Every similarity matrix serves both of its directions, and memory beyond inputs and gradients is O(n): no n x n
    matrix is kept from forward to backward, nor held whole at large n. PyTorch computes chunks of rows; Triton's
    backward pass writes strips of the similarities' gradients, at most 64 MiB or 256 rows in all directions, which is
    all of them up to 1,024 rows. With three modalities forward and backward take 15 n^2 d multiply-adds on Triton; on
    PyTorch 12 in one process and 15 in a group, whose ranks divide them. Deterministic. The roofline stands in
    ``cmsbert_fast.kernels.contrastive``.

    Args:
        linguistic, visual, acoustic: (n, d) embeddings, not normalised; any one may be None. float64 (not on Triton),
            float32, bfloat16 or float16; sums are accumulated in float32 at least.
        labels: (n,) floating point (regression) or integer (classes: S_i = same class). May be None if ``smoothing``
            is.
        temperature: positive number, or a 0-dim tensor on the embeddings' device, which then receives a gradient.
        smoothing: beta in [0, 1], or None for one-hot targets.
        threshold: delta >= 0; not used for classes.
        group: process group whose ranks each hold some rows (any number, even 0) of one global batch. Every rank must
            call. The value is the loss of the global batch on every rank, and the gradients are such that their
            *average* over ranks, as DistributedDataParallel takes it, is the gradient of the global loss. None: the
            rows are the whole batch.
        backend: see :mod:`cmsbert_fast.ops.dispatch`; "cpu" is the same as "torch" here.

    Returns:
        The loss, 0-dim, float32 (float64 for float64 embeddings); 0 for n < 2.

    Raises:
        ValueError: fewer than two modalities, or shapes, dtypes, devices or numbers that do not fit together. On every
            rank, if those of the ranks do not fit one another.
    """
    embeddings = [z for z in (linguistic, visual, acoustic) if z is not None]
    _validate(embeddings, labels, temperature, smoothing, threshold)
    if smoothing is None:
        labels, smoothing = None, 1.0
    dtype = embeddings[0].dtype
    for z in embeddings[1:]:
        dtype = torch.promote_types(dtype, z.dtype)
    embeddings = [z.to(dtype) for z in embeddings]
    chosen = choose_backend("contrastive", embeddings[0], backend)
    ranks = dist.get_world_size(group) if group is not None else 1
    if chosen == "reference":
        if ranks > 1:
            raise ValueError('The reference backend knows no process group; use backend="torch" or "auto".')
        smoothed = None if labels is None else smoothing
        return reference.pairwise_contrastive_loss(
            linguistic, visual, acoustic, labels, temperature, smoothed, threshold
        )
    if labels is not None and labels.dtype in (torch.bfloat16, torch.float16):
        labels = labels.float()
    if labels is not None and labels.dtype == torch.bool:
        labels = labels.long()
    if isinstance(temperature, Tensor):
        learned, fixed = temperature, 0.0
    else:
        learned, fixed = None, float(temperature)
    if ranks == 1:
        return torch.ops.cmsbert_fast.contrastive(embeddings, labels, learned, fixed, smoothing, threshold, chosen)[0]
    assert group is not None
    differentiable = torch.is_grad_enabled() and (
        any(z.requires_grad for z in embeddings) or (learned is not None and learned.requires_grad)
    )
    return torch.ops.cmsbert_fast.contrastive_group(
        embeddings, labels, learned, fixed, smoothing, threshold, chosen, group.group_name, differentiable
    )[0]


def _validate(
    embeddings: list[Tensor],
    labels: Tensor | None,
    temperature: float | Tensor,
    smoothing: float | None,
    threshold: float,
) -> None:
    if len(embeddings) < 2:
        raise ValueError("The contrastive loss compares modalities; give at least two of linguistic, visual, acoustic.")
    first = embeddings[0]
    if first.ndim != 2 or any(z.shape != first.shape for z in embeddings):
        shapes = ", ".join(str(tuple(z.shape)) for z in embeddings)
        raise ValueError(f"Embeddings must all have one shape (n, d), but these have {shapes}.")
    if not all(z.is_floating_point() for z in embeddings):
        raise ValueError("Embeddings must be of a floating-point dtype.")
    if any(z.device != first.device for z in embeddings):
        raise ValueError("Embeddings must all be on one device.")
    if smoothing is not None:
        if not 0.0 <= smoothing <= 1.0:
            raise ValueError(f"smoothing={smoothing} must lie in [0, 1]; None switches smoothing off.")
        if labels is None:
            raise ValueError("Label smoothing needs labels; pass them, or smoothing=None.")
        if labels.shape != first.shape[:1]:
            raise ValueError(f"labels must have the shape ({first.shape[0]},), but have {tuple(labels.shape)}.")
        if labels.device != first.device:
            raise ValueError(f"labels are on {labels.device}, but the embeddings on {first.device}.")
        if not threshold >= 0.0:
            raise ValueError(f"threshold={threshold} must not be negative.")
    if isinstance(temperature, Tensor):
        if temperature.ndim != 0 or not temperature.is_floating_point() or temperature.device != first.device:
            raise ValueError("A temperature tensor must be a floating-point scalar (0-dim) on the embeddings' device.")
    elif not temperature > 0.0:
        raise ValueError(f"temperature={temperature} must be positive.")


def _on_device_of(z: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, whatever device its tensors are on."""
    return torch.cuda.device(z.device) if z.is_cuda else nullcontext()


def _engine(backend: str) -> ModuleType:
    if backend == "triton":
        from cmsbert_fast.kernels import contrastive as engine

        return engine
    return contrastive_torch


# --- One process -----------------------------------------------------------------------------------------------------

_library = torch.library.Library("cmsbert_fast", "FRAGMENT")
_ARGUMENTS = (
    "Tensor[] embeddings, Tensor? labels, Tensor? temperature, float fixed_temperature, float smoothing, "
    "float threshold, str backend"
)
_library.define(f"contrastive({_ARGUMENTS}) -> (Tensor loss, Tensor lse, Tensor inverse_norm, Tensor weight)")
_library.define(
    f"contrastive_backward(Tensor grad, {_ARGUMENTS}, Tensor lse, Tensor inverse_norm, Tensor weight)"
    " -> (Tensor[] gradients, Tensor temperature_gradient)"
)


def _temperature(z: Tensor, temperature: Tensor | None, fixed: float) -> Tensor:
    dtype = contrastive_torch.accumulation_dtype(z.dtype)
    return z.new_full((), fixed, dtype=dtype) if temperature is None else temperature.to(dtype)


def _contrastive(embeddings, labels, temperature, fixed_temperature, smoothing, threshold, backend):
    if backend == "triton" and embeddings[0].shape[0] > 0:
        with _on_device_of(embeddings[0]):
            loss, *saved = _engine(backend).forward(
                embeddings, labels, temperature, fixed_temperature, smoothing, threshold
            )
        return _exact(loss, embeddings[0].shape[0]), *saved
    block = contrastive_torch.make_block(tuple(embeddings), labels, smoothing, threshold)
    tau = _temperature(embeddings[0], temperature, fixed_temperature)
    row_lse, column_lse, attraction = contrastive_torch.statistics(block, block, tau, smoothing, threshold)
    lse = torch.cat([row_lse, column_lse])
    loss = _exact((lse.sum() - attraction) / max(block.rows, 1), block.rows)
    return loss, lse, block.inverse_norm, block.weight


def _exact(loss: Tensor, rows: int) -> Tensor:
    """0 where there is nothing to tell apart, which a difference of rounded sums only nearly is. NaN stays NaN."""
    return 0 * loss if rows == 1 else loss


def _contrastive_fake(embeddings, labels, temperature, fixed_temperature, smoothing, threshold, backend):
    z, modalities = embeddings[0], len(embeddings)
    dtype = contrastive_torch.accumulation_dtype(z.dtype)
    n = z.shape[0]
    return (
        z.new_empty((), dtype=dtype),
        z.new_empty((modalities * (modalities - 1), n), dtype=dtype),
        z.new_empty((modalities, n), dtype=dtype),
        z.new_empty((n,), dtype=dtype),
    )


def _contrastive_backward(
    grad, embeddings, labels, temperature, fixed_temperature, smoothing, threshold, backend, lse, inverse_norm, weight
):
    n = embeddings[0].shape[0]
    if backend == "triton" and n > 0:
        with _on_device_of(embeddings[0]):
            return _engine(backend).backward(
                grad,
                embeddings,
                labels,
                temperature,
                fixed_temperature,
                smoothing,
                threshold,
                lse,
                inverse_norm,
                weight,
            )
    block = Block(tuple(embeddings), labels, inverse_norm, weight, lse)
    tau = _temperature(embeddings[0], temperature, fixed_temperature)
    raw, radial = contrastive_torch.gradients(block, block, tau, smoothing, threshold)
    scale = grad / (max(n, 1) * tau)
    temperature_gradient = -0.5 * scale / tau * radial.sum()
    return contrastive_torch.finish(block, raw, radial, scale, embeddings[0].dtype), temperature_gradient


def _contrastive_backward_fake(grad, embeddings, *_):
    dtype = contrastive_torch.accumulation_dtype(embeddings[0].dtype)
    return [z.new_empty(z.shape) for z in embeddings], grad.new_empty((), dtype=dtype)


def _save_for_contrastive(ctx, inputs, output):
    embeddings, labels, temperature, *ctx.numbers = inputs
    _, lse, inverse_norm, weight = output
    ctx.modalities = len(embeddings)
    ctx.save_for_backward(*embeddings, labels, temperature, lse, inverse_norm, weight)
    ctx.mark_non_differentiable(lse, inverse_norm, weight)


@once_differentiable("pairwise_contrastive_loss")
def _differentiate_contrastive(ctx, saved, grad, *_):
    *embeddings, labels, temperature, lse, inverse_norm, weight = saved
    gradients, temperature_gradient = torch.ops.cmsbert_fast.contrastive_backward(
        grad, embeddings, labels, temperature, *ctx.numbers, lse, inverse_norm, weight
    )
    if temperature is not None:
        temperature_gradient = temperature_gradient.to(temperature.dtype)
    return gradients, None, temperature_gradient if temperature is not None else None, None, None, None, None


# torch 2.13 renamed it.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)

# --- All ranks of a process group -------------------------------------------------------------------------------------

_library.define(
    f"contrastive_group({_ARGUMENTS}, str group, bool differentiable)"
    " -> (Tensor loss, Tensor[] gradients, Tensor temperature_gradient)"
)


# What ranks must agree on is exchanged as numbers: dtypes by their place here, -1 for none and for any other.
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_LABEL_DTYPES = (*_DTYPES, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _describe(modalities: int, d: int, dtype: int, labels: int) -> str:
    named = "no labels" if labels < 0 else f"labels of {_LABEL_DTYPES[labels]}"
    return f"{modalities} modalities of d={d} in {_DTYPES[dtype]}, {named}"


class _Ring:
    """The ranks of a group, their row counts, and how blocks travel from each rank to the next.

    ``differentiable``: whether any rank needs gradients. All must then take part in the exchange of the backward pass,
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
        agreed = [len(embeddings), z.shape[1], _DTYPES.index(z.dtype), label_dtype]
        own = torch.tensor([z.shape[0], int(differentiable), *agreed], device=device)
        gathered = own.new_zeros(self.ranks * len(own))
        _all_gather(gathered, own, group=group)
        numbers: list[list[int]] = gathered.view(self.ranks, -1).tolist()
        self.counts, self.differentiable = [row[0] for row in numbers], any(row[1] for row in numbers)
        for rank, (_, _, *theirs) in enumerate(numbers):
            if theirs != numbers[0][2:]:
                raise ValueError(
                    "All ranks of the group must give the same modalities, size d and dtypes, and all labels or none: "
                    f"rank 0 has {_describe(*numbers[0][2:])}, but rank {rank} {_describe(*theirs)}."
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


def _split(packed: Tensor, modalities: int) -> tuple[Tensor, ...]:
    return packed.unflatten(1, (modalities, -1)).unbind(1)


def _group_forward(
    embeddings, labels, temperature, fixed_temperature, smoothing, threshold, backend, group, differentiable
):
    z = embeddings[0]
    ring = _Ring(dist.distributed_c10d._resolve_process_group(group), embeddings, labels, differentiable)
    differentiable = ring.differentiable
    engine = _engine(backend)
    tau = _temperature(z, temperature, fixed_temperature)
    if ring.total == 0:
        return tau.new_zeros(()), [e.new_zeros(e.shape) for e in embeddings], tau.new_zeros(())
    gathered_bytes = ring.ranks * ring.longest * z.shape[1] * len(embeddings) * z.element_size()
    gather = ring.ranks == 1 or gathered_bytes <= GATHER_LIMIT_BYTES
    meet = _meet_by_gathering if gather else _meet_in_a_ring
    with _on_device_of(z):
        loss, raw, radial, own = meet(ring, engine, embeddings, labels, tau, smoothing, threshold, differentiable)
    loss = _exact(loss, ring.total)
    if not differentiable:
        return loss, [e.new_zeros(e.shape) for e in embeddings], tau.new_zeros(())
    # DDP averages the gradients of the ranks; the sum is wanted.
    scale = ring.ranks / (ring.total * tau)
    # float16 would lose small gradients here, before a loss scale can reach them.
    dtype = tau.dtype if z.dtype == torch.float16 else z.dtype
    return loss, engine.finish(own, raw, radial, scale, dtype), -0.5 * scale / tau * radial.sum()


def _meet_by_gathering(ring, engine, embeddings, labels, tau, smoothing, threshold, differentiable):
    """Every rank holds the columns of all: one collective for the embeddings, two of O(n) numbers for the sums."""
    modalities = len(embeddings)
    columns_z = _split(ring.gather(torch.stack(embeddings, dim=1).flatten(1)), modalities)
    columns_labels = None if labels is None else ring.gather(labels)
    columns = engine.make_block(columns_z, columns_labels, smoothing, threshold)
    offset = ring.offset(ring.rank)
    mine = slice(offset, offset + embeddings[0].shape[0])
    own = Block(
        tuple(z[mine] for z in columns_z), labels, columns.inverse_norm[:, mine], columns.weight[mine], None, offset
    )
    row_lse, column_lse, attraction = engine.statistics(own, columns, tau, smoothing, threshold)
    pairs = row_lse.shape[0]
    # Rows are complete on their rank and absent elsewhere; columns are in part on every rank.
    lse = torch.cat([torch.full_like(column_lse, -torch.inf), column_lse])
    lse[:pairs, mine] = row_lse
    top = lse.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, group=ring.group)
    sums = torch.cat([(lse - top).exp_().flatten(), attraction[None]])
    dist.all_reduce(sums, group=ring.group)
    lse = top + sums[:-1].view_as(lse).log()
    loss = (lse.sum() - sums[-1]) / ring.total
    if not differentiable:
        return loss, None, None, own
    own = own.with_lse(lse[:, mine])
    raw, radial = engine.gradients(own, columns.with_lse(lse), tau, smoothing, threshold)
    return loss, raw, radial, own


def _meet_in_a_ring(ring, engine, embeddings, labels, tau, smoothing, threshold, differentiable):
    """Blocks travel from rank to rank: O(n_local) memory, and every similarity still serves both of its directions."""
    modalities = len(embeddings)
    inverse_norm = engine.inverse_norms(embeddings)
    weight = inverse_norm.new_zeros(embeddings[0].shape[0])
    if labels is not None:
        count = torch.full_like(labels, -1, dtype=torch.int64)
        for _, (others,) in ring.walk([labels]):
            if others.numel() and labels.numel():
                count += engine.count_related(labels, others, threshold)
        weight = contrastive_torch.target_weight(count, smoothing, inverse_norm.dtype)
    own = Block(tuple(embeddings), labels, inverse_norm, weight, None, ring.offset(ring.rank))
    packed = torch.stack(embeddings, dim=1).flatten(1)

    def blocks(*tensors: Tensor) -> Iterator[tuple[Block, list[Tensor]]]:
        travelling = [packed, inverse_norm.T, weight, *([] if labels is None else [labels]), *tensors]
        for rank, (z, norm, w, *rest) in ring.walk(travelling):
            label = None if labels is None else rest.pop(0)
            yield Block(_split(z, modalities), label, norm.T.contiguous(), w, None, ring.offset(rank)), rest

    row_lse = inverse_norm.new_full((modalities * (modalities - 1) // 2, own.rows), -torch.inf)
    attraction = inverse_norm.new_zeros(())
    # The column sums of a block travel with it and come home after the last rank.
    column_lse = ring.pad(row_lse.T)
    for block, _ in blocks():
        part, column_part, attracted = engine.statistics(own, block, tau, smoothing, threshold)
        row_lse = torch.logaddexp(row_lse, part)
        column_lse[: block.rows] = torch.logaddexp(column_lse[: block.rows], column_part.T)
        attraction += attracted
        (column_lse,), works = ring.start_pass([column_lse])
        for work in works:
            work.wait()
    lse = torch.cat([row_lse, column_lse[: own.rows].T])
    total = lse.sum() - attraction
    dist.all_reduce(total, group=ring.group)
    loss = total / ring.total
    if not differentiable:
        return loss, None, None, own
    own = own.with_lse(lse)
    raw = [torch.zeros_like(z, dtype=inverse_norm.dtype) for z in embeddings]
    radial = torch.zeros_like(inverse_norm)
    for block, (travelled,) in blocks(lse.T):
        block = block.with_lse(travelled.T.contiguous())
        part, along = engine.gradients(own, block, tau, smoothing, threshold)
        torch._foreach_add_(raw, part)
        radial += along
    return loss, raw, radial, own


def _group_fake(embeddings, labels, temperature, fixed_temperature, *_):
    z = embeddings[0]
    dtype = contrastive_torch.accumulation_dtype(z.dtype)
    kept = dtype if z.dtype == torch.float16 else z.dtype
    return (
        z.new_empty((), dtype=dtype),
        [e.new_empty(e.shape, dtype=kept) for e in embeddings],
        z.new_empty((), dtype=dtype),
    )


def _save_for_group(ctx, inputs, output):
    embeddings, _, temperature, *_ = inputs
    _, gradients, temperature_gradient = output
    ctx.dtype = embeddings[0].dtype
    ctx.temperature_dtype = None if temperature is None else temperature.dtype
    ctx.save_for_backward(temperature_gradient, *gradients)


@once_differentiable("pairwise_contrastive_loss")
def _differentiate_group(ctx, saved, grad, *_):
    # The gradient was computed in the forward pass, while the other ranks' rows were at hand: no second exchange.
    temperature_gradient, *gradients = saved
    scaled = [(g * grad).to(ctx.dtype) for g in gradients]
    tau = None if ctx.temperature_dtype is None else (temperature_gradient * grad).to(ctx.temperature_dtype)
    return scaled, None, tau, None, None, None, None, None, None


for _name, _implementation, _fake in (
    ("contrastive", _contrastive, _contrastive_fake),
    ("contrastive_backward", _contrastive_backward, _contrastive_backward_fake),
    ("contrastive_group", _group_forward, _group_fake),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cmsbert_fast::{_name}", _fake, lib=_library)
torch.library.register_autograd(
    "cmsbert_fast::contrastive", _differentiate_contrastive, setup_context=_save_for_contrastive, lib=_library
)
torch.library.register_autograd(
    "cmsbert_fast::contrastive_group", _differentiate_group, setup_context=_save_for_group, lib=_library
)
