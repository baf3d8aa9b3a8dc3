"""cms_attention under DistributedDataParallel."""

import datetime
import time
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from cmsbert_fast import ModalityShift, cms_attention
from cmsbert_fast.ops.dispatch import why_not
from cmsbert_fast.packing import cumulative
from tests.interpreter import INTERPRETED, round_products_once
from tests.ops.attention.operator_cases import DEVICE, inputs, run, runs_kernels


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        leaves, self.options = inputs(torch.float32)
        self.leaves = torch.nn.ParameterList([x.detach() for x in leaves])

    def forward(self) -> Tensor:
        return run(list(self.leaves), "triton", **self.options)


@runs_kernels
def test_distributed_data_parallel(tmp_path: Path) -> None:
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        plain = Layer().to(DEVICE)
        wrapped = DistributedDataParallel(Layer().to(DEVICE))
        plain().square().sum().backward()
        wrapped().square().sum().backward()
        for a, e in zip(wrapped.module.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a.grad, e.grad)
    finally:
        torch.distributed.destroy_process_group()


class Attending(torch.nn.Module):
    """Attention as a layer uses it: projections, gates and shifts are learnt."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backend = backend
        self.project = torch.nn.Linear(8, 3 * 8 + 2)  # q, k, v and both token gates
        self.frame_gates = torch.nn.ModuleList(torch.nn.Linear(size, 1) for size in (5, 3))
        self.shifts = torch.nn.ModuleList(torch.nn.Linear(size, 8, bias=False) for size in (5, 3))

    def forward(self, batch: list[tuple[Tensor, ...]]) -> Tensor:
        """Each utterance's tokens (N, 8) and frames (N_v, 5), (N_a, 3) -> all z (T, 2, 4)."""
        tokens, *frames = (torch.cat(parts) for parts in zip(*batch, strict=True))
        lengths = torch.tensor([[len(part) for part in utterance] for utterance in batch]).T
        cu = [cumulative(n).to(tokens.device) for n in lengths]
        longest = lengths.amax(dim=1).tolist()
        projected = self.project(tokens)
        shifts = [
            ModalityShift(projected[:, 24 + i], gate(x)[:, 0], x, shift.weight, cu[1 + i], longest[1 + i])
            for i, (x, gate, shift) in enumerate(zip(frames, self.frame_gates, self.shifts, strict=True))
        ]
        qkv = projected[:, :24].unflatten(1, (3, 2, 4)).unbind(1)
        return cms_attention(*qkv, *shifts, cu_seqlens=cu[0], max_seqlen=longest[0], backend=self.backend)


# Tokens, visual and acoustic frames of the utterances of both ranks, step by step: unequal halves, one without a token.
SHARES = [
    [[(5, 4, 2), (3, 0, 3)], [(7, 2, 9)]],
    [[(2, 3, 1)], [(0, 0, 0)]],
    [[(1, 1, 0), (0, 2, 2)], [(4, 6, 1), (9, 1, 5)]],
]


def check_halves(rank: int, backend: str) -> None:
    device = DEVICE if backend == "triton" else "cpu"
    single = Attending(backend).to(device)
    wrapped = DistributedDataParallel(Attending(backend).to(device))
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    for shares in SHARES:
        halves = [[tuple(random(n, d) for n, d in zip(u, (8, 5, 3), strict=True)) for u in share] for share in shares]
        weights = [random(sum(len(u[0]) for u in half), 2, 4) for half in halves]
        (wrapped(halves[rank]) * weights[rank]).sum().backward()
        (single(halves[0] + halves[1]) * torch.cat(weights)).sum().div(2).backward()  # averaged over the ranks
        for a, e in zip(wrapped.module.parameters(), single.parameters(), strict=True):
            assert e.grad.abs().sum() > 0
            torch.testing.assert_close(a.grad, e.grad, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            for p in (*wrapped.module.parameters(), *single.parameters()):
                p -= 0.1 * p.grad
                p.grad = None


def work_on_a_half(rank: int, store: str, backends: list[str]) -> None:
    torch.set_num_threads(1)
    if INTERPRETED:  # in a process that pytest has not set up
        round_products_once()
    timeout = datetime.timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
    for backend in backends:
        check_halves(rank, backend)
    dist.barrier()  # a rank that leaves while another still talks aborts it
    dist.destroy_process_group()


def test_two_ranks_give_the_gradients_of_one_process(tmp_path: Path) -> None:
    backends = ["triton"] if INTERPRETED else ["torch"]  # the interpreter's run repeats nothing
    if not INTERPRETED and why_not("attention", "cpu", torch.empty(1)) is None:
        backends.append("cpu")
    if DEVICE == "cuda":
        backends.append("triton")
    ranks = mp.spawn(work_on_a_half, args=(str(tmp_path / "store"), backends), nprocs=2, join=False)
    deadline = time.monotonic() + 600
    try:
        while not ranks.join(timeout=max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in ranks.processes:
            process.kill()
