"""cms_attention as a registered operator: opcheck, gradcheck, torch.compile, checkpointing, autocast, DDP, CUDA graphs.

The Triton operator runs on a GPU or in Triton's interpreter; without a GPU one test runs this file again with
``TRITON_INTERPRET=1``, and what else has a case for the interpreter.
"""

import datetime
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from cmsbert_fast import ModalityShift, cms_attention
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.attention import triton as attention_triton
from cmsbert_fast.ops.dispatch import choose_backend, why_not
from cmsbert_fast.packing import cumulative
from tests.interpreter import INTERPRETED, round_products_once
from tests.ops.launches import launched_on_gpu

DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_kernels = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1")
# What torch.compile does with the graph it captured: generates kernels on a GPU, runs it as it is elsewhere.
COMPILER = "inductor" if DEVICE == "cuda" else "aot_eager"
AT_LEAST = 40  # tests that pass in the interpreter


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the kernels run in this process already")
def test_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    others = [
        "tests/ops/attention/test_attention.py::test_what_lies_in_rows_of_no_sequence_reaches_no_gradient",
        "tests/ops/attention/test_attention.py::test_a_batch_without_tokens_has_gradients_of_zero",
        "tests/models/cmsbert/test_modeling.py::test_the_kernels_give_the_references_loss_and_gradients",
        "tests/models/cmsbert/test_padding_free.py::test_nothing_is_computed_on_padding[triton]",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, *others]
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None, result.stdout
    assert int(passed[1]) >= AT_LEAST, result.stdout  # what skips everything is green too


class ShapeClass(NamedTuple):
    """How small calls get into the shape class of large ones, and what then runs."""

    limits: tuple[int, int]  # SHORT_TOKENS, MEDIUM_TOKENS
    dtype: torch.dtype
    tolerance: float  # between two ways of launching the same kernels
    kernels: frozenset[str]  # forward and backward


_KEPT = frozenset({"attention_backward_query", "attention_backward_key", "gate_backward_token", "gate_backward_frame"})
# float32 never runs the short kernels.
SHAPE_CLASSES = {
    "short": ShapeClass(
        (64, 128), torch.float16, 1e-3, frozenset({"short_forward", "short_backward", "short_gate_backward"})
    ),
    "medium": ShapeClass((0, 128), torch.float32, 1e-5, _KEPT | {"medium_forward"}),
    "long": ShapeClass((0, 0), torch.float32, 1e-5, _KEPT | {"shift_forward", "attention_forward"}),
}


@pytest.fixture(params=SHAPE_CLASSES)
def shape_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShapeClass]:
    """Forces calls into a shape class; afterwards exactly its kernels have run, or none where another backend ran."""
    chosen = SHAPE_CLASSES[request.param]
    launched: set[str] = set()
    if capability.HAS_TRITON:
        kernels, run = attention_triton.kernels, attention_triton.kernels.launch.run

        def record(kernel: Any, *arguments: Any) -> None:
            launched.add(kernel.fn.__name__.removesuffix("_kernel"))
            run(kernel, *arguments)

        monkeypatch.setattr(kernels.call, "SHORT_TOKENS", chosen.limits[0])
        monkeypatch.setattr(kernels.call, "MEDIUM_TOKENS", chosen.limits[1])
        monkeypatch.setattr(kernels.launch, "run", record)
    yield chosen
    torch.compiler.reset()  # what was traced under the forced limits
    backend = request.node.callspec.params.get("backend", "triton")
    assert launched == (chosen.kernels if backend == "triton" else set())


# PyTorch knows no shape classes: two dtypes are enough.
every_way = pytest.mark.parametrize(
    ("backend", "shape_class"),
    [("torch", "short"), ("torch", "long"), *(pytest.param("triton", x, marks=runs_kernels) for x in SHAPE_CLASSES)],
    indirect=["shape_class"],
)


