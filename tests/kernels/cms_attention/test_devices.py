"""Which devices and dtypes the Triton backend refuses, and which devices take the small tiles."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from cmsbert_fast import cms_attention
from cmsbert_fast.ops import dispatch
from cmsbert_fast.ops.attention import triton as attention_triton
from cmsbert_fast.ops.capability import HAS_TRITON, why_not_gpu
from tests.interpreter import INTERPRETED
from tests.kernels.cms_attention.cases import DEVICE


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
