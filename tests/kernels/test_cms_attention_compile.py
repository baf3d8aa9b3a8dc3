"""Ahead-of-time compiles of the CMS attention kernels on a machine without a GPU, held to a committed budget.

What is compiled is what the launchers launch, with the committed table of configurations, for every target and dtype.
pytest compiles a fifth of it, spread so that every call is compiled for one target; all of it, and the budget's renewal
after a change of a kernel or of the table, in a few minutes::

    python tests/kernels/test_cms_attention_compile.py --all
    python tests/kernels/test_cms_attention_compile.py --all --write

A kernel may use less than its budget, never more; registers have 10 % more. Whatever it says, a program must fit into
the shared memory, and heads of 64 must not spill on sm_80 and sm_90. Registers are compared only with the
release of Triton that the budget was written with, because each has its own assembler.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

BUDGET = Path(__file__).with_name("cms_attention_budget.json")
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
DTYPES = ("float32", "float16", "bfloat16")


class Case(NamedTuple):
    """One call whose launches are compiled."""

    length: int  # longest sequence
    head_size: int
    dtype: str
    sizes: tuple[int, int]  # frame sizes, 0 = absent
    frames: int = 500
    dropout: float = 0.1
    packed: bool = True
    frames_wanted: bool = False

    def __str__(self) -> str:
        form = "packed" if self.packed else "padded"
        return f"{self.length} x {self.head_size} {self.dtype} {form}, frames {self.frames} x {self.sizes}"


REAL = (47, 74)  # MOSI
CASES = [
    *(Case(n, d, t, REAL) for n in (50, 128) for d in (64, 128) for t in DTYPES),
    *(Case(4096, d, t, (47, 709), 16384, frames_wanted=True) for d in (64, 128) for t in DTYPES),
    *(Case(n, 64, "bfloat16", (128, 128), packed=False, frames_wanted=True) for n in (64, 128)),
    Case(50, 64, "float16", (0, 74), dropout=0.0),
    Case(50, 64, "float16", (0, 0), dropout=0.0),
    Case(700, 64, "float16", (0, 0), packed=False),
]


class Measured(NamedTuple):
    """What one kernel uses."""

    registers: int
    spilled: int  # bytes of stack a thread
    shared: int  # bytes of shared memory a program


def launches(case: Case, target: str) -> list[tuple[Any, dict[str, Any], dict[str, int]]]:
    """The kernels a call launches on ``target``, with their arguments, recorded from the launchers themselves."""
    import torch
    from cmsbert_fast.kernels import cms_attention as kernels

    n, d, heads, batch, dtype = case.length, case.head_size, 12, 2, getattr(torch, case.dtype)
    hidden = heads * d
    lead = (2 * n,) if case.packed else (batch, n)
    frame_lead = (2 * case.frames,) if case.packed else (batch, case.frames)
    cu = torch.tensor([0, n, 2 * n], dtype=torch.int32) if case.packed else None
    # q, k, v and both token gates as a model makes them: columns of one projection, rounded up to 16.
    projected = torch.zeros(*lead, 3 * hidden + 16, dtype=dtype)
    q, k, v = projected[..., : 3 * hidden].unflatten(-1, (3, heads, d)).unbind(-3)

    def modality(i: int, size: int) -> Any:
        if size == 0:
            return None
        return kernels.Modality(
            projected[..., 3 * hidden + i],
            torch.zeros(frame_lead, dtype=dtype),
            torch.zeros(*frame_lead, size, dtype=dtype),
            torch.zeros(hidden, size, dtype=dtype),
            None if cu is None else torch.tensor([0, case.frames, 2 * case.frames], dtype=torch.int32),
            None if case.packed else torch.ones(frame_lead, dtype=torch.bool),
            case.frames,
        )

    visual, acoustic = modality(0, case.sizes[0]), modality(1, case.sizes[1])
    mask = None if case.packed else torch.ones(lead, dtype=torch.bool)
    seed = torch.zeros(1, dtype=torch.int64)
    call = kernels.Call(q, k, v, visual, acoustic, cu, mask, n, "sigmoid", d**-0.5, case.dropout, seed)
    recorded: list[tuple[Any, dict[str, Any], dict[str, int]]] = []
    run, device_class = kernels._run, kernels.device_class
    kernels._run = lambda kernel, grid, arguments, config: recorded.append((kernel, arguments, config))
    kernels.device_class = lambda device: target
    try:
        out, saved = kernels.forward(call)
        kernels.backward(call, torch.zeros(q.shape, dtype=dtype), out, saved, (case.frames_wanted,) * 2)
    finally:
        kernels._run, kernels.device_class = run, device_class
    return recorded


def compile_kernel(kernel: Any, arguments: dict[str, Any], config: dict[str, int], target: str) -> Measured:
    """Compiles one launch as Triton's own launcher would: same types, same alignment hints, same constants."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int32": "*i32", "int64": "*i64"}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    hints: dict[tuple[int, ...], list[list[Any]]] = {}
    options = {key: value for key, value in config.items() if key in ("num_warps", "num_stages", "maxnreg")}
    values = arguments | config
    for i, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        specialized = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialized and type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = names.get(str(value.dtype).split(".")[1], "*u8")
            hints[(i,)] = [["tt.divisibility", 16]]
            if target == "gfx942":
                hints[(i,)].append(["tt.pointer_range", 32])
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            if specialized and isinstance(value, int) and value % 16 == 0:
                hints[(i,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, hints), target=GPUTarget(*TARGETS[target]), options=options
    )
    if target == "gfx942":
        text = compiled.asm["amdgcn"]
        found = {
            key: int(re.search(rf"\.{key}:\s+(\d+)", text)[1]) for key in ("vgpr_count", "private_segment_fixed_size")
        }
        return Measured(found["vgpr_count"], found["private_segment_fixed_size"], compiled.metadata.shared)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"cms_{os.getpid()}.cubin"
    path.write_bytes(compiled.asm["cubin"])
    try:
        usage = subprocess.run([tool, "-res-usage", path], check=True, capture_output=True, text=True).stdout
    finally:
        path.unlink()
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    return Measured(registers, stack, compiled.metadata.shared)


