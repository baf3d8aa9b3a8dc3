"""The CMS attention kernels against the float64 reference: in all forms, shape classes and dtypes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsbert_fast import ModalityShift, cms_attention
from cmsbert_fast.ops.attention import triton as attention_triton
from cmsbert_fast.ops.capability import HAS_TRITON
from tests.interpreter import INTERPRETED
from tests.kernels.cms_attention.cases import (
    DEVICE,
    DTYPES,
    all_classes,
    check,
    literal,
    make_case,
    public,
    runs_kernels,
)

# Lengths 1, 7, 16, 17, 32, 33, 50, 63, 64, 65, 129; sequences without frames, without tokens, a modality absent.
GRID: dict[str, dict[str, Any]] = {
    "short": {"tokens": [1, 7, 50, 0, 64], "visual": [5, 0, 33, 2, 65], "acoustic": [0, 7, 1, 3, 63], "heads": 3},
    "short, sigmoid, real sizes": {
        "tokens": [50, 3], "visual": [50, 1], "acoustic": [50, 7], "sizes": (47, 74), "activation": "sigmoid",
    },
    "short, every tile": {
        "tokens": [17, 16, 33, 32], "visual": [20, 17, 33, 0], "acoustic": None, "heads": 1, "head_size": 16,
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
@pytest.mark.parametrize(("scale", "gates"), [(10.0, 1.0), (100.0, 1.0), (1.0, 1e3)], ids=["1e2", "1e4", "gates"])
def test_large_logits_in_float32(shape_class: str, scale: float, gates: float) -> None:
    """Logits of 1e2 and 1e4 (float32 leaves them 1e-5 and 1e-3 to be wrong by), and gates of 1e3, which make both."""
    case = make_case([20, 7], [9, 5], [5, 3], head_size=16, sizes=(20, 5))
    case.query, case.key = ((x * scale).float().double() for x in (case.query, case.key))
    for m in case.modalities:
        m[0], m[1] = ((x * gates).float().double() for x in m[:2])
    check(case, torch.float32)


@runs_kernels
@all_classes
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.05, 0.3])
def test_tanh_near_0_is_exact_in_float32(shape_class: str, scale: float) -> None:
    """Mean frames as small as their gates keep float32's relative precision: the weights' gradients show it."""
    case = make_case([9, 7], [5, 3], [4, 2], head_size=16, sizes=(20, 5), activation="tanh")
    for m in case.modalities:
        m[0], m[1] = (x.mul(scale).float().double() for x in m[:2])
    expected, actual = literal(case), public(case, torch.float32, "triton", True)
    for weight in (7, 11):
        error = (actual[weight] - expected[weight]).abs().max() / expected[weight].abs().max()
        assert error < 32 * torch.finfo(torch.float32).eps


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
