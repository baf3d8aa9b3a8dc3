"""The Triton engine of the contrastive loss: all of its tests in the interpreter, and what only an engine can show."""

import inspect

import pytest
import torch

from cmsbert_fast.ops.contrastive.torch import TorchEngine
from cmsbert_fast.ops.contrastive.types import LABEL_TOLERANCE, Block, Numbers
from tests.interpreter import INTERPRETED, run_in_the_interpreter

DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_triton = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs below, in the interpreter")
TORCH = TorchEngine()


@pytest.mark.skipif(INTERPRETED, reason="is in the interpreter")
def test_in_the_interpreter() -> None:
    files = ["tests/ops/contrastive", "tests/kernels/test_contrastive_kernels.py"]
    run_in_the_interpreter("-k", "triton", *files, at_least=40)


def test_no_atomics() -> None:
    """Nothing is added in an order that the machine chooses."""
    from cmsbert_fast.kernels.contrastive import gradients, preparation, primitives, statistics

    for module in (gradients, preparation, primitives, statistics):
        assert "atomic_" not in inspect.getsource(module)


def test_tf32_only_where_the_user_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of PyTorch's interfaces says so: having used both, its own getter raises."""
    from cmsbert_fast.kernels.contrastive import call

    monkeypatch.setattr(call, "device_class", lambda device: "sm_90")
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for chosen, wanted in (("ieee", "tf32x3"), ("tf32", "tf32"), ("ieee", "tf32x3")):
            torch.backends.cuda.matmul.fp32_precision = chosen
            assert call.precision(torch.zeros(1)) == wanted
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@runs_triton
@pytest.mark.parametrize("kind", ["scores", "classes"])
def test_triton_rectangles_equal_torch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any rows against any columns, the diagonal anywhere or nowhere: what a rank computes of the global batch."""
    from cmsbert_fast.kernels.contrastive import gradients
    from cmsbert_fast.ops.contrastive.triton import TritonEngine

    monkeypatch.setattr(gradients, "MIN_STRIP", 16)
    monkeypatch.setattr(gradients, "STRIP_BYTES", 1)
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(50, 24, generator=generator).to(DEVICE) for _ in range(3)]
    labels = (torch.randint(-9, 9, (50,), generator=generator) / 10).to(DEVICE)
    if kind == "classes":
        labels = (labels * 3).to(torch.int32)
    numbers = Numbers(torch.tensor(0.1, device=DEVICE), 0.9, 0.1)
    triton_engine = TritonEngine()
    whole = TORCH.make_block(z, labels, numbers)
    ours = triton_engine.make_block(z, labels, numbers)
    torch.testing.assert_close(ours.inverse_norm, whole.inverse_norm)
    torch.testing.assert_close(ours.weight, whole.weight)
    row_lse, column_lse, _ = TORCH.statistics(whole, whole, numbers)
    whole = whole.with_lse(torch.cat([row_lse, column_lse]))

    def part(start: int, stop: int) -> Block:
        return Block(
            tuple(e[start:stop] for e in z),
            labels[start:stop],
            whole.inverse_norm[:, start:stop],
            whole.weight[start:stop],
            whole.lse[:, start:stop],
            start,
        )

    for rows, columns in [((0, 50), (0, 50)), ((13, 34), (0, 50)), ((20, 50), (0, 23)), ((0, 9), (30, 31))]:
        rows, columns = part(*rows), part(*columns)
        for got, want in zip(
            triton_engine.statistics(rows, columns, numbers),
            TORCH.statistics(rows, columns, numbers),
            strict=True,
        ):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-4)
        raw, radial = triton_engine.gradients(rows, columns, numbers)
        raw_wanted, radial_wanted = TORCH.gradients(rows, columns, numbers)
        torch.testing.assert_close(torch.stack(raw), torch.stack(raw_wanted), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(radial, radial_wanted, rtol=1e-4, atol=1e-5)


@runs_triton
def test_triton_float16_keeps_small_probabilities() -> None:
    """Among a million columns a probability is 1e-6, which float16 by itself holds to one digit."""
    from cmsbert_fast.ops.contrastive.triton import TritonEngine

    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(40, 16, generator=generator).to(DEVICE, torch.float16) for _ in range(2)]
    numbers = Numbers(torch.tensor(0.5, device=DEVICE), 1.0, 0.1)
    inverse = TORCH.inverse_norms(z)

    def part(start: int, stop: int) -> Block:
        lse = torch.full((2, stop - start), 14.0, device=DEVICE)
        weight = torch.zeros(stop - start, device=DEVICE)
        return Block(tuple(e[start:stop] for e in z), None, inverse[:, start:stop], weight, lse, start)

    rows, columns = part(0, 20), part(20, 40)
    raw, _ = TritonEngine().gradients(rows, columns, numbers)
    wanted, _ = TORCH.gradients(rows, columns, numbers)
    assert wanted[0].abs().max() < 1e-3
    for got, want in zip(raw, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=2e-3 * float(want.abs().max()))


@runs_triton
def test_triton_counts_equal_torch() -> None:
    """Bisection finds the same members, labels exactly at the edge, NaN and infinities included."""
    from cmsbert_fast.ops.contrastive.triton import TritonEngine

    reach = 0.1 + LABEL_TOLERANCE
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(60, generator=generator)
    edge = base + torch.tensor(reach)
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf")])
    labels = torch.cat([base, edge, torch.nextafter(edge, base + 9), (base * 5).round() / 10, special]).to(DEVICE)
    for rows, columns in ((labels, labels), (labels[:7], labels), (labels, labels[:1])):
        assert TritonEngine().count_related(rows, columns, reach).equal(TORCH.count_related(rows, columns, reach))