def measure(job: tuple[int, str]) -> dict[str, Measured]:
    """The kernels of one call on one target, by name."""
    case, target = CASES[job[0]], job[1]
    found: dict[str, Measured] = {}
    for kernel, arguments, config in launches(case, target):
        name = kernel.fn.__name__.removesuffix("_kernel")
        used = compile_kernel(kernel, arguments, config, target)
        found[name] = Measured(*map(max, used, found.get(name, used)))  # some are launched once a modality
    return found


def complaints(
    case: Case, target: str, measured: dict[str, Measured], budget: dict[str, list[int]] | None
) -> list[str]:
    """What breaks the rules, one line each. ``budget`` is None where it is another Triton's."""
    found = []
    for kernel, used in measured.items():
        where = f"{target}: {case}: {kernel}"
        if used.shared > SHARED_MEMORY[target]:
            found.append(f"{where}: {used.shared} bytes of shared memory do not fit")
        if budget is None:
            continue
        if used.spilled and case.head_size == 64 and target in ("sm_80", "sm_90"):
            found.append(f"{where}: spills {used.spilled} bytes")
        if kernel not in budget:
            found.append(f"{where}: has no budget; run this file with --all --write")
            continue
        allowed = Measured(*budget[kernel])
        limits = allowed._replace(registers=int(1.1 * allowed.registers))
        found += [
            f"{where}: {name} {u}, budget {limit}"
            for name, u, limit in zip(Measured._fields, used, limits, strict=True)
            if u > limit
        ]
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Compiles the CMS attention kernels and checks what they use.")
    parser.add_argument("--all", action="store_true", help="every call for every target, not a fifth of them")
    parser.add_argument("--write", action="store_true", help="replace the budget by what was measured")
    parser.add_argument("--only", default="", help="calls whose name in the budget contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    options = parser.parse_args(arguments)
    targets = list(TARGETS)
    jobs = [
        (i, target)
        for i in range(len(CASES))
        for j, target in enumerate(targets)
        if (options.all or i % len(targets) == j) and options.only in f"{target}: {CASES[i]}"
    ]
    import triton

    release = ".".join(triton.__version__.split(".")[:2])
    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    if options.write:
        budget["triton"] = release
    comparable = budget.get("triton") == release
    found: list[str] = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for (i, target), measured in zip(jobs, pool.map(measure, jobs), strict=True):
            key = f"{target}: {CASES[i]}"
            if options.write:
                budget[key] = {kernel: list(used) for kernel, used in measured.items()}
                lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(budget.items()))
                BUDGET.write_text(f"{{\n{lines}\n}}\n")
            found += complaints(CASES[i], target, measured, budget.get(key, {}) if comparable else None)
    print("\n".join(found) or f"{len(jobs)} calls within budget")
    return 1 if found else 0


def test_registers_spills_and_shared_memory() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    root = Path(__file__).resolve().parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, __file__], env=environment, cwd=root, capture_output=True, text=True, timeout=1500
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


def test_rules_are_enforced() -> None:
    case = Case(50, 64, "float16", REAL)
    within = {"k": Measured(100, 0, 1000)}
    assert complaints(case, "sm_80", within, {"k": [100, 0, 1000]}) == []
    assert complaints(case, "sm_80", within, {}) != []
    for worse in (Measured(120, 0, 1000), Measured(100, 8, 1000), Measured(100, 0, 1001), Measured(1, 0, 1 << 20)):
        assert complaints(case, "sm_80", {"k": worse}, {"k": [100, 0, 1000]}) != []
    assert complaints(case, "sm_90", {"k": Measured(1, 8, 1)}, {"k": [1, 8, 1]}) != []
    assert complaints(case, "sm_90", {"k": Measured(1, 8, 1)}, None) == []
    assert complaints(case, "sm_90", {"k": Measured(1, 8, 1 << 20)}, None) != []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
