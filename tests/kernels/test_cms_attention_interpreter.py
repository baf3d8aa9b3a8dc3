"""The CMS attention kernels against the float64 reference: in Triton's interpreter, or on a GPU where there is one.

Without a GPU the kernels run interpreted, which needs ``TRITON_INTERPRET=1`` before Triton is imported: one test here
runs this file again in such a process. Memory that nobody wrote is NaN throughout.

Error rule: at most twice (z) or three times (gradients) the error of the same computation in plain PyTorch in the same
dtype, plus a few units in the last place.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmsbert_fast import ModalityShift, cms_attention, reference
from cmsbert_fast.ops import dispatch
from cmsbert_fast.ops.attention import triton as attention_triton
from cmsbert_fast.ops.capability import HAS_TRITON, why_not_gpu
from cmsbert_fast.packing import cumulative

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_kernels = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1")
bfloat16 = pytest.param(torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="the interpreter is wrong for it"))
DTYPES = [torch.float32, torch.float16, bfloat16]
AT_LEAST = 100  # tests that pass in the interpreter


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the kernels run in this process already")
def test_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None, result.stdout
    assert int(passed[1]) >= AT_LEAST, result.stdout  # what skips everything is green too


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def shape_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces small calls into a shape class of larger ones, and float32 into the short one."""
    kernels = attention_triton.kernels
    limits = {"short": (64, 128), "medium": (0, 128), "long": (0, 0)}[request.param]
    monkeypatch.setattr(kernels.call, "SHORT_TOKENS", limits[0])
    monkeypatch.setattr(kernels.call, "MEDIUM_TOKENS", limits[1])
    monkeypatch.setattr(kernels.call, "SHORT_ITEM_SIZE", 4)
    tiles = kernels.launch.tiles
    configuration = tiles.configuration

    def of_half_precision(family: str, kernel: str, device: str, item_size: int, **sizes: int) -> dict[str, int]:
        return configuration(family, kernel, device, 2 if kernel.startswith("short") else item_size, **sizes)

    monkeypatch.setattr(tiles, "configuration", of_half_precision)
    return request.param


all_classes = pytest.mark.parametrize("shape_class", ["short", "medium", "long"], indirect=True)


@dataclass
class Case:
    """A padded call in float64 whose packed form and lower precisions are derived from it."""

    query: Tensor
    key: Tensor
    value: Tensor
    visual: list[Tensor] | None  # token gate, frame gate, frames, weight, mask
    acoustic: list[Tensor] | None
    mask: Tensor
    activation: str
    d_out: Tensor

    @property
    def modalities(self) -> list[list[Tensor]]:
        return [m for m in (self.visual, self.acoustic) if m is not None]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.query, self.key, self.value, *(x for m in self.modalities for x in m[:4])]


