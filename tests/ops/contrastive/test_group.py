"""The contrastive loss over process groups of 1, 2 and 4 gloo ranks: what one process with the whole batch computes.

Four processes start once and go through everything; a failed assertion in any of them fails the test.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cmsbert_fast.kernels.cpu import library
from tests.ops.contrastive.ranks import COUNTS, RANKS, Model, assert_same, counted, data, gradients, joined


def check_loss(
    group: dist.ProcessGroup,
    labels: Tensor | None,
    ring: bool,
    compiled: bool,
    dtype: torch.dtype,
    backend: str = "torch",
) -> None:
    """Value on every rank, embeddings' and temperature's gradients after averaging."""
    from cmsbert_fast import pairwise_contrastive_loss, reference
    from cmsbert_fast.ops.contrastive import distributed

    distributed.GATHER_LIMIT_BYTES = 0 if ring else 2**30
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    start = sum(COUNTS[ranks][:rank])
    mine = slice(start, start + COUNTS[ranks][rank])
    generator = torch.Generator().manual_seed(3)
    whole = [torch.randn(23, 6, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]
    exact = [z.double().clone().requires_grad_() for z in whole]
    tau = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    smoothing = None if labels is None else 0.9
    expected = reference.pairwise_contrastive_loss(*exact, labels, tau, smoothing)
    wanted = torch.autograd.grad(2 * expected, [*exact, tau])

    local = [z[mine].clone().requires_grad_() for z in whole]
    own_tau = tau.detach().clone().requires_grad_()

    def function(*z: Tensor) -> Tensor:
        y = None if labels is None else labels[mine]
        return pairwise_contrastive_loss(*z, y, own_tau, smoothing, group=group, backend=backend)

    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    with counted(ring, ranks):
        loss = function(*local)
    (2 * loss).backward()
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5}.get(dtype, 4 * torch.finfo(dtype).eps)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=min(tolerance, 1e-5), atol=1e-10)
    for z, want in zip(local, wanted, strict=False):
        assert z.grad.dtype == dtype
        torch.testing.assert_close(z.grad.double() / ranks, want[mine], rtol=tolerance, atol=tolerance)
    total = own_tau.grad / ranks
    dist.all_reduce(total, group=group)
    torch.testing.assert_close(total, wanted[-1], rtol=max(tolerance, 1e-9), atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(function(*local), loss.detach())


def check_ddp(group: dist.ProcessGroup, ring: bool) -> None:
    """Parameters' gradients under DistributedDataParallel are those of one process with the whole batch."""
    from cmsbert_fast import pairwise_contrastive_loss
    from cmsbert_fast.ops.contrastive import distributed

    distributed.GATHER_LIMIT_BYTES = 0 if ring else 2**30
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    x, y = data()
    single = Model()
    *z, _ = single(x)
    pairwise_contrastive_loss(*z, y, single.temperature).backward()
    model = DistributedDataParallel(Model(), process_group=group)
    start = sum(COUNTS[ranks][:rank])
    mine = slice(start, start + COUNTS[ranks][rank])
    *z, _ = model(x[mine])
    with counted(ring, ranks):
        pairwise_contrastive_loss(*z, y[mine], model.module.temperature, group=group).backward()
    assert_same(gradients(model), gradients(single))


def check_second_derivative(group: dist.ProcessGroup, ring: bool, backend: str = "torch") -> None:
    """It is refused, whether or not the loss itself is also differentiated."""
    from cmsbert_fast import pairwise_contrastive_loss
    from cmsbert_fast.ops.contrastive import distributed

    distributed.GATHER_LIMIT_BYTES = 0 if ring else 2**30
    x, y = data(5)
    z = [x.float().requires_grad_() for _ in range(3)]
    tau = torch.tensor(0.2, requires_grad=True)
    if dist.get_world_size(group) > 1:
        loss = pairwise_contrastive_loss(*z, y, tau, group=group, backend=backend)
    else:  # for which the public function takes the other operator
        arguments = (z, y, tau, 0.0, 0.9, 0.1, backend, group.group_name, True)
        loss = torch.ops.cmsbert_fast.contrastive_group(*arguments)[0]
    for gradient in torch.autograd.grad(loss, [*z, tau], create_graph=True):
        for penalised in (gradient.square().sum(), loss + gradient.square().sum()):
            with pytest.raises(RuntimeError, match="only once"):
                penalised.backward(retain_graph=True)