def inputs(
    dtype: torch.dtype = torch.float16, packed: bool = True, seed: int = 0
) -> tuple[list[Tensor], dict[str, Any]]:
    """Leaves (q, k, v and eight tensors of two modalities) and the remaining arguments of :func:`run`."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype).requires_grad_()

    lead, visual, acoustic = ((9,), (7,), (4,)) if packed else ((2, 5), (2, 4), (2, 3))
    leaves = [random(*lead, 2, 4) for _ in range(3)]
    for frames, size in ((visual, 5), (acoustic, 3)):
        leaves += [random(*lead), random(*frames), random(*frames, size), random(8, size)]
    if not packed:
        return leaves, {"attention_mask": torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]], device=DEVICE).bool()}
    cu = [torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in ([0, 3, 8], [0, 5, 6], [0, 0, 4])]
    return leaves, {"cu_seqlens": cu[0], "max_seqlen": 5, "cu_visual": cu[1], "cu_acoustic": cu[2]}


def run(leaves: list[Tensor], backend: str, cu_visual: Any = None, cu_acoustic: Any = None, **options: Any) -> Tensor:
    packed = cu_visual is not None
    visual = ModalityShift(*leaves[3:7], cu_visual, 5 if packed else None)
    acoustic = ModalityShift(*leaves[7:], cu_acoustic, 4 if packed else None)
    return cms_attention(*leaves[:3], visual, acoustic, backend=backend, **options)


def value_and_gradients(function: Any, leaves: list[Tensor]) -> list[Tensor]:
    z = function(leaves)
    weight = torch.linspace(-1, 1, z.numel(), device=z.device, dtype=z.dtype).view(z.shape)
    for x in leaves:
        x.grad = None
    (z * weight).sum().backward()
    return [z.detach(), *(x.grad for x in leaves)]


def operator_arguments(dtype: torch.dtype, packed: bool, dropout_p: float) -> tuple[Any, ...]:
    leaves, options = inputs(dtype, packed)
    tensors = [x.detach() for x in leaves]
    masks = (None, None)
    cu = [options.get(name) for name in ("cu_visual", "cu_acoustic", "cu_seqlens")]
    visual, acoustic = ((*tensors[3 + 4 * i : 7 + 4 * i], cu[i], masks[i]) for i in range(2))
    seed = torch.tensor([7], device=DEVICE) if dropout_p else None
    lengths = (5, 5, 4) if packed else (5, 4, 3)
    mask = options.get("attention_mask")
    return (*tensors[:3], *visual, *acoustic, cu[2], mask, seed, *lengths, "tanh", 0.5, dropout_p)


@runs_kernels
@pytest.mark.parametrize(("packed", "dropout_p"), [(True, 0.0), (False, 0.5)])
def test_operators_pass_opcheck(shape_class: ShapeClass, packed: bool, dropout_p: float) -> None:
    """Without gradients: the operators have none by themselves, and those of cms_attention are tested below."""
    arguments = operator_arguments(shape_class.dtype, packed, dropout_p)
    operators = torch.ops.cmsbert_fast
    torch.library.opcheck(operators.cms_attention_forward.default, arguments)
    out, *saved = operators.cms_attention_forward(*arguments)
    backward = (torch.ones_like(out), out, *saved, True, False, *arguments)
    torch.library.opcheck(operators.cms_attention_backward.default, backward)


@runs_kernels
def test_the_operator_by_itself_never_loses_a_gradient(shape_class: ShapeClass) -> None:
    arguments = operator_arguments(shape_class.dtype, True, 0.0)
    operator = torch.ops.cmsbert_fast.cms_attention_forward
    expected = operator(*arguments)[0]
    leaves, options = inputs(shape_class.dtype)
    value_and_gradients(lambda x: run(x, "triton", **options), leaves)  # the way to get gradients
    for i in (0, 1, 2, *range(3, 7), *range(9, 13)):  # q, k, v, and what is floating of each modality
        asking = list(arguments)
        asking[i] = arguments[i].clone().requires_grad_()
        with pytest.raises(RuntimeError, match="not differentiable by itself"):
            operator(*asking)
        with torch.no_grad():
            assert torch.equal(operator(*asking)[0], expected)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("packed", [True, False])
def test_gradcheck_in_float64(backend: str, packed: bool) -> None:
    leaves, options = inputs(torch.float64, packed)
    assert torch.autograd.gradcheck(
        lambda *x: run(list(x), backend, activation="tanh", **options), leaves, fast_mode=True
    )


@runs_kernels
def test_gradients_of_triton_are_those_of_the_path_that_passes_gradcheck(shape_class: ShapeClass) -> None:
    for packed in (True, False):
        leaves, options = inputs(shape_class.dtype, packed)
        wide = [x.detach().double().requires_grad_() for x in leaves]
        expected = value_and_gradients(lambda x: run(x, "reference", **options), wide)  # noqa: B023
        actual = value_and_gradients(lambda x: run(x, "triton", **options), leaves)  # noqa: B023
        for a, e in zip(actual, expected, strict=True):
            allowed = 64 * torch.finfo(shape_class.dtype).eps * max(1.0, e.abs().max().item())
            torch.testing.assert_close(a.double(), e, rtol=0, atol=allowed)


@runs_kernels
def test_only_what_is_asked_for_gets_a_gradient() -> None:
    leaves, options = inputs()
    for index in range(len(leaves)):
        chosen = [x.detach().requires_grad_(i == index) for i, x in enumerate(leaves)]
        z = run(chosen, "triton", **options)
        z.sum().backward()
        assert [i for i, x in enumerate(chosen) if x.grad is not None] == [index]
        assert chosen[index].grad.shape == chosen[index].shape


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=runs_kernels)])
def test_a_second_derivative_is_refused(backend: str) -> None:
    """A gradient penalty must not lose its part in silence, also where the upstream gradient needs no gradient."""
    leaves, options = inputs(torch.float32)
    if backend == "cpu":
        leaves = [x.detach().cpu().requires_grad_() for x in leaves]
        options = {name: x.cpu() if isinstance(x, Tensor) else x for name, x in options.items()}
        if reason := why_not("attention", "cpu", leaves[0]):
            pytest.skip(reason)
    loss = run(leaves, backend, **options).sum()
    once = torch.autograd.grad(loss, leaves, retain_graph=True)
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    for a, b, x in zip(once, gradients, leaves, strict=True):
        assert torch.equal(a, b)
        assert b.shape == x.shape
    for gradient in gradients:
        with pytest.raises(RuntimeError, match=r"only once; .* cms_attention\(\.\.\., backend=\"reference\"\)"):
            (loss + gradient.square().sum()).backward(retain_graph=True)


def test_the_error_names_the_environment_that_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.empty(1, 2, 64, dtype=torch.float64)
    with pytest.raises(ValueError, match=r'^backend="triton" cannot run here: .*; use backend="auto" or "torch"\.'):
        choose_backend("attention", query, "triton")
    monkeypatch.setenv("CMSBERT_BACKEND", "triton")
    for operator in ("attention", "contrastive"):
        with pytest.raises(ValueError, match=r"^CMSBERT_BACKEND=triton in the environment.*; unset CMSBERT_BACKEND"):
            choose_backend(operator, query)


@every_way
@pytest.mark.parametrize("packed", [True, False])
def test_compiles_without_a_graph_break(backend: str, packed: bool, shape_class: ShapeClass) -> None:
    leaves, options = inputs(shape_class.dtype, packed)
    torch.compiler.reset()

    def function(x: list[Tensor]) -> Tensor:
        return run(x, backend, **options).sin()

    expected = value_and_gradients(function, leaves)
    actual = value_and_gradients(torch.compile(function, fullgraph=True, backend=COMPILER), leaves)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=shape_class.tolerance, atol=shape_class.tolerance)


@runs_kernels
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_dropout_is_that_of_eager(checkpointed: bool, shape_class: ShapeClass) -> None:
    leaves, options = inputs(shape_class.dtype)
    torch.compiler.reset()

    def attend(*x: Tensor) -> Tensor:
        return run(list(x), "triton", dropout_p=0.5, **options).sin()

    def function(x: list[Tensor]) -> Tensor:
        return checkpoint(attend, *x, use_reentrant=False) if checkpointed else attend(*x)

    results = []
    with torch._inductor.config.patch(fallback_random=True):  # from the generator eager draws from
        for form in (function, torch.compile(function, fullgraph=True, backend=COMPILER)):
            torch.manual_seed(0)
            results.append(value_and_gradients(form, leaves))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, rtol=shape_class.tolerance, atol=shape_class.tolerance)


@runs_kernels
def test_compiles_with_dynamic_shapes(shape_class: ShapeClass) -> None:
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, options: run(x, "triton", **options), fullgraph=True, backend=COMPILER, dynamic=True
    )
    for seed in range(2):
        leaves, options = inputs(shape_class.dtype, seed=seed)
        if seed:
            leaves = [x if x.shape[0] != 9 else torch.cat([x, x[:2]]).detach().requires_grad_() for x in leaves]
        expected = value_and_gradients(lambda x: run(x, "triton", **options), leaves)  # noqa: B023
        actual = value_and_gradients(lambda x: compiled(x, options), leaves)  # noqa: B023
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=shape_class.tolerance, atol=shape_class.tolerance)


@every_way
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_recomputes_the_same_dropout(backend: str, reentrant: bool, shape_class: ShapeClass) -> None:
    leaves, options = inputs(shape_class.dtype)

    def function(*x: Tensor) -> Tensor:
        return run(list(x), backend, dropout_p=0.5, **options)

    torch.manual_seed(0)
    expected = value_and_gradients(lambda x: function(*x), leaves)
    torch.manual_seed(0)
    actual = value_and_gradients(lambda x: checkpoint(function, *x, use_reentrant=reentrant), leaves)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)
    torch.manual_seed(1)
    assert not torch.equal(function(*leaves), expected[0])


@runs_kernels
def test_dropout_seed_is_drawn_from_the_device_generator() -> None:
    leaves, options = inputs()
    torch.manual_seed(0)
    first, second = (run(leaves, "triton", dropout_p=0.5, **options) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(first, run(leaves, "triton", dropout_p=0.5, **options))
    assert not torch.equal(first, second)
    before = torch.get_rng_state() if DEVICE == "cpu" else torch.cuda.get_rng_state()
    run(leaves, "triton", **options)
    after = torch.get_rng_state() if DEVICE == "cpu" else torch.cuda.get_rng_state()
    assert torch.equal(before, after)  # without dropout nothing is drawn


@runs_kernels
def test_autocast() -> None:
    leaves, options = inputs(torch.float32)
    with torch.autocast(DEVICE, torch.float16):
        z = run(leaves, "triton", **options)
    assert z.dtype == torch.float16
    gradients = torch.autograd.grad(z.float().sum(), leaves)
    assert {g.dtype for g in gradients} == {torch.float32}


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
    timeout = datetime.timedelta(seconds=60)
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
    deadline = time.monotonic() + 240
    try:
        while not ranks.join(timeout=max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in ranks.processes:
            process.kill()


@pytest.mark.cuda
@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no graphs")
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_cuda_graph_replay(shape_class: ShapeClass, dropout_p: float) -> None:
    """Replay reads new inputs and draws new dropout, in both passes the same: that of its seed without a graph."""
    leaves, options = inputs(shape_class.dtype)

    def step() -> list[Tensor]:
        return value_and_gradients(lambda x: run(x, "triton", dropout_p=dropout_p, **options), leaves)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    first = captured[0].clone()
    graph.replay()
    assert torch.equal(first, captured[0]) == (dropout_p == 0)
    with torch.no_grad():
        leaves[0].add_(1)
    torch.manual_seed(0)
    graph.replay()
    replayed = [x.clone() for x in captured]
    torch.manual_seed(0)
    for a, e in zip(replayed, step(), strict=True):
        assert torch.equal(a, e)


# What backward launches beside _KEPT's kernels in PyTorch: <da, W> of each modality, by names of cuBLAS.
PRODUCTS = ("gemm", "gemv", "cutlass", "cublas", "splitk", "memset")


@pytest.mark.cuda
@pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_launches_on_gpu(shape_class: ShapeClass, dropout_p: float) -> None:
    """What the device really runs, without the host ever waiting; dropout adds one launch, the draw of its seed."""
    leaves, options = inputs(shape_class.dtype)
    wanted = [x for i, x in enumerate(leaves) if i not in (6, 10)]  # the weights' gradients are products of their own
    d_out = torch.ones_like(leaves[0])

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(leaves, "triton", dropout_p=dropout_p, **options), wanted, d_out)

    names = [name.removesuffix("_kernel") for name in launched_on_gpu(step)]
    gates = ["gate_backward_token", "gate_backward_frame"] * 2
    expected = {
        "short": ["short_forward", "short_backward", "short_gate_backward"],
        "medium": ["medium_forward", "attention_backward_query", "attention_backward_key", *gates],
        "long": ["shift_forward", "attention_forward", "attention_backward_query", "attention_backward_key", *gates],
    }[next(name for name, chosen in SHAPE_CLASSES.items() if chosen is shape_class)]
    assert [name for name in names if name in shape_class.kernels] == expected
    others = [name for name in names if name not in shape_class.kernels]
    if "short_forward" not in expected:
        others = [name for name in others if not any(product in name.lower() for product in PRODUCTS)]
    assert len(others) == (dropout_p > 0), others


@pytest.mark.cuda
def test_auto_picks_triton_on_a_gpu() -> None:
    assert choose_backend("attention", torch.empty(1, 2, 64, device="cuda", dtype=torch.bfloat16)) == "triton"
    assert choose_backend("attention", torch.empty(1, 2, 64, device="cuda", dtype=torch.float64)) == "torch"


def test_auto_never_interprets() -> None:
    assert choose_backend("attention", torch.empty(1, 2, 64)) != "triton"
