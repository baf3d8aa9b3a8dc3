"""Ahead-of-time compiles of the kernels between a layer's products, held to a budget: see :mod:`tests.kernels.aot`."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kernels import aot
from tests.kernels.aot import Launch


class Case(NamedTuple):
    """Forward and backward of both operators in BERT's sizes: D, and 4 D for the activation."""

    width: int
    dtype: str
    residual: str = "float32"  # as under autocast
    dropout: bool = True

    def __str__(self) -> str:
        return f"D={self.width} {self.dtype} residual={self.residual}" + ("" if self.dropout else " no dropout")


CASES = [
    *(Case(width, "bfloat16") for width in (384, 768, 1024, 2048)),
    Case(768, "bfloat16", dropout=False),
    Case(768, "bfloat16", "bfloat16"),
    Case(768, "float16"),
    Case(768, "float32"),
    Case(300, "float32"),  # no multiple of 16
]
QUICK = [(Case(768, "bfloat16"), "sm_90"), (Case(768, "float32"), "gfx942")]


def launches(case: Case, target: str) -> list[Launch]:
    """The four kernels, with their arguments."""
    import torch

    from cmsbert_fast.kernels import bias_gelu, common, residual_norm

    dtype, wide = getattr(torch, case.dtype), getattr(torch, case.residual)
    x, residual = torch.zeros(50, case.width, dtype=dtype), torch.zeros(50, case.width, dtype=wide)
    parameters = residual_norm.Parameters(*torch.zeros(3, case.width, dtype=wide))
    seed = torch.zeros(2, dtype=torch.int64) if case.dropout else None
    call = residual_norm.Call(x, residual, parameters, 1e-12, 0.1 if case.dropout else 0.0, seed)
    inner, bias = torch.zeros(50, 4 * case.width, dtype=dtype), torch.zeros(4 * case.width, dtype=wide)
    rounded = None if dtype == wide else dtype

    def forward_and_backward() -> None:
        y, narrow, mean, inverse = residual_norm.forward(call, rounded)
        residual_norm.backward(call, y, narrow, mean, inverse)
        bias_gelu.backward(bias_gelu.forward(inner, bias), inner, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "device_class", lambda device: target)
        return aot.record(forward_and_backward)


def spill_rule(case: Case, target: str, kernel: str) -> int:
    """A row lies in registers: nothing may leave them."""
    return 0


SUITE = aot.Suite(CASES, QUICK, launches, spill_rule, Path(__file__).with_name("layer_budget.json"))


def test_registers_spills_and_shared_memory() -> None:
    aot.run_quick("layer")
