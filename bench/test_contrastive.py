"""The six-way contrastive loss (Eq. 17-19, 23), forward and backward to three embeddings."""

import pytest
import torch

from bench import names
from bench.rivals.losses import inf_cl_loss, open_clip_loss
from bench.workload import Work, contrastive_bytes, contrastive_flops
from cmsbert_fast import pairwise_contrastive_loss
from cmsbert_fast.ops.dispatch import choose_backend

LITERAL = "literal reference"
COMPILED = "torch.compile of the reference"
TEMPERATURE = 0.1
LARGEST = {"cpu": 4096, "cuda": 65536}  # at d = 768; 65,536 is 75 TFLOP, minutes a call on a CPU
SQUARE_LIMIT = {"cpu": 4096, "cuda": 16384}  # rows up to which n x n matrices are tried
SIZES = [64, 128, 256, 1024, 4096, 16384, 32768, 65536]


def draw(n: int, size: int, device: torch.device, dtype: torch.dtype):
    torch.manual_seed(0)
    common = torch.randn(n, size, device=device)
    embeddings = [(common + torch.randn_like(common)).to(dtype).requires_grad_() for _ in range(3)]
    return embeddings, (torch.rand(n, device=device) * 6 - 3).mul(10).round() / 10


def calls(embeddings, labels, smoothing) -> dict:
    def ours(backend, operator=pairwise_contrastive_loss):
        return lambda: operator(*embeddings, labels, TEMPERATURE, smoothing, backend=backend)

    if smoothing is None:
        losses = {
            names.OURS: ours("auto"),
            names.OPEN_CLIP: lambda: open_clip_loss(embeddings, TEMPERATURE),
            "Inf-CL's algorithm in eager PyTorch": lambda: inf_cl_loss(embeddings, TEMPERATURE),
            LITERAL: ours("reference"),
        }
    else:
        losses = {
            names.OURS: ours("auto"),
            names.TORCH: ours("torch"),
            LITERAL: ours("reference"),
            COMPILED: ours("reference", torch.compile(pairwise_contrastive_loss, dynamic=False)),
        }

    def both(loss):
        def run():
            value = loss()
            return value.detach(), torch.autograd.grad(value, embeddings)

        return run

    return {name: both(loss) for name, loss in losses.items()}


def check(runs: dict, tolerance: float) -> None:
    expected = None
    for name, run in runs.items():
        value, gradients = run()
        got = [value, *gradients]
        expected = expected or [t.double() for t in got]
        for a, b in zip(got, expected, strict=True):
            error = (a.double() - b).abs().max() / b.abs().max()
            assert error < tolerance, f"{name} and ours differ by {error:.2e}; no speed is reported for a wrong result"


@pytest.mark.parametrize("smoothing", [0.9, None], ids=["smoothed", "one-hot"])
@pytest.mark.parametrize("n", SIZES)
def test_contrastive(race, device, n, smoothing):
    case = names.contrastive_case(n, 768, smoothing is not None)
    if n > LARGEST[device.type]:
        race.skip(names.CONTRASTIVE, case, "takes minutes a call on this machine")
        return
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    embeddings, labels = draw(n, 768, device, dtype)
    torch.compiler.reset()
    runs = calls(embeddings, labels, smoothing)
    missing = race.without_compiled(runs)
    if device.type == "cpu" and names.TORCH in runs and choose_backend("contrastive", embeddings[0]) == "torch":
        missing[names.TORCH] = "it is what runs on a CPU: ours"
    if n > SQUARE_LIMIT[device.type]:
        for name in (LITERAL, COMPILED, names.OPEN_CLIP):
            if name in runs:
                missing[name] = "its n x n matrices do not fit"
    if device.type == "cpu" and n != 128 and COMPILED in runs:
        missing[COMPILED] = "compiled for n = 128 only: a minute each on this machine"
    runs = {name: run for name, run in runs.items() if name not in missing}
    check(runs, 1e-4 if dtype == torch.float32 else 4e-2)
    race(
        names.CONTRASTIVE,
        case,
        runs,
        seconds=10,
        work=Work(
            contrastive_flops(n, 768),
            contrastive_bytes(n, 768, embeddings[0].element_size()),
            str(dtype).removeprefix("torch."),
        ),
        missing=missing,
        graphs=True,
    )


def test_memory_of_a_large_batch(race, device):
    """A batch whose n x n matrices nobody wants to hold: 17 GB each at 65,536. A CPU takes minutes a call there."""
    n = 65536 if device.type == "cuda" else 16384
    embeddings, labels = draw(n, 64, device, torch.float32)
    runs = calls(embeddings, labels, 0.9)
    race(
        names.CONTRASTIVE,
        names.contrastive_case(n, 64, smoothed=True),
        {names.OURS: runs[names.OURS]},
        seconds=0,
        fewest=1,
        work=Work(contrastive_flops(n, 64), contrastive_bytes(n, 64, 4)),
    )


def test_growth_with_n(race, device):
    sizes = [512, 1024, 2048, 4096] if device.type == "cpu" else [2048, 4096, 8192, 16384, 32768]
    runs = {}
    for n in sizes:
        embeddings, labels = draw(n, 768, device, torch.float32)
        runs[n] = calls(embeddings, labels, 0.9)[names.OURS]
    race.growth(names.CONTRASTIVE, "forward and backward, d = 768", "n", runs)
