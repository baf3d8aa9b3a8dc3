"""Ahead-of-time compiles of the contrastive kernels, held to a committed budget: see :mod:`tests.kernels.aot`."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kernels import aot
from tests.kernels.aot import Launch, needs_compiler


class Case(NamedTuple):
    """One forward and backward call."""

    rows: int
    width: int
    dtype: str
    labels: str | None = "float32"

    def __str__(self) -> str:
        return f"n={self.rows} d={self.width} {self.dtype} labels={self.labels}"


CASES = [
    *(Case(n, 768, t) for n in (128, 512, 4096) for t in ("bfloat16", "float32")),
    Case(128, 768, "float16"),
    Case(4096, 768, "float16"),
    Case(4096, 768, "bfloat16", "int64"),
    Case(128, 768, "bfloat16", None),
    Case(4099, 100, "bfloat16"),
]
# Every kernel and size class, on targets in turn.
QUICK = [
    (Case(128, 768, "bfloat16"), "sm_90"),
    (Case(512, 768, "bfloat16"), "sm_86"),
    (Case(4096, 768, "bfloat16"), "gfx942"),
]


def launches(case: Case, target: str) -> list[Launch]:
    """The kernels of one forward and backward call, with their arguments."""
    import torch
    from cmsbert_fast.kernels import contrastive as kernels

    n = case.rows
    embeddings = [torch.zeros(n, case.width, dtype=getattr(torch, case.dtype)) for _ in range(3)]
    labels = None if case.labels is None else torch.zeros(n, dtype=getattr(torch, case.labels))
    temperature = torch.ones(())

    def forward_and_backward() -> None:
        loss, *saved = kernels.forward(embeddings, labels, temperature, 0.0, 0.9, 0.1)
        kernels.backward(loss, embeddings, labels, temperature, 0.0, 0.9, 0.1, *saved)

    architecture = kernels.HIP if target == "gfx942" else aot.TARGETS[target][1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_architecture", lambda device: architecture)
        recorded = aot.record(forward_and_backward)
    # One strip after the other launches the same kernels.
    return list({launch.name: launch for launch in recorded}.values())


def spill_rule(case: Case, target: str, kernel: str) -> int:
    """What is spilled in "statistics" lies outside its loop over d (read in the sm_90 assembly): vectors of columns."""
    return 128 if kernel == "statistics" else 0


SUITE = aot.Suite(CASES, QUICK, launches, spill_rule, Path(__file__).with_name("contrastive_budget.json"))


def test_registers_spills_and_shared_memory() -> None:
    aot.run_quick("contrastive")


@needs_compiler
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("labels", ["float32", "int64", None])
def test_small_batches_take_two_launches_each_way(dtype: str, labels: str | None) -> None:
    """And PyTorch launches nothing besides: it allocates and takes views."""
    from torch.utils._python_dispatch import TorchDispatchMode

    called = set()

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            called.add(function.overloadpacket.__name__)
            return function(*arguments, **(named or {}))

    with Log():
        launched = launches(Case(128, 768, dtype, labels), "sm_90")
    assert [launch.name for launch in launched] == ["statistics", "loss", "gradient_tile", "gradient_product"]
    # zeros and ones are the test's own inputs.
    assert called <= {"zeros", "ones", "new_empty", "select", "detach"}


def test_strips_are_linear_in_memory() -> None:
    """What the backward pass holds, by its plan, up to a million rows: bounded by so much a row, and a constant."""
    from cmsbert_fast.kernels import contrastive as kernels

    tile = kernels.choose_tile("tile", 10**6, 768, 2, 90)
    product = kernels.choose_tile("product", 10**6, 768, 2, 90)

    def held(n: int) -> int:
        plan = kernels._plan(n, n, 768, 3, 2, tile, product)
        assert plan.splits * product.BK <= n
        return 6 * plan.rows * plan.width * 2 + plan.splits * 3 * plan.rows * 768 * 4

    for n in (1025, 4096, 10_000, 2**17, 2**20):
        assert held(n) <= 3072 * n + 3 * kernels.STRIP_BYTES
