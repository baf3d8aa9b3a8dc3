"""The programs of a launch may run in any order: from the first to the last or back, the bits are the same.

A program that read what another one of its launch writes would see it or not, by their order; two that write one place
would leave the later one's.
"""

import pytest
import torch
from torch import Tensor

from cmsbert_fast import ModalityShift, cms_attention, pairwise_contrastive_loss
from cmsbert_fast.ops.attention import triton as attention_triton
from cmsbert_fast.packing import cumulative
from tests.interpreter import INTERPRETED, run_in_the_interpreter

interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="runs in Triton's interpreter, which test_in_the_interpreter starts"
)


def reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of each launch run from the last to the first."""
    from triton.runtime.interpreter import InterpreterBuilder

    set_index = InterpreterBuilder.set_grid_idx

    def set_opposite(self: InterpreterBuilder, *index: int) -> None:
        set_index(self, *(n - 1 - i for n, i in zip(self.grid_dim, index, strict=True)))

    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", set_opposite)


def attention(dtype: torch.dtype) -> list[Tensor]:
    """z and all gradients; rows of no sequence, a sequence without tokens, two without frames of one kind."""
    generator = torch.Generator().manual_seed(0)
    tokens, frames = torch.tensor([40, 0, 7]), torch.tensor([9, 3, 0])

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    leaves = [random(50, 3, 16) for _ in range(3)]
    shifts = []
    for size in (20, 5):
        own = [random(50), random(14), random(14, size), random(48, size)]
        shifts.append(ModalityShift(*own, cumulative(frames), 9))
        leaves += own
    options = dict(cu_seqlens=cumulative(tokens), max_seqlen=40, dropout_p=0.25, backend="triton")
    torch.manual_seed(0)
    z = cms_attention(*leaves[:3], *shifts, **options)
    return [z.detach(), *torch.autograd.grad(z, leaves, torch.ones_like(z))]


def loss(_: torch.dtype) -> list[Tensor]:
    """The loss and its gradients."""
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(40, 24, generator=generator).requires_grad_() for _ in range(3)]
    value = pairwise_contrastive_loss(*z, torch.arange(40) % 7 / 10 - 0.3, 0.1, 0.9, backend="triton")
    return [value.detach(), *torch.autograd.grad(value, z)]


@interpreted
@pytest.mark.parametrize("kind", ["short", "medium", "long", "loss of few rows", "loss of many rows"])
def test_bits_do_not_depend_on_the_order_of_programs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, dtype = attention, torch.float16 if kind == "short" else torch.float32
    call = attention_triton.kernels.call
    monkeypatch.setattr(call, "MEDIUM_TOKENS", 0 if kind == "long" else 128)
    if kind.startswith("loss"):
        from cmsbert_fast.kernels.contrastive import call as contrastive_call

        compute = loss
        if kind.endswith("many rows"):
            monkeypatch.setattr(contrastive_call, "FEW", 0)
    expected = compute(dtype)
    reverse(monkeypatch)
    for i, (a, e) in enumerate(zip(compute(dtype), expected, strict=True)):
        assert torch.equal(a, e), f"output {i}"


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="on a GPU programs run in no order anyway")
def test_in_the_interpreter() -> None:
    run_in_the_interpreter("tests/kernels/test_order.py", at_least=5)
