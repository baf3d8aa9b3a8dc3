"""Frames and weights copied into aligned rows: when that happens, and that it changes nothing but the loads."""

from typing import Any

import pytest
import torch

from cmsbert_fast.ops.attention import triton as attention_triton
from cmsbert_fast.ops.capability import HAS_TRITON
from tests.kernels import aot
from tests.kernels.cms_attention.cases import check, make_case, public, runs_kernels

GRID: dict[str, dict[str, Any]] = {
    "both": {"tokens": [17, 3, 0, 40], "visual": [20, 0, 2, 9], "acoustic": [5, 7, 1, 33], "sizes": (47, 20)},
    "one is aligned": {"tokens": [9], "visual": [5], "acoustic": [4], "sizes": (16, 5)},
    "one is absent": {"tokens": [9, 2], "visual": None, "acoustic": [4, 7], "sizes": (16, 5)},
    "medium": {"tokens": [65, 3], "visual": [7, 0], "acoustic": [5, 70], "heads": 1, "sizes": (5, 20)},
}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small calls are aligned, too; how many were."""
    module = attention_triton.kernels.aligned
    monkeypatch.setattr(module, "FEWEST_SEQUENCES", 0)
    launched: list[int] = []
    copied = module._copied
    monkeypatch.setattr(module, "_copied", lambda x: (launched.append(x.shape[-1]), copied(x))[1])
    return launched


@runs_kernels
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", GRID)
def test_aligned_calls_match_the_reference(name: str, packed: bool, always: list[int]) -> None:
    """Forward is aligned; backward is not, for :func:`check` asks for the frames' gradients."""
    check(make_case(**GRID[name], dtype=torch.float16), torch.float16, packed, tail=3 if packed else 0)
    assert always


@runs_kernels
@pytest.mark.parametrize("name", ["both", "medium"])
def test_backward_without_gradients_of_frames_is_aligned(
    name: str, always: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives what it gives without: only zeros are added. Frames' own gradients are 0, for nobody wrote them."""
    kernels = attention_triton.kernels
    case = make_case(**GRID[name], dtype=torch.float16)
    backward = kernels.backward

    def without_frames(call: Any, d_out: Any, out: Any, saved: Any, _: Any) -> Any:
        found = backward(call, d_out, out, saved, (False, False))
        return found._replace(frames=tuple(torch.zeros_like(m.frames) for m in (call.visual, call.acoustic)))

    monkeypatch.setattr(kernels, "backward", without_frames)
    with_copies = public(case, torch.float16, "triton", True)
    count = len(always)
    monkeypatch.setattr(kernels.aligned, "ITEM_SIZE", 0)  # never
    without = public(case, torch.float16, "triton", True)
    assert count == len(always) == 8
    for a, b in zip(with_copies, without, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@aot.needs_compiler
@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_what_is_aligned() -> None:
    """16-bit numbers, many sequences or long ones, no multiple of 16; backward, frames that want no gradient."""
    kernels = attention_triton.kernels

    def sizes(
        dtype: torch.dtype, sizes: tuple[int, int], wanted: bool = False, batch: int = 128, length: int = 5
    ) -> list[int]:
        q = torch.empty(batch, length, 1, 16, dtype=dtype)
        pair = [
            kernels.Modality(q[..., 0, 0], q[:, :1, 0, 0], q.new_empty(batch, 1, n), q.new_empty(16, n), None, None, 1)
            for n in sizes
        ]
        call = kernels.Call(q, q, q, *pair, None, None, length, "relu", 1.0, 0.0, None)
        found: list[Any] = []
        launched = aot.record(lambda: found.append(kernels.aligned.aligned(call, (wanted,) * 2)))
        assert [launch.name for launch in launched] == (["align"] if found[0] is not call else [])
        assert all(m.weight.shape[1] == m.frames.shape[-1] for m in found[0].modalities)
        return [m.frames.shape[-1] for m in found[0].modalities]

    half = torch.bfloat16
    assert sizes(half, (47, 74)) == sizes(half, (47, 74), batch=1, length=65) == [48, 80]
    assert sizes(half, (32, 74)) == [32, 80]
    assert sizes(half, (32, 48)) == [32, 48]
    assert sizes(half, (47, 709)) == [48, 709]
    assert sizes(half, (47, 74), wanted=True) == [47, 74]
    assert sizes(half, (47, 74), batch=127) == [47, 74]
    assert sizes(torch.float32, (47, 74)) == [47, 74]