def prefix_mask(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def make_case(
    tokens: list[int],
    visual: list[int] | None,
    acoustic: list[int] | None,
    heads: int = 2,
    head_size: int = 32,
    sizes: tuple[int, int] = (47, 20),
    activation: str = "relu",
    dtype: torch.dtype = torch.float32,
    scattered: bool = False,
) -> Case:
    """Random input whose values are exact in ``dtype``. ``scattered``: masks with holes instead of lengths."""
    generator = torch.Generator().manual_seed(len(tokens) + sum(tokens))

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        return x.to(dtype).double()

    def mask_of(lengths: list[int]) -> Tensor:
        mask = prefix_mask(lengths)
        return mask & (torch.rand(mask.shape, generator=generator) < 0.7) if scattered else mask

    def modality(lengths: list[int] | None, size: int) -> list[Tensor] | None:
        if lengths is None:
            return None
        batch, frames = len(lengths), max(lengths)
        weight = random(heads * head_size, size, scale=size**-0.5)
        gates = random(batch, max(tokens)), random(batch, frames)
        return [*gates, random(batch, frames, size), weight, mask_of(lengths)]

    shape = (len(tokens), max(tokens), heads, head_size)
    qkv = [random(*shape) for _ in range(3)]
    shifts = modality(visual, sizes[0]), modality(acoustic, sizes[1])
    return Case(*qkv, *shifts, mask_of(tokens), activation, random(*shape))


def literal(case: Case) -> list[Tensor]:
    """z and every gradient in float64."""
    leaves = [x.clone().requires_grad_() for x in case.leaves]
    modalities = list(case.modalities)
    rest = iter(leaves[3:])
    shifted = [[next(rest) for _ in range(4)] + [m[4]] for m in modalities]
    pair = [None if m is None else shifted.pop(0) for m in (case.visual, case.acoustic)]
    z = reference.cms_attention(*leaves[:3], *pair, case.mask, case.activation)
    return [z.detach(), *torch.autograd.grad(z, leaves, case.d_out, allow_unused=False)]


def public(case: Case, dtype: torch.dtype, backend: str, packed: bool, tail: int = 0, **options: Any) -> list[Tensor]:
    """z and every gradient of the public operator in ``dtype``, in padded form, float64 on the CPU.

    Packed input gets ``tail`` rows that belong to no sequence. What is invalid is NaN on entry to the kernels.
    """
    poison = float("nan") if backend == "triton" else 0.0

    def rows(x: Tensor, mask: Tensor) -> Tensor:
        x = x.masked_fill(~mask.view(mask.shape + (1,) * (x.dim() - 2)), poison)
        if packed:
            x = torch.cat([x[mask], x.new_full((tail, *x.shape[2:]), poison)])
        return x.to(DEVICE, dtype).requires_grad_()

    def back(x: Tensor, mask: Tensor) -> Tensor:
        x = x.detach().double().cpu()
        if not packed:
            assert (x[~mask] == 0).all()
            return x
        total = int(mask.sum())
        assert x.shape[0] == total + tail
        assert (x[total:] == 0).all()
        out = x.new_zeros(*mask.shape, *x.shape[1:])
        out[mask] = x[:total]
        return out

    def cu(mask: Tensor) -> dict[str, Any]:
        return {"cu_seqlens": cumulative(mask.sum(1)).to(DEVICE), "max_length": mask.shape[1]}

    qkv = [rows(x, case.mask) for x in (case.query, case.key, case.value)]
    shifts, leaves, masks = [], [*qkv], [case.mask] * 3
    for m in (case.visual, case.acoustic):
        if m is None:
            shifts.append(None)
            continue
        tensors = [rows(m[0], case.mask), rows(m[1], m[4]), rows(m[2], m[4]), m[3].to(DEVICE, dtype).requires_grad_()]
        where = cu(m[4]) if packed else {"mask": m[4].to(DEVICE)}
        shifts.append(ModalityShift(*tensors, **where))
        leaves += tensors
        masks += [case.mask, m[4], m[4], None]
    if packed:
        options |= {"cu_seqlens": cu(case.mask)["cu_seqlens"], "max_seqlen": case.mask.shape[1]}
    else:
        options |= {"attention_mask": case.mask.to(DEVICE)}
    z = cms_attention(*qkv, *shifts, activation=case.activation, backend=backend, **options)
    d_out = rows(case.d_out, case.mask).detach()
    gradients = torch.autograd.grad(z, leaves, d_out)
    pairs = zip([z, *gradients], [case.mask, *masks], strict=True)
    return [x.detach().double().cpu() if mask is None else back(x, mask) for x, mask in pairs]


def check(
    case: Case, dtype: torch.dtype, packed: bool = True, tail: int = 0, expected: list[Tensor] | None = None
) -> None:
    names = ["z", "dq", "dk", "dv"]
    for m in (n for n, x in (("v", case.visual), ("a", case.acoustic)) if x is not None):
        names += [f"{name}_{m}" for name in ("token_gate", "frame_gate", "frames", "weight")]
    expected = literal(case) if expected is None else expected
    rival = public(case, dtype, "torch", packed, tail)
    actual = public(case, dtype, "triton", packed, tail)
    for i, (name, e, r, a) in enumerate(zip(names, expected, rival, actual, strict=True)):
        if e.numel() == 0:
            continue
        # float32 sums in float32, the narrower dtypes in a wider one
        floor = (16 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps * max(1.0, e.abs().max().item())
        allowed = (2 if i == 0 else 3) * (r - e).abs().max().item() + floor
        error = (a - e).abs().max().item()
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


# Lengths 1, 7, 50, 63, 64, 65, 129; sequences without frames, without tokens, a modality absent.
GRID: dict[str, dict[str, Any]] = {
    "short": {"tokens": [1, 7, 50, 0, 64], "visual": [5, 0, 33, 2, 65], "acoustic": [0, 7, 1, 3, 63], "heads": 3},
    "short, sigmoid, real sizes": {
        "tokens": [50, 3], "visual": [50, 1], "acoustic": [50, 7], "sizes": (47, 74), "activation": "sigmoid",
    },
    "short, wide head": {"tokens": [7], "visual": [9], "acoustic": [4], "head_size": 96, "sizes": (35, 5)},
    "short, head 128, tanh": {"tokens": [5], "visual": [9], "acoustic": None, "head_size": 128, "activation": "tanh"},
    "short, head 24": {"tokens": [17], "visual": None, "acoustic": [9], "head_size": 24},
    "short, frameless batch": {"tokens": [5, 2], "visual": [0, 0], "acoustic": [3, 0]},
    "short, BERT's heads": {
        "tokens": [50, 1, 64], "visual": [50, 0, 7], "acoustic": [9, 3, 0], "heads": 3, "head_size": 64,
        "sizes": (47, 74),
    },
    "medium": {"tokens": [65, 1, 63], "visual": [7, 5, 0], "acoustic": [1, 0, 33], "heads": 1},
    "medium, tanh, three heads": {
        "tokens": [66], "visual": [9], "acoustic": None, "heads": 3, "head_size": 16, "activation": "tanh",
    },
    "medium, BERT's heads": {
        "tokens": [65, 7], "visual": [50, 0], "acoustic": [9, 3], "heads": 3, "head_size": 64, "sizes": (47, 74),
    },
    "medium, head 128": {"tokens": [65, 1], "visual": [7, 0], "acoustic": None, "heads": 1, "head_size": 128},
    "long": {"tokens": [129, 7], "visual": [5, 64], "acoustic": [0, 1], "heads": 1, "activation": "sigmoid"},
    "long by frame size": {"tokens": [7, 20], "visual": [33, 5], "acoustic": [9, 50], "sizes": (709, 1), "heads": 1},
    "long by frames": {"tokens": [7], "visual": [513], "acoustic": None, "sizes": (20, 20), "heads": 1},
    "long, BERT's heads": {
        "tokens": [65, 129], "visual": [65, 0], "acoustic": [9, 3], "heads": 3, "head_size": 64, "sizes": (47, 74),
    },
    "long, head 128": {"tokens": [129, 1], "visual": [7, 5], "acoustic": None, "heads": 1, "head_size": 128},
    "plain attention": {"tokens": [7, 33], "visual": None, "acoustic": None},
}  # fmt: skip


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GRID)
def test_packed_sequences_match_the_reference(name: str, dtype: torch.dtype) -> None:
    check(make_case(**GRID[name], dtype=dtype), dtype, tail=3)


@runs_kernels
@all_classes
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("absent", [None, "visual", "acoustic", "both"])
def test_masks_with_holes(shape_class: str, absent: str | None, dtype: torch.dtype) -> None:
    frames = {"visual": [9, 20, 0], "acoustic": [5, 1, 17]}
    frames = {name: None if absent in (name, "both") else lengths for name, lengths in frames.items()}
    case = make_case([20, 1, 7], **frames, head_size=16, sizes=(20, 5), scattered=True, dtype=dtype)
    check(case, dtype, packed=False)


@runs_kernels
@all_classes
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_with_holes_in_every_tile(shape_class: str, dtype: torch.dtype) -> None:
    """Tiles are at most 64 wide; in the second sequence nothing of the first one is valid."""
    tokens = {"short": [33, 64, 50], "medium": [65, 128, 64], "long": [65, 129, 64]}[shape_class]
    case = make_case(tokens, [65, 130, 0], [130, 66, 3], heads=1, head_size=16, scattered=True, dtype=dtype)
    case.mask[1, : 32 if shape_class == "short" else 64] = False
    for m in case.modalities:
        m[4][1, :64] = False
        m[4][1, 65] = True
    case.mask[1, tokens[1] - 1] = True
    check(case, dtype, packed=False)


@runs_kernels
@all_classes
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_shape_classes_agree_in_float32(shape_class: str, activation: str) -> None:
    check(
        make_case([9, 17, 0], [5, 0, 7], [33, 2, 1], heads=3, head_size=16, activation=activation),
        torch.float32,
        tail=40,
    )


@runs_kernels
@all_classes
def test_long_tail_of_rows_of_no_sequence(shape_class: str) -> None:
    """More rows without a sequence than with one, as in a batch rounded up for a CUDA graph."""
    check(make_case([3, 1], [2, 0], [1, 4], head_size=16), torch.float32, tail=200)


@runs_kernels
@pytest.mark.parametrize("size", [0, 5, 129], ids=["plain", "one launch", "two launches"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_of_no_sequence_without_any_token(size: int, dtype: torch.dtype) -> None:
    """A static batch that holds no sequence at all: every row is left over, yet written, forward and backward."""
    cu, cu_frames = (torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in ([0, 0, 0], [0, 2, 3]))
    rows, frames = 70, 4

    def poison(*shape: int) -> Tensor:
        return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE).requires_grad_()

    leaves = [poison(rows, 2, 16) for _ in range(3)]
    visual = None
    if size:
        weight = torch.ones(32, size, dtype=dtype, device=DEVICE).requires_grad_()
        leaves += [poison(rows), poison(frames), poison(frames, size), weight]
        visual = ModalityShift(*leaves[3:], cu_frames, 2)
    z = cms_attention(*leaves[:3], visual, cu_seqlens=cu, max_seqlen=0, backend="triton")
    for x in (z, *torch.autograd.grad(z, leaves, torch.full_like(z, float("nan")))):
        assert torch.equal(x, torch.zeros_like(x))


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_no_atomics() -> None:
    """Nothing is added in an order that the machine chooses."""
    sources = list(Path(attention_triton.kernels.__file__).parent.glob("*.py"))
    assert any("_kernel" in path.read_text() for path in sources)
    for path in sources:
        assert "atomic_" not in path.read_text(), path


@pytest.mark.cuda
@all_classes
@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs one program after the other")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_same_bits_twice(shape_class: str, dtype: torch.dtype) -> None:
    """On every multiprocessor at once."""
    if (shape_class, dtype) == ("short", torch.float32):
        pytest.skip("full tiles of float32 are never short")
    n = {"short": 64, "medium": 128, "long": 300}[shape_class]
    tokens = [n - i for i in range(32)]
    case = make_case(tokens, [64] * 32, [50] * 32, heads=12, head_size=64, sizes=(47, 74))
    first, second = (public(case, dtype, "triton", True, 3) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@runs_kernels
@pytest.mark.skipif(DEVICE == "cuda", reason="the split is chosen on NVIDIA GPUs by itself")
def test_float32_products_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On NVIDIA GPUs true float32 products are summed in parts of 16; the interpreter takes them whole otherwise."""
    launch = attention_triton.kernels.launch
    precision = []

    class Splitting(launch.Launcher):
        def __init__(self, call: Any):
            super().__init__(call)
            precision.append(self.precision)
            self.arguments["PRECISION"] = "split"

    monkeypatch.setattr(launch, "Launcher", Splitting)
    check(make_case([20, 7], [33, 20], [35, 11], head_size=64), torch.float32)
    assert precision == ["ieee", "ieee"]


# ------------------------------------------------------------------ launches, copies, memory


class Spy:
    """Records launches: the kernels' names and arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        launch = attention_triton.kernels.launch
        self.names: list[str] = []
        self.arguments: list[dict[str, Any]] = []
        run = launch.run

        def record(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], config: dict[str, int]) -> None:
            self.names.append(kernel.fn.__name__)
            self.arguments.append(arguments)
            run(kernel, grid, arguments, config)

        monkeypatch.setattr(launch, "run", record)


@runs_kernels
@pytest.mark.parametrize(
    ("tokens", "frames", "size", "forward"),
    [
        (64, 512, 128, ["short_forward_kernel"]),
        (128, 20, 20, ["medium_forward_kernel"]),
        (129, 5, 20, ["shift_forward_kernel", "attention_forward_kernel"]),
        (5, 5, 129, ["shift_forward_kernel", "attention_forward_kernel"]),
        (5, 513, 16, ["shift_forward_kernel", "attention_forward_kernel"]),
    ],
)
def test_launches_of_forward(
    tokens: int, frames: int, size: int, forward: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    case = make_case([tokens], [frames], None, heads=1, head_size=16, sizes=(size, 1))
    visual = ModalityShift(*(x.half().to(DEVICE) for x in case.visual[:4]))
    cms_attention(*(x.half().to(DEVICE) for x in (case.query, case.key, case.value)), visual, backend="triton")
    assert spy.names == forward


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize(("tokens", "frames", "size"), [(64, 512, 128), (128, 512, 128), (4096, 16384, 768)])
def test_memory_is_linear_in_the_sequence(tokens: int, frames: int, size: int) -> None:
    """What forward allocates is a few times the queries, nothing of size N x N or N x N_v."""
    kernels = attention_triton.kernels

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float16, device="meta")

    m = kernels.Modality(
        empty(1, tokens), empty(1, frames), empty(1, frames, size), empty(768, size), None, None, frames
    )
    qkv = [empty(1, tokens, 12, 64) for _ in range(3)]
    out, saved = kernels.empty_outputs(kernels.Call(*qkv, m, m, None, None, tokens, "relu", 0.1, 0.0, None))
    allocated = sum(x.numel() * x.element_size() for x in (out, *saved))
    assert allocated <= 5 * qkv[0].numel() * 2
    backward = kernels.empty_gradients(
        kernels.Call(*qkv, m, m, None, None, tokens, "relu", 0.1, 0.0, None), (True, True)
    )
    assert backward.shift.numel() == qkv[0].numel()


class Largest(TorchDispatchMode):
    """The most bytes behind a result of PyTorch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result


# No size is a multiple of a tile. What the reference's N x N_v x D tensor would be too large for waits for a GPU.
BEYOND_THE_PAPER: dict[str, dict[str, Any]] = {
    "4,096 tokens": {
        "tokens": [4099], "visual": [130], "acoustic": [7], "heads": 1, "head_size": 16, "sizes": (20, 5),
    },
    "16,384 frames": {
        "tokens": [3, 7], "visual": [5, 16387], "acoustic": [0, 70], "head_size": 16, "sizes": (20, 5),
    },
    "frame size 768": {
        "tokens": [65, 7], "visual": [33, 5], "acoustic": [1, 70], "head_size": 16, "sizes": (768, 768),
    },
    "all of them": {
        "tokens": [4099], "visual": [16387], "acoustic": [70], "head_size": 64, "sizes": (768, 74),
    },
}  # fmt: skip


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.cuda if x == "all of them" else ()) for x in BEYOND_THE_PAPER]
)
def test_beyond_the_papers_sizes(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers; at most two launches forward; and no tensor of N x N or N x N_v, forward and backward."""
    kernels = attention_triton.kernels
    case = make_case(**BEYOND_THE_PAPER[name], dtype=dtype)
    tail = 3
    if DEVICE == "cpu":  # the interpreter's time goes by tiles: the committed ones would take minutes
        tiles = kernels.launch.tiles
        configuration = tiles.configuration
        tile = min(512, kernels.launch.tile_edge(case.mask.shape[1]))
        wide = {"BLOCK_M": tile, "BLOCK_N": tile, "BLOCK_F": 512, "BLOCK_X": 256}

        def wide_tiles(*key: Any, **sizes: int) -> dict[str, int]:
            committed = configuration(*key, **sizes)
            return committed | {x: wide[x] for x in wide if x in committed}

        monkeypatch.setattr(tiles, "configuration", wide_tiles)
    largest, launches = Largest(), []
    spy = Spy(monkeypatch)

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            before = len(spy.names)
            with largest:
                result = function(*arguments)
            launches.append(spy.names[before:])
            return result

        return call

    for direction in ("forward", "backward"):
        monkeypatch.setattr(kernels, direction, watched(getattr(kernels, direction)))
    check(case, dtype, True, tail, public(case, torch.float64, "torch", True, tail) if name == "all of them" else None)

    forward, backward = launches
    assert forward == ["shift_forward_kernel", "attention_forward_kernel"]
    assert len(backward) == 6
    rows, hidden = int(case.mask.sum()) + tail, case.query.shape[2] * case.query.shape[3]
    sizes = [m[2].shape[-1] for m in case.modalities]
    linear = [rows * hidden, rows * sum(-(-size // 16) * 16 for size in sizes)]  # queries, mean frames
    linear += [(int(m[4].sum()) + tail) * size for m, size in zip(case.modalities, sizes, strict=True)]  # frames
    assert rows * hidden <= largest.bytes // dtype.itemsize <= max(linear)


@runs_kernels
@all_classes
def test_what_is_kept_for_backward_is_linear_in_the_length(shape_class: str) -> None:
    def kept(n: int) -> int:
        """Bytes beyond the inputs."""
        case = make_case([n], [n], [n], heads=1, head_size=16, sizes=(16, 16))
        leaves = [x.to(DEVICE, torch.float16).requires_grad_() for x in case.leaves]
        own = {x.data_ptr() for x in leaves}
        tensors: list[Tensor] = []

        def pack(x: Tensor) -> Tensor:
            tensors.append(x)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            visual, acoustic = ModalityShift(*leaves[3:7]), ModalityShift(*leaves[7:])
            cms_attention(*leaves[:3], visual, acoustic, dropout_p=0.1, backend="triton")
        assert own <= {x.data_ptr() for x in tensors}
        return sum(x.numel() * x.element_size() for x in tensors if x.data_ptr() not in own)

    n = {"short": 32, "medium": 64, "long": 130}[shape_class]
    seed = 8
    a_token = 2 * (16 + 16) + (0 if shape_class == "short" else 2 * (16 + 16) + 4)  # m; z, a, log-sum-exp
    assert kept(n) == seed + n * a_token
    assert kept(2 * n) == seed + 2 * n * a_token


@runs_kernels
@all_classes
def test_strided_inputs_are_not_copied(shape_class: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """q, k, v and the token gate are columns of one projection, the frames columns of a wider tensor."""
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(2, 9, 3 * 32 + 8, generator=generator).to(DEVICE)
    q, k, v = projected[..., :96].unflatten(-1, (3, 2, 16)).unbind(2)
    wide = torch.randn(2, 7, 30, generator=generator).to(DEVICE)
    weight = torch.randn(32, 64, generator=generator).to(DEVICE)[:, 20:40]
    visual = ModalityShift(projected[..., 96], wide[..., 25], wide[..., 3:23], weight)
    spy = Spy(monkeypatch)
    leaves = [x.requires_grad_() for x in (projected, wide, weight.detach())]
    q, k, v = leaves[0][..., :96].unflatten(-1, (3, 2, 16)).unbind(2)
    visual = ModalityShift(leaves[0][..., 96], leaves[1][..., 25], leaves[1][..., 3:23], leaves[2])
    z = cms_attention(q, k, v, visual, backend="triton")
    d_out = torch.randn(9, 2, 2, 16, generator=generator).to(DEVICE).transpose(0, 1)
    actual = [z, *torch.autograd.grad(z, leaves, d_out)]
    given = {"q": q, "k": k, "v": v, "d_out": d_out}
    for arguments in spy.arguments:
        for name, tensor in given.items():
            if name in arguments:
                assert arguments[name].data.data_ptr() == tensor.data_ptr(), name
        for source in [*arguments.get("sources", ()), arguments.get("source")]:
            if source is not None:
                for name in ("token_gate", "frame_gate", "frames"):
                    assert getattr(source, name).data_ptr() == getattr(visual, name).data_ptr(), name
                assert source.weight.data_ptr() == leaves[2].data_ptr()
    z = cms_attention(q, k, v, visual, backend="torch")
    for a, e in zip(actual, [z, *torch.autograd.grad(z, leaves, d_out)], strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@runs_kernels
@all_classes
@pytest.mark.parametrize("far_apart", ["packed rows", "rows", "sequences", "heads"])
def test_addresses_beyond_two_to_the_31(shape_class: str, far_apart: str) -> None:
    """Elements 2^30 apart: products of 32-bit numbers would wrap. Untouched pages take no memory; a GPU gives 6 GB."""
    torch.use_deterministic_algorithms(False)  # which would touch them
    stride = 2**30
    try:
        storage = torch.empty(3 * stride + 256, dtype=torch.float16, device=DEVICE)
    except RuntimeError:
        pytest.skip("no memory")
    batch, n, heads = {"rows": (1, 4, 1), "packed rows": (1, 4, 1), "sequences": (4, 1, 1), "heads": (1, 1, 4)}[
        far_apart
    ]
    generator = torch.Generator().manual_seed(0)

    def pair(i: int, *shape: int) -> tuple[Tensor, Tensor]:
        """The same numbers close together and far apart."""
        near = torch.randn(*shape, generator=generator).to(DEVICE, torch.float16)
        strides = [stride if size == 4 else 1 if j == near.dim() - 1 else 16 for j, size in enumerate(shape)]
        far = storage.as_strided(shape, strides, 32 * i)
        far.copy_(near)
        return near.requires_grad_(), far.detach().requires_grad_()

    pairs = [pair(i, batch, n, heads, 16) for i in range(3)] + [pair(3, batch, n, 5)]
    gates = torch.randn(2, batch, n, generator=generator).to(DEVICE, torch.float16)
    weight = torch.randn(16 * heads, 5, generator=generator).to(DEVICE, torch.float16)

    def run(tensors: list[Tensor], backend: str) -> list[Tensor]:
        *qkv, frames = tensors
        if far_apart == "packed rows":
            cu = torch.tensor([0, 3, 4], dtype=torch.int32, device=DEVICE)  # the second sequence begins beyond 2^31
            visual = ModalityShift(gates[0, 0], gates[1, 0], frames[0], weight, cu, 3)
            z = cms_attention(*(x[0] for x in qkv), visual, backend=backend, cu_seqlens=cu, max_seqlen=3)
        else:
            z = cms_attention(*qkv, ModalityShift(*gates, frames, weight), backend=backend)
        return [z, *torch.autograd.grad(z.float().square().sum(), tensors)]

    expected, actual = run([x for x, _ in pairs], "torch"), run([x for _, x in pairs], "triton")
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=2e-2, atol=2e-2)


@runs_kernels
@pytest.mark.parametrize("kind", ["short", "medium", "long", "plain"])
def test_stores_beyond_two_to_the_31(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one sequence begins at row 2^28 + 1 of 16 columns: a product of 32-bit numbers would be that of row 1.

    Untouched pages take no memory. What the long backward pass leaves to PyTorch would touch them: forward only.
    """
    if DEVICE == "cuda":
        pytest.skip("takes 8 GB a tensor where pages are not lazy")
    kernels = attention_triton.kernels
    torch.use_deterministic_algorithms(False)  # which would touch them
    monkeypatch.setattr(kernels.call, "SHORT_TOKENS", 64 if kind == "short" else 0)
    monkeypatch.setattr(kernels.call, "MEDIUM_TOKENS", 0 if kind == "long" else 128)
    n, generator = 3, torch.Generator().manual_seed(0)

    def poisoned(empty: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = empty(*arguments)
            for x in tree_leaves(result):
                if x.shape[0] > 1:  # but for the log-sum-exp, of one head
                    x[-n:] = float("nan")  # the sequence's rows
            return result

        return call

    for name in ("empty_outputs", "empty_gradients"):
        monkeypatch.setattr(kernels.launch, name, poisoned(getattr(kernels.launch, name)))
    row = torch.randn(3, 1, 1, 16, generator=generator).half()
    gate, frames, weight = (torch.randn(*shape, generator=generator).half() for shape in ((1,), (2, 16), (16, 16)))
    cu_frames = torch.tensor([0, 2], dtype=torch.int32)

    def run(first: int) -> list[Tensor]:
        """All outputs of rows [first, first + n), the sequence's; all rows of each input are one row in memory."""
        rows = first + n
        q, k, v = (x.expand(rows, 1, 16) for x in row)
        cu = torch.tensor([first, rows], dtype=torch.int32)
        m = kernels.Modality(gate.expand(rows), torch.ones(2).half(), frames, weight, cu_frames, None, 2)
        call = kernels.Call(q, k, v, None if kind == "plain" else m, None, cu, None, n, "tanh", 0.25, 0.0, None)
        out, saved = kernels.forward(call)
        rowwise = [out, saved.mean, *([saved.shift] if saved.shift.numel() else []), saved.lse.T]
        if kind in ("short", "plain"):
            gradients = kernels.backward(call, out, out, saved, (False, False))
            rowwise += [*gradients[:4], gradients.token_gates[0]]
        return [x[first:] for x in rowwise if x.shape[0] == rows and x.numel()]

    try:
        far = run(2**28 + 1)
    except RuntimeError as error:
        if "alloc" not in str(error):
            raise
        pytest.skip("no memory")
    near = run(0)
    assert len(far) == len(near) >= 3
    for a, e in zip(far, near, strict=True):
        assert torch.equal(a, e)


# ------------------------------------------------------------------ dropout


def dropout_mask(seed: int, n: int, batch: int, heads: int, p: float, packed: bool = False) -> Tensor:
    """Which probabilities are kept, (B, H, N, N), read off z: uniform attention over one-hot values, and no shift."""
    size = -(-n // 16) * 16
    zeros = torch.zeros(batch, n, heads, size, device=DEVICE)
    value = torch.eye(n, size, device=DEVICE)[None, :, None].expand(batch, n, heads, size)
    torch.manual_seed(seed)
    if packed:
        cu = torch.arange(batch + 1, dtype=torch.int32, device=DEVICE) * n
        flat = [x.flatten(0, 1) for x in (zeros, zeros, value)]
        gate = zeros[:, :, 0, 0].flatten()
        visual = ModalityShift(gate, gate, gate[:, None], torch.zeros(heads * size, 1, device=DEVICE), cu, n)
        z = cms_attention(*flat, visual, cu_seqlens=cu, max_seqlen=n, dropout_p=p, backend="triton").unflatten(
            0, (batch, n)
        )
    else:
        gate = zeros[:, :, 0, 0]
        visual = ModalityShift(gate, gate, gate[..., None], torch.zeros(heads * size, 1, device=DEVICE))
        z = cms_attention(zeros, zeros, value, visual, dropout_p=p, backend="triton")
    z = z[..., :n].transpose(1, 2)  # (B, H, N, N)
    kept = z != 0
    torch.testing.assert_close(z[kept], torch.full_like(z[kept], 1 / (n * (1 - p))))
    return kept


def check_rate(kept: Tensor, p: float) -> None:
    """The number kept is binomial: within five standard deviations."""
    deviation = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - p)) < 5 * deviation


def check_independence(kept: Tensor, other: Tensor) -> None:
    """Two masks (B, H, N, N) of rate 1/2, and all parts of the first among themselves, are uncorrelated.

    As +1 and -1, M products of independent numbers have a mean beyond 7 / sqrt(M) with a probability below 2 exp(-24.5)
    (Hoeffding), hence below 1e-5 for all distances between two entries together. In row-major order all pairs of heads,
    sequences, queries or keys at one offset have one distance, shifted copies too: where all heads share a mask the
    correlation is 1 - 1/H, where two of four do in one sequence of four 1/16, and at 65,536 entries 0.027 is allowed.
    """
    sign = kept.double() * 2 - 1

    def largest(x: Tensor, y: Tensor) -> Tensor:
        """The largest mean product over all distances, all in one product of Fourier transforms."""
        spectrum = torch.fft.rfft(x.flatten()) * torch.fft.rfft(y.flatten()).conj()
        return torch.fft.irfft(spectrum, n=x.numel()).abs() / x.numel()

    limit = 7 / kept.numel() ** 0.5
    assert largest(sign, sign)[1:].max() < limit  # [0] is 1
    assert largest(sign, other.double() * 2 - 1).max() < limit  # another call
    assert largest(sign, sign.transpose(-1, -2)).max() < limit + 1 / kept.shape[-1]  # a transpose shares its diagonal
    upper = torch.ones(kept.shape[-2:]).triu(1).bool()
    mirrored = sign[..., upper] * sign.transpose(-1, -2)[..., upper]
    assert mirrored.mean().abs() < 7 / mirrored.numel() ** 0.5


@runs_kernels
@all_classes
def test_dropout_rate_and_independence(shape_class: str) -> None:
    check_rate(dropout_mask(0, 64, 4, 4, 0.1), 0.1)
    kept = dropout_mask(0, 64, 4, 4, 0.5)
    check_rate(kept, 0.5)
    check_independence(kept.cpu(), dropout_mask(1, 64, 4, 4, 0.5).cpu())


def spoilt_masks() -> Iterator[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def fair() -> Tensor:
        return torch.rand(4, 4, 64, 64, generator=generator) < 0.5

    def spoilt(name: str, change: Callable[[Tensor], None]) -> tuple[str, Tensor, Tensor]:
        mask = fair()
        change(mask)
        return name, mask, fair()

    def copy(to: Any, source: Any) -> Callable[[Tensor], None]:
        return lambda mask: mask[to].copy_(mask[source].clone())

    everything = slice(None)
    yield spoilt("heads share", lambda mask: mask[:, 1:].copy_(mask[:, :1].expand(-1, 3, -1, -1)))
    yield spoilt("sequences share", lambda mask: mask[1:].copy_(mask[:1].expand(3, -1, -1, -1)))
    yield spoilt("two heads of one sequence share", copy((0, 3), (0, 1)))
    yield spoilt("another head's, one query later", lambda mask: mask[:, 1, 1:].copy_(mask[:, 0, :-1].clone()))
    yield spoilt(
        "queries in pairs", copy((everything, everything, slice(0, None, 2)), (..., slice(1, None, 2), everything))
    )
    yield spoilt("an eighth of the keys in pairs", copy((..., slice(0, None, 8)), (..., slice(1, None, 8))))
    yield spoilt("symmetric", lambda mask: mask.copy_(mask.triu() | mask.triu(1).transpose(-1, -2)))
    first = fair()
    yield "another call shares", first, first
    yield "another call shifted by a head", first, first.roll(1, dims=1)


@pytest.mark.parametrize(("name", "kept", "other"), list(spoilt_masks()), ids=lambda v: v if isinstance(v, str) else "")
def test_dependent_dropout_would_be_found(name: str, kept: Tensor, other: Tensor) -> None:
    with pytest.raises(AssertionError):
        check_independence(kept, other)


def test_wrong_dropout_rate_would_be_found() -> None:
    fair = torch.rand(4, 4, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.9
    check_rate(fair, 0.1)
    with pytest.raises(AssertionError):
        check_rate(fair, 0.11)


@runs_kernels
@all_classes
def test_dropout_does_not_depend_on_form_or_class(shape_class: str) -> None:
    mask = dropout_mask(3, 20, 2, 2, 0.5)
    assert torch.equal(mask, dropout_mask(3, 20, 2, 2, 0.5))
    assert torch.equal(mask, dropout_mask(3, 20, 2, 2, 0.5, packed=True))
    assert not torch.equal(mask, dropout_mask(4, 20, 2, 2, 0.5))
    # the counter-based definition, whatever the tiles: the same in every shape class
    torch.manual_seed(3)
    assert mask.sum() == KEPT.setdefault("sum", mask.sum())
    assert torch.equal(mask, KEPT.setdefault("mask", mask))


KEPT: dict[str, Tensor] = {}


@runs_kernels
@all_classes
def test_gradients_under_dropout(shape_class: str) -> None:
    """Against autograd through the same computation with the mask read off above."""
    n, heads, p = 20, 2, 0.25
    case = make_case([n, n], [9, 5], [4, 1], heads=heads, head_size=16)
    kept = dropout_mask(7, n, 2, heads, p).cpu()
    leaves = [x.clone().requires_grad_() for x in case.leaves]
    a = torch.zeros(2, n, heads * 16, dtype=torch.float64)
    for i, m in enumerate(case.modalities):
        gate, r, x, w = leaves[3 + 4 * i : 7 + 4 * i]
        a = a + reference.shift(torch.relu(gate[:, :, None] + r[:, None]), x, w, m[4])
    q, k, v = ((x + a.unflatten(-1, (heads, 16))).transpose(1, 2) for x in leaves[:3])
    probabilities = torch.softmax(q @ k.transpose(-1, -2) * 0.25, dim=-1) * kept / (1 - p)
    z = (probabilities @ v).transpose(1, 2)
    expected = [z, *torch.autograd.grad(z, leaves, case.d_out)]
    torch.manual_seed(7)
    actual = public(case, torch.float32, "triton", packed=False, dropout_p=p)
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= 1e-4 * max(1.0, e.abs().max())


# ------------------------------------------------------------------ table and tuner


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_table_serves_every_call_with_what_its_kernel_takes() -> None:
    tiles = attention_triton.kernels.launch.tiles
    table = tiles.table()["cms_attention"]
    for row in table:
        kernel = getattr(attention_triton.kernels.launch, f"{row['kernel']}_kernel")
        assert set(row["config"]) <= {*kernel.arg_names, "num_warps", "num_stages"}
    longest = {"short": 64, "medium": 128}
    for name in {row["kernel"] for row in table}:
        for item_size in (2, 4):
            if item_size == 4 and name.startswith("short"):
                continue
            tokens = longest.get(name.split("_")[0], 1 << 20)
            for head_size in (1, 64, 65, 128):
                sizes = {"tokens": tokens, "head_size": head_size}
                config = tiles.configuration("cms_attention", name, "sm_90", item_size, **sizes)
                assert config["num_warps"] in (4, 8)
    with pytest.raises(LookupError, match="no row"):
        tiles.configuration("cms_attention", "short_forward", "sm_90", 2, tokens=65, head_size=64)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("backwards", [False, True])
def test_the_tightest_row_of_the_table_wins_before_the_device(backwards: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = attention_triton.kernels.launch.tiles
    rows = [
        {
            "kernel": "new",
            "device": device,
            "item_size": 2,
            "at_most": {"tokens": tokens, "head_size": head_size},
            "config": config,
        }
        for device, tokens, head_size, config in (
            ("*", 64, 64, {"num_warps": 1}),
            ("sm_90", 64, 128, {"num_warps": 2}),
            ("*", 64, 128, {"num_warps": 4}),
            ("sm_90", 128, 64, {"num_warps": 8}),
        )
    ]
    monkeypatch.setattr(tiles, "table", lambda: {"family": rows[::-1] if backwards else rows})
    found = {}
    for tokens, head_size in ((50, 64), (50, 65), (65, 64)):
        for device in ("sm_90", "sm_80"):
            with contextlib.suppress(LookupError):
                # Not the cached function: what it says of this table must not outlast the test.
                sizes = {"tokens": tokens, "head_size": head_size}
                config = tiles.configuration.__wrapped__("family", "new", device, 2, **sizes)
                found[device, tokens, head_size] = config["num_warps"]
    assert found == {
        ("sm_90", 50, 64): 1,
        ("sm_80", 50, 64): 1,
        ("sm_90", 50, 65): 2,
        ("sm_80", 50, 65): 4,
        ("sm_90", 65, 64): 8,
    }


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_tf32_only_where_the_user_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = attention_triton.kernels
    monkeypatch.setattr(kernels.launch.common, "device_class", lambda device: "sm_90")

    def precision(dtype: torch.dtype = torch.float32) -> str:
        x = torch.zeros(1, 2, 1, 16, dtype=dtype)
        call = kernels.Call(x, x, x, None, None, None, None, 2, "relu", 1.0, 0.0, None)
        return kernels.launch.Launcher(call).precision

    def allow(interface: str, tf32: bool) -> None:
        if interface == "fp32_precision":
            torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
        elif interface == "allow_tf32":
            torch.backends.cuda.matmul.allow_tf32 = tf32
        else:
            torch.set_float32_matmul_precision("high" if tf32 else "highest")

    before = torch.backends.cuda.matmul.fp32_precision, torch.get_float32_matmul_precision()
    try:
        assert precision() == "split"
        for interface in ("fp32_precision", "allow_tf32", "set_float32_matmul_precision"):
            allow(interface, True)
            assert precision() == "tf32", interface
            assert precision(torch.bfloat16) == "ieee"
            allow(interface, False)
            assert precision() == "split", interface
    finally:
        torch.set_float32_matmul_precision(before[1])
        torch.backends.cuda.matmul.fp32_precision = before[0]


@runs_kernels
def test_tuner_finds_the_fastest_correct_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    from cmsbert_fast.kernels import tune as tuner

    kernels = attention_triton.kernels
    monkeypatch.setattr(tuner, "CANDIDATES", {
        "short_forward": {"HEADS": (1, 2, 3, 4, 5, 6), "BLOCK_F": (16,), "num_warps": (4,), "num_stages": (1,)},
        "short_backward": {"HEADS": (1, 2), "num_warps": (4,), "num_stages": (1,)},
        "short_gate_backward": {"BLOCK_F": (16, 32), "BLOCK_C": (16,), "num_warps": (4,), "num_stages": (1,)},
    })  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, torch.float16)

    visual = kernels.Modality(random(1, 5), random(1, 3), random(1, 3, 5), random(48, 5), None, None, 3)
    qkv = [random(1, 5, 3, 16) for _ in range(3)]
    call = kernels.Call(*qkv, visual, None, None, None, 5, "relu", 0.25, 0.0, None)
    used: dict[str, dict[str, int]] = {}
    launch = kernels.launch
    run = launch.run
    failures: dict[int, Exception] = {
        4: tuner.triton.runtime.errors.OutOfResources(2, 1, "shared memory"),
        5: RuntimeError("PassManager::run failed"),
        6: tuner.triton.compiler.errors.CompilationError("", None, "no"),
    }

    def record(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], config: dict[str, int]) -> None:
        name = kernel.fn.__name__.removesuffix("_kernel")
        if name == "short_forward" and config["HEADS"] in failures:
            raise failures[config["HEADS"]]
        used[name] = config
        run(kernel, grid, arguments, config)
        if name == "short_forward" and config["HEADS"] == 3:
            arguments["out"].zero_()  # fast and wrong

    def milliseconds(_: Callable[[], Any]) -> float:
        heads = used["short_forward"]["HEADS"], used.get("short_backward", {}).get("HEADS", 1)
        return {1: 3.0, 2: 2.0, 3: 1.0}[heads[0]] + {1: 1.0, 2: 2.0}[heads[1]]

    committed = launch.tiles.configuration

    def one_head(family: str, kernel: str, *key: Any, **sizes: int) -> dict[str, int]:
        config = committed(family, kernel, *key, **sizes)
        return dict(config, HEADS=1) if "forward" in kernel else config

    monkeypatch.setattr(launch, "run", record)
    monkeypatch.setattr(launch.tiles, "configuration", one_head)
    left_out: Counter[str] = Counter()
    found = tuner.tune(call, random(1, 5, 3, 16), milliseconds, left_out)
    assert found == {"short_forward": {"HEADS": 2, "BLOCK_F": 16, "num_warps": 4, "num_stages": 1}}
    assert left_out == {"short_forward": 3}
    failures[5] = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        tuner.tune(call, random(1, 5, 3, 16), milliseconds)


# ------------------------------------------------------------------ refusals


def test_reasons_not_to_run() -> None:
    why = partial(dispatch.why_not, "attention", "triton")
    assert (
        "not in torch.float64" in str(why(torch.empty(1, 1, 1, 8, dtype=torch.float64, device=DEVICE)))
        or DEVICE == "cpu"
    )
    if INTERPRETED:
        assert why(torch.empty(1, 1, 1, 128)) is None
        assert "at most 128" in str(why(torch.empty(1, 1, 1, 129)))
        assert "bfloat16" in str(why(torch.empty(1, 1, 1, 8, dtype=torch.bfloat16)))
    elif DEVICE == "cpu":
        assert "not on cpu" in str(why(torch.empty(1, 1, 1, 8))) or not HAS_TRITON
        with pytest.raises(ValueError, match="use backend"):
            cms_attention(*torch.zeros(3, 1, 1, 1, 8), backend="triton")
    assert dispatch.choose_backend("attention", torch.empty(1, 1, 1, 8)) != "triton"


@pytest.mark.parametrize(
    ("architecture", "refused"),
    [("gfx942:sramecc+:xnack-", False), ("gfx90a", False), ("gfx950", False), ("gfx1100", True), ("gfx1201", True)],
)
def test_amd_gpus_of_another_kind_are_refused(
    architecture: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    properties = SimpleNamespace(gcnArchName=architecture)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    reason = why_not_gpu(0)
    assert reason is None or ("CDNA" in reason and reason.endswith(f"not {architecture}"))
    assert (reason is not None) == refused


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False), ((12, 0), False)])
def test_old_nvidia_gpus_are_refused(
    capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    reason = why_not_gpu(0)
    assert ("8.0 or later" in reason if reason else False) == refused
    # The contrastive kernels ask the same.
    z = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda", 0))
    if HAS_TRITON:
        assert dispatch.why_not("contrastive", "triton", z) == reason


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_devices_without_room_take_the_small_tiles() -> None:
    """8.6, 8.9 and 12.x have 99 KB of shared memory a block, others from 163 KB on."""
    named = {
        (8, 0): "sm_80", (8, 6): "sm_86", (8, 7): "sm_86", (8, 9): "sm_86", (9, 0): "sm_90", (10, 0): "sm_100",
        (10, 3): "sm_100", (11, 0): "sm_100", (12, 0): "sm_86", (12, 1): "sm_86", (13, 0): "sm_86",
    }  # fmt: skip
    for capability, name in named.items():
        assert attention_triton.kernels.launch.common.nvidia_class(*capability) == name
