"""The processes of a run: process group, shares of a batch, collectives, gradients averaged over the ranks.

The number of ranks affects only rounding and dropout masks. With the same number of ranks, a run is repeatable to the
bit.
"""

import ctypes
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from cmsbert_fast.training.embedding_gradient import EmbeddingGradient, large_embeddings
from cmsbert_fast.training.errors import UsageError

BUCKET_BYTES = 25 * 2**20  # DistributedDataParallel's choice: large enough for the bandwidth, small enough to overlap


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process. Without ``torchrun``, it is rank 0 of 1."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group of all ranks; None for a single process."""
        return dist.group.WORLD if self.world_size > 1 else None


def environment_rank() -> int:
    """The rank set by ``torchrun``, known before any process group exists; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def start(device: str = "auto") -> Ranks:
    """Joins the process group that ``torchrun`` describes in the environment: nccl on GPUs, gloo on CPUs.

    With nccl, gloo handles objects and numbers of rows: they are on the CPU, and reading them there does not wait for
    the GPU.

    Args:
        device: "cpu", "cuda", or "auto" (CUDA if there is a device).

    Raises:
        UsageError: "cuda" without a CUDA device.
    """
    own = find_device(device)
    if "WORLD_SIZE" not in os.environ:
        return Ranks(0, 1, own)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timedelta(minutes=10)))
    # torchrun's own store outlives a failed attempt: without a prefix, restarted workers find the addresses of dead
    # ones. Where each attempt has a new store, none: a node that replaces another counts attempts from 0 again.
    outlives = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if outlives else "0"
    store = dist.PrefixStore(f"attempt{attempt}", store)
    on_gpu = own.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        device_id=own if on_gpu else None,
    )
    return Ranks(rank, world_size, own)


def find_device(name: str) -> torch.device:
    """The device of this process: "cpu", "cuda" (that of its local rank), or "auto" (CUDA if there is a device).

    Raises:
        UsageError: "cuda" without a CUDA device.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError("--device cuda was requested, but PyTorch finds no CUDA device; use --device cpu.")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> None:
    """Makes this process keep freed memory instead of returning large blocks to the system.

    On a CPU, each step allocates its activations and gradients: 50,000 pages for BERT-base with 32 short utterances.
    The system would have to clear them. The process stays as large as its largest step.
    Works only with glibc's allocator, and only if nobody has tuned it (``GLIBC_TUNABLES``, ``MALLOC_...``).
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no blocks that are unmapped when freed
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never return the end of the heap


def compute_deterministically() -> None:
    """Makes GPU operators deterministic where possible, so a run is repeatable to the bit.

    Call it before any computation on a GPU. CPU operators are deterministic anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid, and slow.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def stop() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def report_once(message: str, patience: float = 15.0) -> None:
    """Prints to stderr, on rank 0 only if every rank has the same error.

    The other ranks wait ``patience`` seconds. If ``torchrun`` has not ended them by then, the error is theirs alone,
    and they print it.
    """
    rank = environment_rank()
    if rank:
        time.sleep(patience)
        message = f"rank {rank}: {message}"
    print(message, file=sys.stderr, flush=True)


def share(count: int, ranks: Ranks) -> slice:
    """This rank's contiguous share of ``count`` items; sizes differ by at most 1 between ranks."""
    small, larger = divmod(count, ranks.world_size)
    begin = ranks.rank * small + min(ranks.rank, larger)
    return slice(begin, begin + small + (ranks.rank < larger))


def sum_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """Sums ``values`` over the ranks, in place."""
    if ranks.world_size > 1:
        dist.all_reduce(values)
    return values


