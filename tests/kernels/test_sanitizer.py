"""NVIDIA's compute-sanitizer over every Triton kernel, where it is installed; elsewhere the same calls run interpreted.

Run as a program, this file makes the calls and prints the names of the kernels that ran.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsbert_fast import ModalityShift, cms_attention, pairwise_contrastive_loss
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.bias_gelu.api import bias_gelu
from cmsbert_fast.ops.capability import HAS_TRITON
from cmsbert_fast.ops.residual_norm.api import residual_norm
from cmsbert_fast.ops.residual_norm.types import Parameters
from cmsbert_fast.packing import cumulative

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {
    "memcheck": "accesses out of bounds",
    "racecheck": "races in shared memory",
    "initcheck": "reads of memory that nobody wrote",
    "synccheck": "barriers that some threads miss",
}


def modules() -> list[ModuleType]:
    """Those that define kernels, and those that import them."""
    from cmsbert_fast.kernels import bias_gelu, cms_attention, residual_norm  # noqa: F401
    from cmsbert_fast.ops.contrastive import triton  # noqa: F401

    return [module for name, module in sys.modules.items() if name.startswith("cmsbert_fast.kernels.")]


def kernels_of(module: ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name.endswith("_kernel") and hasattr(value, "fn")}


def kernel_name(kernel: Any) -> str:
    return f"{kernel.fn.__module__}.{kernel.fn.__name__}"


class Recorder:
    """Stands before a kernel and notes that it was launched."""

    def __init__(self, name: str, kernel: Any, launched: set[str]):
        self.name, self.kernel, self.launched = name, kernel, launched

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)

    def __getitem__(self, grid: Any) -> Any:
        self.launched.add(self.name)
        return self.kernel[grid]


def attend(
    device: str, lengths: list[int], dtype: torch.dtype, packed: bool, dropout_p: float, backend: str = "triton"
) -> None:
    """Forward and backward; everything wants a gradient, rows of no sequence and masked positions are there."""
    generator = torch.Generator().manual_seed(0)
    frames = [n // 2 for n in lengths]
    lead = (sum(lengths) + 5,) if packed else (len(lengths), max(lengths))
    frame_lead = (sum(frames) + 3,) if packed else (len(lengths), max(frames))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()

    def mask(lengths: list[int]) -> Tensor:
        return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(device)

    where: dict[str, Any] = {"mask": mask(frames)}
    options: dict[str, Any] = {"attention_mask": mask(lengths)}
    if packed:
        where = {"cu_seqlens": cumulative(torch.tensor(frames)).to(device), "max_length": max(frames)}
        options = {"cu_seqlens": cumulative(torch.tensor(lengths)).to(device), "max_seqlen": max(lengths)}
    shifts = [
        ModalityShift(random(*lead), random(*frame_lead), random(*frame_lead, size), random(2 * 24, size), **where)
        for size in (47, 20)
    ]
    qkv = [random(*lead, 2, 24) for _ in range(3)]
    z = cms_attention(*qkv, *shifts, dropout_p=dropout_p, backend=backend, **options)
    z.float().square().sum().backward()


def compare(device: str, n: int, d: int, dtype: torch.dtype, labels: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(n, d, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
    tau = torch.tensor(0.1, device=device, requires_grad=True)
    smoothing = None if labels is None else 0.9
    pairwise_contrastive_loss(*z, labels, tau, smoothing, backend="triton").backward()


def finish_layer(device: str, rows: int, width: int, dtype: torch.dtype) -> None:
    """What stands between a layer's products, forward and backward."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()

    parameters = Parameters(random(width), random(width), random(width))
    x, residual = random(rows, width), random(rows, width)
    y = residual_norm(x, residual, parameters, eps=1e-12, dropout_p=0.5, backend="triton").wide
    (y + bias_gelu(x, parameters.bias, "triton")).float().square().sum().backward()


def no_attention(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """In place of what only a GPU has: as if all values were 0."""
    return torch.zeros_like(query), query.new_zeros(query.shape[1::-1], dtype=torch.float32)


def every_kernel(device: str) -> set[str]:
    """Launches all kernels in all shape classes; on a GPU at sizes of several tiles. The names of those that ran."""
    large = device == "cuda"
    launched: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        for module in modules():
            for name, kernel in kernels_of(module).items():
                patch.setattr(module, name, Recorder(kernel_name(kernel), kernel, launched))
        if not large:
            patch.setattr(sys.modules["cmsbert_fast.kernels.contrastive.call"], "FEW", 64)
            patch.setattr(capability, "why_not_varlen", lambda device: None)
            patch.setattr(sys.modules["cmsbert_fast.kernels.cms_attention.varlen"], "attention", no_attention)
        for longest in (50, 100, 200):
            if not large:
                attend(device, [longest, 7], torch.float16, True, 0.5)
                continue
            for dtype in (torch.float16, torch.float32):
                for packed, dropout_p in ((True, 0.0), (False, 0.5)):
                    attend(device, [longest, 7, 0, longest // 3], dtype, packed, dropout_p)
        attend(device, [100, 7, 0], torch.float16, True, 0.0, "varlen")
        for n, d in ((50, 96), (1300, 96) if large else (70, 24), (1100, 20) if large else (70, 20)):
            scores = torch.arange(n, device=device) % 7 / 10 - 0.3
            for labels in (scores, (10 * scores).long(), None)[: 3 if large else 1]:
                compare(device, n, d, torch.float16, labels)
        for rows, width in ((37, 768), (300, 100)) if large else ((5, 20),):
            finish_layer(device, rows, width, torch.float16)
    if large:
        torch.cuda.synchronize()
    return launched


needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


def run_program(prefix: list[str], environment: dict[str, str]) -> None:
    """Runs this file; every kernel of both modules must have been launched, so that no new one is forgotten."""
    command = [*prefix, sys.executable, "-m", "tests.kernels.test_sanitizer"]
    environment = os.environ | environment
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    wanted = {kernel_name(kernel) for module in modules() for kernel in kernels_of(module).values()}
    assert len(wanted) > 15
    assert set(result.stdout.split()) >= wanted


@needs_triton
def test_the_sanitized_program_runs_every_kernel() -> None:
    run_program([], {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.cuda
@needs_triton
@pytest.mark.parametrize("tool", TOOLS)
def test_compute_sanitizer(tool: str) -> None:
    """Memory comes from the driver, not from PyTorch's pool, or the tool would not see where an allocation ends."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TRITON_INTERPRET": "0"}
    run_program([sanitizer, "--tool", tool, "--error-exitcode", "9"], environment)


if __name__ == "__main__":
    print("\n".join(sorted(every_kernel("cuda" if torch.cuda.is_available() else "cpu"))))
