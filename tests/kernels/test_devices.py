"""What the kernels ask of the driver, and when."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cmsbert_fast.ops.capability import HAS_TRITON
from tests.interpreter import INTERPRETED

ROOT = Path(__file__).resolve().parents[2]

IMPORTS = """
import torch
def refuse(*_, **__):
    raise AssertionError("the driver was asked")
for name in ("_lazy_init", "current_device", "get_device_capability", "get_device_properties", "is_available"):
    setattr(torch.cuda, name, refuse)
import triton
from triton.runtime import driver
type(driver).active = property(refuse)
import cmsbert_fast.kernels.cms_attention.launch, cmsbert_fast.kernels.contrastive.gradients
import cmsbert_fast.ops.contrastive.triton, cmsbert_fast.ops.attention.api, cmsbert_fast.models.cmsbert
import cmsbert_fast.models.collation, cmsbert_fast.training.batches
assert not torch.cuda.is_initialized()
"""


@pytest.mark.skipif(not HAS_TRITON or INTERPRETED, reason="Triton is not installed, or interprets")
def test_imports_ask_nothing_of_the_driver() -> None:
    """A DataLoader may fork afterwards: a process that has asked CUDA cannot be forked."""
    subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, check=True, timeout=300)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_operators_launch_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, whichever device is current: the launch happens while theirs is."""
    from cmsbert_fast.ops.attention import triton as attention

    current: list[torch.Tensor] = []
    seen: list[tuple[str, bool]] = []

    class DeviceOf:
        def __init__(self, tensor: torch.Tensor):
            self.tensor = tensor

        def __enter__(self) -> None:
            current.append(self.tensor)

        def __exit__(self, *_: Any) -> None:
            current.pop()

    call = attention.kernels.Call(*torch.zeros(3, 1, 1, 1, 16), None, None, None, None, 1, "relu", 1.0, 0.0, None)
    monkeypatch.setattr(torch.cuda, "device_of", DeviceOf)
    for name in ("forward", "backward"):
        original = getattr(attention.kernels, f"empty_{'outputs' if name == 'forward' else 'gradients'}")

        def watched(*arguments: Any, name: str = name, original: Any = original) -> Any:
            seen.append((name, bool(current) and current[-1].shape == call.query.shape))
            result = original(call) if name == "forward" else original(call, (False, False))
            return result

        monkeypatch.setattr(attention.kernels, name, watched)
    monkeypatch.setattr(attention, "_call", lambda flat: call)
    with torch.no_grad():
        _, *saved = attention._forward()
        attention._backward(torch.zeros_like(call.query), None, *saved, False, False)
    assert seen == [("forward", True), ("backward", True)]
    assert current == []
