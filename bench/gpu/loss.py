"""Stage "loss": the contrastive loss, forward and backward, by kernel."""

from typing import Any

import torch

from bench import names
from bench.gpu import kernels
from bench.gpu.runner import Context, each
from bench.test_contrastive import draw
from bench.workload import contrastive_bytes, contrastive_flops
from cmsbert_fast import pairwise_contrastive_loss

SIZE = 768
ROWS = [32768, 128, 1024, 4096, 16384, 512]


class Case(int):
    """A number of rows."""

    def __str__(self) -> str:
        return names.by_kernel(names.contrastive_case(int(self), SIZE, smoothed=True))


def run(context: Context) -> None:
    """All sizes, that of the goal first."""
    rows = [20] if context.rehearsal else ROWS
    device = torch.device(context.device)
    each(context, names.CONTRASTIVE, map(Case, rows), lambda n: measure_case(n, device))


def measure_case(n: int, device: torch.device) -> dict[str, Any]:
    """Times, least traffic and least work of the loss of n rows."""
    call = make_call(n, device, SIZE if device.type == "cuda" else 32)
    if device.type == "cuda" and not all(x.isfinite().all() for x in call()):
        raise FloatingPointError("a gradient is not finite")
    found = kernels.times(call, device, kernels.ROUNDS if device.type == "cuda" else 1)
    return found | {"flops": contrastive_flops(n, SIZE), "bytes": contrastive_bytes(n, SIZE, 2)}


def make_call(n: int, device: torch.device, size: int = SIZE) -> Any:
    """Loss and gradients as a function without arguments."""
    embeddings, labels = draw(n, size, device, torch.bfloat16 if device.type == "cuda" else torch.float16)

    def call() -> tuple[Any, ...]:
        return torch.autograd.grad(pairwise_contrastive_loss(*embeddings, labels, 0.1, 0.9), embeddings)

    return call


def compile_case(n: int) -> None:
    """Compiles what n rows launch."""
    make_call(n, torch.device("cuda"))()
