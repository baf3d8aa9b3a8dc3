"""What the CMS attention kernels launch, copy, keep and address."""

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
from tests.kernels.attention_cases import DEVICE, DTYPES, Spy, all_classes, check, make_case, public, runs_kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")


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
        for source in [*arguments.get("sources", ()), *([arguments["source"]] if "source" in arguments else [])]:
            if source.frames is not None:
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
