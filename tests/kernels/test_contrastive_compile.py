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
    modalities: int = 3
    learned: bool = True  # the temperature
    group: bool = False  # what one of two ranks launches, instead of forward and backward of one process
    tf32: bool = False

    def __str__(self) -> str:
        unusual = [
            "" if self.modalities == 3 else f" M={self.modalities}",
            "" if self.learned else " fixed temperature",
        ]
        unusual += [" group" if self.group else "", " tf32" if self.tf32 else ""]
        return f"n={self.rows} d={self.width} {self.dtype} labels={self.labels}" + "".join(unusual)


CASES = [
    *(Case(n, 768, t) for n in (128, 512, 4096) for t in ("bfloat16", "float16", "float32")),
    *(Case(n, 100, "float32") for n in (128, 512, 4099)),  # d is no multiple of 16
    *(Case(n, 100, "bfloat16") for n in (512, 4099)),
    Case(4096, 80, "bfloat16"),  # a multiple of 16, of no tile
    # Above FEW rows one process launches what a group does.
    *(Case(n, 768, t, group=True) for n in (128, 512) for t in ("bfloat16", "float32")),
    Case(512, 100, "float32", group=True),
    *(Case(n, 768, "float32", tf32=True) for n in (512, 4096)),
    *(Case(n, 768, t, None, 2, learned=False) for n, t in ((128, "bfloat16"), (512, "float32"), (4096, "bfloat16"))),
    Case(4096, 768, "bfloat16", "int64"),
    Case(128, 768, "bfloat16", None),
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

    from cmsbert_fast.kernels.contrastive import call
    from cmsbert_fast.ops.contrastive.triton import TritonEngine
    from cmsbert_fast.ops.contrastive.types import Call, Numbers

    n = case.rows
    embeddings = [torch.zeros(n, case.width, dtype=getattr(torch, case.dtype)) for _ in range(case.modalities)]
    labels = None if case.labels is None else torch.zeros(n, dtype=getattr(torch, case.labels))
    temperature, engine = torch.ones(()), TritonEngine()

    def forward_and_backward() -> None:
        arguments = Call(embeddings, labels, temperature if case.learned else None, 0.1, 0.9, 0.1, "triton")
        loss, saved = engine.forward(arguments)
        engine.backward(arguments, saved, loss)

    def half_against_all() -> None:
        numbers = Numbers(temperature, 0.9, 0.1)
        every = engine.make_block(embeddings, labels, numbers)
        half = slice(0, n // 2)
        own = every.part(half)
        engine.statistics(own, every, numbers)
        lse = torch.zeros(case.modalities * (case.modalities - 1), n)
        engine.gradients(own.with_lse(lse[:, half]), every.with_lse(lse), numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call, "device_class", lambda device: target)
        if case.tf32 and target != "gfx942":
            patch.setattr(call, "precision", lambda z: "tf32")
        recorded = aot.record(half_against_all if case.group else forward_and_backward)
    # One strip after the other launches the same kernels.
    return list({launch.name: launch for launch in recorded}.values())


def spill_rule(case: Case, target: str, kernel: str) -> int:
    """What is spilled in "statistics" lies outside its loop over d (read in the sm_90 assembly): vectors of columns.

    Triton 3.6 spills more of them on sm_100.
    """
    return (288 if target == "sm_100" else 128) if kernel == "statistics" else 0


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


@needs_compiler
@pytest.mark.parametrize("labels", ["float32", "int64", None])
def test_large_batches_take_three_launches_a_strip(labels: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch launches as much for one strip as for many: it sorts labels and rows, and sums what is saved."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from cmsbert_fast.kernels.contrastive import call, gradients
    from cmsbert_fast.ops.contrastive.triton import TritonEngine
    from cmsbert_fast.ops.contrastive.types import Call, Saved

    free = {"empty", "new_empty", "detach", "view", "select", "slice", "as_strided", "unbind", "t"}
    monkeypatch.setattr(gradients, "MIN_STRIP", 256)
    monkeypatch.setattr(gradients, "STRIP_BYTES", 1)
    monkeypatch.setattr(call, "device_class", lambda device: "sm_90")

    def backward(n: int) -> tuple[list[str], list[str]]:
        y = None if labels is None else torch.zeros(n, dtype=getattr(torch, labels))
        arguments = Call([torch.zeros(n, 64, dtype=torch.bfloat16)] * 3, y, None, 0.1, 0.9, 0.1, "triton")
        saved = Saved(torch.zeros(6, n), torch.zeros(3, n), torch.zeros(n))
        called: list[str] = []

        class Log(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, given=(), named=None):
                called.append(function.overloadpacket.__name__)
                return function(*given, **(named or {}))

        def run() -> None:
            with Log():
                TritonEngine().backward(arguments, saved, torch.ones(()))

        launched = [launch.name for launch in aot.record(run)]
        return launched, [name for name in called if name not in free]

    for n, strips in ((1100, 5), (2048, 8)):
        launched, called = backward(n)
        assert launched == ["gradient_tile", "gradient_product", "finish"] * strips
        assert sorted(called) == sorted(["ones", "new_zeros"] + (["sort"] + ["index"] * 3 if labels else []))


@needs_compiler
def test_numbers_of_tiles_compile_nothing_anew() -> None:
    """A compile costs seconds, and Triton makes one for every pattern of arguments that are 1 or multiples of 16."""
    from torch.utils._pytree import tree_leaves

    def patterns(n: int) -> dict[str, list[tuple[bool, bool]]]:
        return {
            launch.name: [
                (value == 1, value % 16 == 0)
                for parameter in launch.kernel.params
                if not (parameter.do_not_specialize or parameter.is_constexpr)
                for value in tree_leaves(launch.arguments[parameter.name])
                if type(value) is int
            ]
            for launch in launches(Case(n, 64, "bfloat16"), "sm_90")
        }

    # 128 rows a tile: 9, 33 and 257 tiles, in groups of 1, 3 and 17.
    assert patterns(1040) == patterns(4112) == patterns(32784)


def test_strips_are_linear_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backward pass holds, by its plan, up to a million rows: bounded by so much a row, and a constant."""
    import torch

    from cmsbert_fast.kernels.contrastive import call, gradients

    monkeypatch.setattr(call, "device_class", lambda device: "sm_90")

    def held(n: int) -> int:
        z = torch.empty(n, 768, dtype=torch.bfloat16, device="meta")
        rows = call.side([z] * 3, None, torch.empty(3, n, device="meta"), None)
        tile, product = (call.tile(name, rows, rows) for name in ("gradient_tile", "gradient_product"))
        plan = gradients.plan(rows, rows, tile, product)
        assert plan.splits * product["BK"] <= n
        return 6 * plan.strip * plan.width * 2 + plan.splits * 3 * plan.strip * 768 * 4

    for n in (1025, 4096, 10_000, 2**17, 2**20):
        assert held(n) <= 3072 * n + 3 * gradients.STRIP_BYTES
