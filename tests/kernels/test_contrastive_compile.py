"""Ahead-of-time compiles of the contrastive kernels on a machine without a GPU, held to a committed budget.

The launches of whole calls are recorded from the launchers and compiled for every target; pytest checks a covering part
of them, so that the suite stays fast. The whole set, and the budget's renewal after a change of a kernel or of a tile::

    python tests/kernels/test_contrastive_compile.py            # check all
    python tests/kernels/test_contrastive_compile.py --write    # measure all, write the budget

A kernel may use fewer registers, less shared memory and fewer spills than budgeted, never more (registers: 10 % more,
as patch releases of the assembler differ).
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

BUDGET = Path(__file__).with_name("contrastive_budget.json")
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_86": ("cuda", 86, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
# What a program may use at most: opt-in shared memory a block (CUDA C++ Programming Guide, table of compute
# capabilities), local data share of a CDNA3 workgroup.
SHARED_MEMORY = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}


class Case(NamedTuple):
    """One forward and backward call."""

    rows: int
    width: int
    dtype: str
    labels: str | None = "float32"


CASES = [
    *(Case(n, 768, t) for n in (128, 512, 4096) for t in ("bfloat16", "float32")),
    Case(128, 768, "float16"),
    Case(4096, 768, "float16"),
    Case(4096, 768, "bfloat16", "int64"),
    Case(128, 768, "bfloat16", None),
    Case(4099, 100, "bfloat16"),
]
# A covering part: every kernel and size class once, on targets in turn.
QUICK = [
    (Case(128, 768, "bfloat16"), "sm_90"),
    (Case(512, 768, "bfloat16"), "sm_86"),
    (Case(4096, 768, "bfloat16"), "gfx942"),
]


class Measured(NamedTuple):
    """What one kernel uses."""

    registers: int
    spilled: int  # bytes of stack a thread
    shared: int  # bytes of shared memory a program


class Launch(NamedTuple):
    """One launch as the launcher made it."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__.strip("_").removesuffix("_kernel")


def record(case: Case, target: str) -> list[Launch]:
    """The kernels that forward and backward launch, with their arguments; nothing runs."""
    import torch
    from cmsbert_fast.kernels import contrastive as kernels
    from triton.runtime.jit import JITFunction

    recorded = []

    def run(self: Any, *positional: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options = {key: named.pop(key) for key in ("num_warps", "num_stages") if key in named}
        arguments = dict(zip(self.arg_names, positional, strict=False)) | named
        recorded.append(Launch(self, arguments, options))

    n = case.rows
    embeddings = [torch.zeros(n, case.width, dtype=getattr(torch, case.dtype)) for _ in range(3)]
    labels = None if case.labels is None else torch.zeros(n, dtype=getattr(torch, case.labels))
    temperature = torch.ones(())
    patch = pytest.MonkeyPatch()
    try:
        patch.setattr(JITFunction, "run", run)
        architecture = kernels.HIP if target == "gfx942" else TARGETS[target][1]
        patch.setattr(kernels, "_architecture", lambda device: architecture)
        loss, *saved = kernels.forward(embeddings, labels, temperature, 0.0, 0.9, 0.1)
        kernels.backward(loss, embeddings, labels, temperature, 0.0, 0.9, 0.1, *saved)
    finally:
        patch.undo()
    # One strip after the other launches the same kernels.
    return list({launch.name: launch for launch in recorded}.values())


def measure(launch: Launch, target: str) -> Measured:
    """Compiles one launch as Triton's own launcher would: same types, same alignment hints, same constants."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int32": "*i32", "int64": "*i64"}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    hints: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = names[str(value.dtype).split(".")[1]]
            hints[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                hints[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, hints)
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=launch.options)
    if target == "gfx942":
        text = compiled.asm["amdgcn"]
        used = [int(re.search(rf"\.{key}:\s+(\d+)", text)[1]) for key in ("vgpr_count", "private_segment_fixed_size")]
        return Measured(*used, compiled.metadata.shared)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"contrastive_{os.getpid()}.cubin"
    path.write_bytes(compiled.asm["cubin"])
    try:
        usage = subprocess.run([tool, "-res-usage", path], check=True, capture_output=True, text=True).stdout
    finally:
        path.unlink()
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    return Measured(registers, stack, compiled.metadata.shared)


def key(case: Case, launch: Launch, target: str) -> str:
    return f"{target} {launch.name} n={case.rows} d={case.width} {case.dtype} labels={case.labels}"


def over_budget(name: str, measured: Measured, budget: dict[str, list[int]], target: str) -> list[str]:
    """What is wrong with one compiled kernel, in words."""
    if name not in budget:
        return [f"{name}: no budget; run this file with --write"]
    allowed = Measured(*budget[name])
    limits = {"registers": allowed.registers * 1.1, "spilled": allowed.spilled, "shared": allowed.shared}
    limits["shared"] = min(limits["shared"], SHARED_MEMORY[target])
    values = measured._asdict()
    return [f"{name}: {values[what]} {what}, budget {limit}" for what, limit in limits.items() if values[what] > limit]


def check(case: Case, target: str, budget: dict[str, list[int]]) -> list[str]:
    launches = record(case, target)
    return [
        problem
        for launch in launches
        for problem in over_budget(key(case, launch, target), measure(launch, target), budget, target)
    ]


needs_compiler = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles; the interpreter is on")


@needs_compiler
@pytest.mark.parametrize(("case", "target"), QUICK, ids=str)
def test_within_budget(case: Case, target: str) -> None:
    assert check(case, target, json.loads(BUDGET.read_text())) == []


def test_budget_holds_on_every_target() -> None:
    budget = {name: Measured(*values) for name, values in json.loads(BUDGET.read_text()).items()}
    assert len(budget) > 200
    assert {name.split()[0] for name in budget} == set(TARGETS)
    # What is spilled in "statistics" lies outside its loop over d (read in the sm_90 assembly): vectors of columns.
    assert [name for name, used in budget.items() if used.spilled > (128 if "statistics" in name else 0)] == []
    assert [name for name, used in budget.items() if used.shared > SHARED_MEMORY[name.split()[0]]] == []


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
        launches = record(Case(128, 768, dtype, labels), "sm_90")
    assert [launch.name for launch in launches] == ["statistics", "loss", "gradient_tile", "gradient_product"]
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


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    if "--write" in sys.argv:
        wanted = sys.argv[2:] or list(TARGETS)
        budget = {}
        for target in wanted:
            for case in CASES:
                for launch in record(case, target):
                    budget[key(case, launch, target)] = list(measure(launch, target))
                    print(key(case, launch, target), budget[key(case, launch, target)], flush=True)
        if wanted == list(TARGETS):
            lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(used)}" for name, used in sorted(budget.items()))
            BUDGET.write_text("{\n" + lines + "\n}\n")
        return
    budget = json.loads(BUDGET.read_text())
    problems = [problem for target in TARGETS for case in CASES for problem in check(case, target, budget)]
    print("\n".join(problems) or "all within budget")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