def join_shares(rows: Tensor, count: int, ranks: Ranks) -> Tensor:
    """Joins the ranks' rows for their :func:`share` of ``count`` items: (share, ...) -> (count, ...)."""
    if ranks.world_size == 1:
        return rows
    largest = -(-count // ranks.world_size)
    padded = rows.new_zeros(largest, *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    parts = [torch.empty_like(padded) for _ in range(ranks.world_size)]
    dist.all_gather(parts, padded)
    sizes = [share(count, Ranks(r, ranks.world_size, ranks.device)) for r in range(ranks.world_size)]
    return torch.cat([part[: s.stop - s.start] for part, s in zip(parts, sizes, strict=True)])


def gather_objects(value: object, ranks: Ranks) -> list:
    """Gathers one small Python object per rank, in rank order, on every rank."""
    if ranks.world_size == 1:
        return [value]
    values: list = [None] * ranks.world_size
    dist.all_gather_object(values, value)
    return values


def from_main(value: Callable[[], Any], ranks: Ranks) -> Any:
    """Calls ``value`` on rank 0 only; every rank gets its result or its UsageError."""
    if ranks.world_size == 1:
        return value()
    box: list = [None, None]
    if ranks.is_main:
        try:
            box[0] = value()
        except UsageError as error:
            box[1] = str(error)
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise UsageError(box[1])
    return box[0]


def equalise(tensors: Iterable[Tensor], ranks: Ranks) -> None:
    """Copies rank 0's values to every rank, in place."""
    if ranks.world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)  # autograd must not see this


def wait_for_all(ranks: Ranks) -> None:
    """Returns once every rank has called it."""
    if ranks.world_size > 1:
        dist.barrier()


class _Bucket:
    def __init__(self, parameters: list[Parameter]):
        first = parameters[0]
        self.flat = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
        self.parameters = parameters
        self.missing = 0
        self.work: dist.Work | None = None
        begin = 0
        for p in parameters:
            p.grad = self.flat[begin : begin + p.numel()].view_as(p)
            begin += p.numel()


class Gradients:
    """All gradients of a model, averaged over the ranks during the backward pass.

    With several ranks, gradients are in flat buckets, in the order in which the backward pass produces them. A bucket
    is reduced as soon as it and all before it are complete. DistributedDataParallel reorders its buckets after the
    first step, so a resumed run would add in another order than the original; here the order never changes. A single
    process needs no buckets: the backward pass allocates the gradients, which saves zeroing and adding all of them (a
    tenth of a BERT-base step with 32 short utterances on 2 cores). Of large embeddings only the rows of a step's words
    are filled, cleared and clipped (:class:`EmbeddingGradient`); with several ranks, other ranks fill rows too, and all
    are cleared and clipped.

    Parameters that the loss does not reach get gradient 0, so the optimiser treats them the same on any number of
    ranks.

    Call ``zero()`` before a step's first backward pass, ``no_sync()`` around all but the last, ``finish()`` after it.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, bucket_bytes: int = BUCKET_BYTES):
        self._ranks = ranks
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._embeddings = {module.weight: EmbeddingGradient(module) for module in large_embeddings(model)}
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[Parameter, _Bucket] = {}
        self._next = 0
        self._armed = True
        if ranks.world_size > 1:
            self._fill_buckets(bucket_bytes)

    def _fill_buckets(self, bucket_bytes: int) -> None:
        group: list[Parameter] = []
        for p in reversed(self._parameters):
            full = sum(q.numel() * q.element_size() for q in group) >= bucket_bytes
            if group and (full or p.dtype != group[0].dtype):
                self._buckets.append(_Bucket(group))
                group = []
            group.append(p)
        self._buckets.append(_Bucket(group))
        for bucket in self._buckets:
            for p in bucket.parameters:
                self._bucket_of[p] = bucket
                p.register_post_accumulate_grad_hook(self._ready)

    def zero(self) -> None:
        """Clears the last step's gradients."""
        if self._ranks.world_size == 1:
            for p in self._parameters:
                p.grad = None
            for embedding in self._embeddings.values():
                embedding.clear()
        self._armed = True
        self._next = 0
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.missing = len(bucket.parameters)
        for embedding in self._embeddings.values():
            embedding.begin()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """For backward passes before the step's last: gradients are added up, not yet reduced."""
        self._armed = False
        yield
        self._armed = True

    def finish(self) -> None:
        """Waits until every gradient is averaged over the ranks."""
        for embedding in self._embeddings.values():
            embedding.end()
        if self._ranks.world_size == 1:
            for p in self._parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            return
        # Buckets left over hold a parameter that the last backward pass did not reach.
        for bucket in self._buckets[self._next :]:
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)
        for bucket in self._buckets:
            assert bucket.work is not None
            bucket.work.wait()
            bucket.work = None
            bucket.flat.div_(self._ranks.world_size)

    def norm(self) -> Tensor:
        """The global Euclidean norm of the gradients, a 0-dim tensor."""
        return get_total_norm([p.grad for p in self._filled() if p.grad is not None])

    def clip(self, norm: Tensor, limit: float) -> None:
        """Scales all gradients, whose norm is ``norm``, to a norm of at most ``limit``."""
        clip_grads_with_norm_(self._filled(), limit, norm)
        self._write()

    def clip_values(self, limit: float) -> None:
        """Clips every entry of the gradients to [-limit, limit]."""
        clip_grad_value_(self._filled(), limit)
        self._write()

    def _filled(self) -> list[Tensor]:
        """Tensors whose ``grad`` together hold all that is not 0."""
        return [self._embeddings[p].filled if p in self._embeddings else p for p in self._parameters]

    def _write(self) -> None:
        for embedding in self._embeddings.values():
            embedding.write()

    def _ready(self, parameter: Parameter) -> None:
        if not self._armed:
            return
        self._bucket_of[parameter].missing -= 1
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            bucket = self._buckets[self._next]
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)
            self._next += 1