def check_gradcache(group: dist.ProcessGroup) -> None:
    """Micro-batches on every rank: still the gradient of the whole global batch, dropout included."""
    from cmsbert_fast import pairwise_contrastive_loss
    from cmsbert_fast.ops.contrastive import distributed
    from cmsbert_fast.training.gradcache import gradcache_backward

    distributed.GATHER_LIMIT_BYTES = 2**30
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    x, y = data(24)
    share = 24 // ranks
    mine = slice(share * rank, share * (rank + 1))

    def loss(*outputs: Tensor) -> Tensor:
        return pairwise_contrastive_loss(*outputs[:3], y[mine], outputs[3].mean(), group=group)

    def run(cached: bool) -> list[Tensor]:
        model = DistributedDataParallel(Model(0.3), process_group=group)
        torch.manual_seed(11 + rank)
        parts = x[mine].split(share // 3)
        if cached:
            gradcache_backward(model, parts, loss, no_sync=model.no_sync)
        else:
            outputs = [model.module(part) for part in parts]
            whole = [torch.cat(column) for column in zip(*outputs, strict=True)]
            loss(*whole).backward()
            for p in model.parameters():
                dist.all_reduce(p.grad, group=group)
                p.grad /= ranks
        return gradients(model)

    assert_same(run(True), run(False))


def check_passes(group: dist.ProcessGroup, ring: bool) -> None:
    """The ranks divide 15 n^2 d multiply-adds: not one of them computes a similarity that another does."""
    from cmsbert_fast.ops.contrastive import distributed
    from tests.ops.contrastive.test_cost import Products

    distributed.GATHER_LIMIT_BYTES = 0 if ring else 2**30
    rows = COUNTS[dist.get_world_size(group)][dist.get_rank(group)]
    z, y = [torch.randn(rows, 6) for _ in range(3)], torch.randn(rows)
    with Products() as mode:
        distributed._forward(z, y, None, 0.1, 0.9, 0.1, "torch", group.group_name, True)
    total = torch.tensor(mode.multiply_adds)
    dist.all_reduce(total, group=group)
    assert total == 15 * 23 * 23 * 6


def check_memory(two: dist.ProcessGroup, four: dist.ProcessGroup) -> None:
    """In a ring a rank holds its own rows, another's and, from three ranks on, a third one's that arrive meanwhile."""
    from cmsbert_fast.ops.contrastive import distributed
    from cmsbert_fast.ops.contrastive import torch as torch_engine
    from tests.ops.contrastive.test_cost import peak_on_cpu

    with mock.patch.object(torch_engine, "CHUNK_BYTES", 2**12):
        peaks = {}
        for ring in (True, False):
            distributed.GATHER_LIMIT_BYTES = 0 if ring else 2**30
            for group in (two, four):
                peaks[ring, group] = peak_on_cpu(32, 256, torch.float32, group)
    rows = 3 * 32 * 256 * 4  # bytes of one rank
    assert peaks[True, four] - peaks[True, two] < 1.1 * rows
    assert peaks[False, four] - peaks[False, two] > 1.9 * rows  # as it must be: the measure sees what others sent


def work(rank: int, store: str) -> None:
    with joined(rank, store, RANKS):
        torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
        alone = [dist.new_group([r]) for r in range(RANKS)][rank]
        two = [dist.new_group([2 * i, 2 * i + 1]) for i in range(RANKS // 2)][rank // 2]
        scores = data()[1]
        classes = torch.arange(23) % 4
        f64, f32 = torch.float64, torch.float32
        for group in (alone, two, dist.group.WORLD):
            for ring in (False, True):
                for labels in (scores, classes, None):
                    check_loss(group, labels, ring, False, f64)
                check_ddp(group, ring)
                check_second_derivative(group, ring)
            check_gradcache(group)
        for dtype in (f32, torch.bfloat16, torch.float16):
            for ring in (False, True):
                for backend in ("torch", *(["cpu"] if library.why_not() is None else [])):
                    check_loss(dist.group.WORLD, scores, ring, False, dtype, backend)
        for group in (alone, two, dist.group.WORLD):
            check_loss(group, scores, False, True, f64)
        check_loss(dist.group.WORLD, scores, True, True, f64)
        for group in (two, dist.group.WORLD):
            for ring in (False, True):
                check_passes(group, ring)
        check_memory(two, dist.group.WORLD)


def test_one_two_and_four_ranks(tmp_path: Path) -> None:
    run: Callable[..., None] = mp.spawn
    run(work, args=(str(tmp_path / "store"),), nprocs=RANKS)


class WithLoss(nn.Module):
    """A model whose forward pass ends in the loss, all of it compiled."""

    def __init__(self, group: "dist.ProcessGroup | None" = None):
        super().__init__()
        self.model, self.group = Model(), group

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        from cmsbert_fast import pairwise_contrastive_loss

        *z, _ = self.model(x)
        return pairwise_contrastive_loss(*z, y, self.model.temperature, group=self.group)


def work_under_inductor(rank: int, store: str) -> None:
    from cmsbert_fast.ops.contrastive import distributed

    with joined(rank, store, 2):
        x, y = data()
        single = WithLoss()
        single(x, y).backward()
        mine = slice(0, COUNTS[2][0]) if rank == 0 else slice(COUNTS[2][0], None)
        for ring in (False, True):
            distributed.GATHER_LIMIT_BYTES = 0 if ring else 2**30
            model = DistributedDataParallel(WithLoss(dist.group.WORLD))
            torch.compile(model, backend="inductor")(x[mine], y[mine]).backward()
            assert_same(gradients(model), gradients(single))


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a compiler")
def test_inductor_under_ddp(tmp_path: Path) -> None:
    run: Callable[..., None] = mp.spawn
    run(work_under_inductor, args=(str(tmp_path / "store"),), nprocs=2)


def work_in_the_interpreter(rank: int, store: str) -> None:
    with joined(rank, store, 2):
        torch.use_deterministic_algorithms(True)
        for ring in (False, True):
            check_loss(dist.group.WORLD, data()[1], ring, False, torch.float32, "triton")
            check_second_derivative(dist.group.WORLD, ring, "triton")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
def test_triton_on_two_ranks(tmp_path: Path) -> None:
    run: Callable[..., None] = mp.spawn
    run(work_in_the_interpreter, args=(str(tmp_path / "store"),), nprocs=2)


def test_group_of_no_rows(tmp_path: Path) -> None:
    """All ranks empty: the loss is 0 and nothing fails."""
    from cmsbert_fast import pairwise_contrastive_loss

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        z = [torch.zeros(0, 4, requires_grad=True) for _ in range(3)]
        loss = torch.ops.cmsbert_fast.contrastive_group(
            z, torch.zeros(0), None, 0.1, 0.9, 0.1, "torch", dist.group.WORLD.group_name, True
        )[0]
        loss.backward()
        assert loss == 0
        assert pairwise_contrastive_loss(*z, torch.zeros(0), group=dist.group.WORLD) == 0
    finally:
        dist.destroy_process_group()


def test_opcheck(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        z = [torch.randn(5, 4, requires_grad=True) for _ in range(3)]
        tau = torch.tensor(0.1, requires_grad=True)
        arguments = (z, torch.randn(5), tau, 0.0, 0.9, 0.1, "torch", dist.group.WORLD.group_name, True)
        torch.library.opcheck(torch.ops.cmsbert_fast.contrastive_group.default, arguments)
    finally:
        dist.destroy_process_group()
