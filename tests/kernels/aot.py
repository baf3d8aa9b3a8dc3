"""Ahead-of-time compiles of the Triton kernels on a machine without a GPU, held to committed budgets.

A suite (``test_cms_attention_compile``, ``test_contrastive_compile``) names calls; what they launch is recorded from
the launchers themselves and compiled for every target as Triton's own launcher would. The budget holds a fingerprint of
each call's programs and of Triton beside what they use: only programs whose files have changed since are compiled, a
step of its own in continuous integration. All of them (``--all``) take ten minutes or more on two cores. pytest always
compiles a covering part. After a change of a kernel or of a tile, ``--write`` renews the budget::

    python -m tests.kernels.aot
    python -m tests.kernels.aot --all
    python -m tests.kernels.aot cms_attention --write
    python -m tests.kernels.aot contrastive layer --write --only gfx942

A kernel may use less than its budget, never more; registers have 10 % more. Registers and spills are compared with the
budget only under the release of Triton that it was written with, because each has its own assembler. Whatever the
release and the budget, a program must fit into the shared memory, and spill no more than its suite's rule allows.
"""

import argparse
import ast
import functools
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import pytest

SUITES = {name: f"tests.kernels.test_{name}_compile" for name in ("cms_attention", "contrastive", "layer")}
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
ROOT = Path(__file__).resolve().parents[2]
FINGERPRINT = "fingerprint"  # of a call's programs, among its kernels in the budget

needs_compiler = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles; the interpreter is on")


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


class Suite(NamedTuple):
    """The calls of one operator."""

    cases: Sequence[Any]  # str(case) is its name in the budget
    quick: Sequence[tuple[Any, str]]  # (case, target) that pytest compiles
    launches: Callable[[Any, str], list[Launch]]  # of a case on a target
    spill_rule: Callable[[Any, str, str], int | None]  # (case, target, kernel) -> bytes allowed, None = no rule
    budget: Path

    def read_budget(self) -> dict[str, Any]:
        return json.loads(self.budget.read_text()) if self.budget.exists() else {}


def suite(name: str) -> Suite:
    return importlib.import_module(SUITES[name]).SUITE


