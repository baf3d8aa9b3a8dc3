"""What the CMS attention kernels launch, allocate, keep for backward, and do not copy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmsbert_fast import ModalityShift, cms_attention
from cmsbert_fast.ops.attention import triton as attention_triton
from cmsbert_fast.ops.capability import HAS_TRITON
from tests.kernels.cms_attention.cases import DEVICE, DTYPES, all_classes, check, make_case, public, runs_kernels


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
    aligned = [-(-size // 16) * 16 for size in sizes]  # mean frames always, frames of 16-bit numbers
    linear = [rows * hidden, rows * sum(aligned)]  # queries, mean frames
    widths = aligned if dtype.itemsize == 2 else sizes
    linear += [(int(m[4].sum()) + tail) * width for m, width in zip(case.modalities, widths, strict=True)]  # frames
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
            if source is not None and source.frames is not None:
                for name in ("token_gate", "frame_gate", "frames"):
                    assert getattr(source, name).data_ptr() == getattr(visual, name).data_ptr(), name
                assert source.weight.data_ptr() == leaves[2].data_ptr()
    z = cms_attention(q, k, v, visual, backend="torch")
    for a, e in zip(actual, [z, *torch.autograd.grad(z, leaves, d_out)], strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