def record(call: Callable[[], Any]) -> list[Launch]:
    """Every launch of ``call``; nothing runs."""
    from triton.runtime.jit import JITFunction

    recorded: list[Launch] = []

    def run(self: Any, *positional: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options = {key: named.pop(key) for key in ("num_warps", "num_stages") if key in named}
        recorded.append(Launch(self, dict(zip(self.arg_names, positional, strict=False)) | named, options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        call()
    return recorded


@functools.cache
def source_files(module: str) -> list[Path]:
    """The file of a module of ``cmsbert_fast.kernels`` and, by name, of those of them that it imports."""
    found: dict[str, Path] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        if name in found or not name.startswith("cmsbert_fast.kernels."):
            continue
        try:
            spec = find_spec(name)
        except ModuleNotFoundError:  # below a module: something in it
            continue
        if spec is None or spec.origin is None:
            continue
        found[name] = Path(spec.origin)
        for node in ast.walk(ast.parse(found[name].read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                pending += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                pending += [alias.name for alias in node.names]
    return [path for _, path in sorted(found.items())]


class Program(NamedTuple):
    """What Triton compiles of one launch."""

    source: Any
    target: Any
    options: Any

    @property
    def fingerprint(self) -> str:
        """Of what decides the result: the kernel's source, types, constants, options, the versions of Triton and of its
        tools; not of Triton's environment variables.

        Triton's own key of a kernel depends on which others were asked for theirs before.
        """
        import triton
        from triton.compiler import make_backend

        kernel, module = self.source.name, self.source.fn.fn.__module__
        sources = [path.read_text(encoding="utf-8") for path in source_files(module)]
        of_arguments = (self.source.signature, self.source.constants, self.source.attrs)
        arguments = (sorted(map(repr, values.items())) for values in of_arguments)
        # Libraries have paths, and are Triton's own.
        options = sorted((name, str(x)) for name, x in self.options.__dict__.items() if name != "extern_libs")
        parts = (triton.__version__, make_backend(self.target).hash(), module, kernel, sources, *arguments, options)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def compile(self) -> Any:
        import triton

        return triton.compile(self.source, target=self.target, options=self.options.__dict__)


def program_of(launch: Launch, target: str) -> Program:
    """As Triton's own launcher would compile it: same types, same alignment hints, same constants."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel, gpu = launch.kernel, GPUTarget(*TARGETS[target])
    backend = make_backend(gpu)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(**launch.arguments, **launch.options)
    parsed, *source = kernel._pack_args(backend, options, bound, specialization, options)
    return Program(ASTSource(kernel, *source), gpu, parsed)


def compile_launch(launch: Launch, target: str) -> Any:
    return program_of(launch, target).compile()


def measure(program: Program, target: str) -> Measured:
    """Registers, spills and shared memory of one program."""
    import triton

    compiled = program.compile()
    if target == "gfx942":
        text = compiled.asm["amdgcn"]
        used = [int(re.search(rf"\.{key}:\s+(\d+)", text)[1]) for key in ("vgpr_count", "private_segment_fixed_size")]
        return Measured(*used, compiled.metadata.shared)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    return Measured(registers, stack, compiled.metadata.shared)


class MeasuredCall(NamedTuple):
    """One call on one target.

    Attributes:
        fingerprint: Of its programs.
        kernels: By name, the most of each where one is launched several times; None: the programs are known.
    """

    fingerprint: str
    kernels: dict[str, Measured] | None


def measure_call(job: tuple[str, int, str, str | None]) -> MeasuredCall:
    """Compiles a call's programs, unless their fingerprint is the one given."""
    name, index, target, known = job
    launches = suite(name).launches(suite(name).cases[index], target)
    programs = [program_of(launch, target) for launch in launches]
    fingerprint = hashlib.sha256("\n".join(p.fingerprint for p in programs).encode()).hexdigest()[:16]
    if fingerprint == known:
        return MeasuredCall(fingerprint, None)
    found: dict[str, Measured] = {}
    for launch, program in zip(launches, programs, strict=True):
        used = measure(program, target)
        found[launch.name] = Measured(*map(max, used, found.get(launch.name, used)))
    return MeasuredCall(fingerprint, found)


def complaints(
    rules: Suite, case: Any, target: str, measured: dict[str, Measured], budget: dict[str, list[int]] | None
) -> list[str]:
    """What breaks the rules, one line each. ``budget`` is None where it is another Triton's."""
    found = []
    for kernel, used in measured.items():
        where = f"{target}: {case}: {kernel}"
        if used.shared > SHARED_MEMORY[target]:
            found.append(f"{where}: {used.shared} bytes of shared memory do not fit")
        allowed_spill = rules.spill_rule(case, target, kernel)
        if allowed_spill is not None and used.spilled > allowed_spill:
            found.append(f"{where}: spills {used.spilled} bytes, {allowed_spill} at most")
        if budget is None:
            continue
        if kernel not in budget:
            found.append(f"{where}: has no budget; renew it with --write")
            continue
        allowed = Measured(*budget[kernel])
        limits = allowed._replace(registers=int(1.1 * allowed.registers))
        found += [
            f"{where}: {name} {u}, budget {limit}"
            for name, u, limit in zip(Measured._fields, used, limits, strict=True)
            if u > limit
        ]
    return found


class Checked(NamedTuple):
    """What a check found.

    Attributes:
        complaints: What breaks the rules, one line each.
        compiled: Number of calls whose programs were compiled.
        renewable: Whether these are within a budget of this release of Triton.
    """

    complaints: list[str]
    compiled: int
    renewable: bool = False


def check(
    name: str, jobs: list[tuple[Any, str]], processes: int, write: bool = False, compile_all: bool = False
) -> Checked:
    """Compiles what changed of (case, target) pairs of a suite, or all, and holds it to the rules."""
    import triton

    rules = suite(name)
    release = ".".join(triton.__version__.split(".")[:2])
    budget = rules.read_budget()
    if write and budget.get("triton") != release:
        budget = {"triton": release}
    comparable = budget.get("triton", release) == release  # no budget at all: everything lacks one
    if not comparable:
        print(f"{name}: budget of Triton {budget['triton']}, this is {release}: only the fixed rules are checked")
    found, compiled = [], 0
    calls = [budget.get(f"{target}: {case}", {}) for case, target in jobs]
    known = [None if compile_all else call.get(FINGERPRINT) for call in calls]
    work = [(name, rules.cases.index(case), target, of) for (case, target), of in zip(jobs, known, strict=True)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for (case, target), call, measured in zip(jobs, calls, pool.map(measure_call, work), strict=True):
            allowed = {kernel: used for kernel, used in call.items() if kernel != FINGERPRINT}
            kernels = measured.kernels
            if kernels is None:
                kernels = {kernel: Measured(*used) for kernel, used in allowed.items()}
            else:
                compiled += 1
            if write:
                allowed = {kernel: list(used) for kernel, used in kernels.items()}
                budget[f"{target}: {case}"] = {FINGERPRINT: measured.fingerprint, **allowed}
                lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(budget.items()))
                rules.budget.write_text(f"{{\n{lines}\n}}\n")
            found += complaints(rules, case, target, kernels, allowed if comparable else None)
    return Checked(found, compiled, compiled > 0 and comparable and not found)


def run_quick(name: str) -> None:
    """What pytest checks of a suite, in a process of its own, where Triton compiles even if this one interprets."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.aot", name, "--quick"]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Compiles the Triton kernels and checks what they use.")
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"{', '.join(SUITES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="only what pytest compiles")
    parser.add_argument("--all", action="store_true", help="compile what is unchanged, too")
    parser.add_argument("--write", action="store_true", help="replace the budget by what was measured")
    parser.add_argument("--only", default="", help="calls whose name in the budget contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    options = parser.parse_args(arguments)
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"no suite is called {', '.join(sorted(unknown))}; choose from {', '.join(SUITES)}")
    found, wanted = [], 0
    for name in options.suites or SUITES:
        rules = suite(name)
        every = [(case, target) for case in rules.cases for target in TARGETS]
        jobs = [job for job in (rules.quick if options.quick else every) if options.only in f"{job[1]}: {job[0]}"]
        start = time.monotonic()
        checked = check(name, jobs, options.jobs, options.write, options.all or options.quick)
        found += checked.complaints
        wanted += len(jobs)
        seconds = time.monotonic() - start
        print(f"{name}: {len(jobs)} calls, {checked.compiled} of them compiled, in {seconds:.0f} s", flush=True)
        if checked.renewable and not (options.all or options.quick or options.write):
            print("Their programs are not those of the budget; --write saves compiling them again.", flush=True)
    if not wanted:
        parser.error(f"no call's name contains {options.only!r}")
    print("\n".join(found) or "all within budget")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
