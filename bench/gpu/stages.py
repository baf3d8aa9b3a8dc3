"""The stages, those that are worth most first."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from bench import lines
from bench.gpu.runner import Context, Stage, side_by_side

ROOT = Path(__file__).resolve().parents[2]
COMPILES = (
    "test_aot.py",
    "test_cms_attention_compile.py",
    "test_contrastive_compile.py",
    "test_layer_compile.py",
    "test_sanitizer.py",
    "cpu",
)
# Seconds that a race may take beyond its fewest rounds.
RACE = 2.0


def facts(context: Context) -> None:
    """What the machine is, and its ceilings."""
    import torch

    from bench import measure

    if context.rehearsal:
        machine = dict(device="a rehearsal", threads=1, cpus=1, python="", torch="", transformers="", triton=None)
        machine |= dict(copy_bytes_per_second=1e9, matrix_flops_per_second={"float32": 1e9, "bfloat16": 1e9})
    else:
        machine = measure.machine(torch.device("cuda"))
    lines.begin(context.path, machine)


def warm(context: Context) -> None:
    """Compiles what stages 3, 5 and 6 time."""
    if context.rehearsal:
        return
    import torch

    from bench.gpu import attention, loss, step, switches

    jobs: list[tuple[object, object]] = [
        (attention.compile_case, attention.Case(kind, 4, True)) for kind in ("mosi", 50, 128, 512)
    ]
    jobs += [(attention.compile_case, attention.Case(n, 4, True, varlen=True)) for n in (128, 512)]
    jobs += [(loss.compile_case, n) for n in loss.ROWS]
    jobs += [(step.compile_layers, torch.device("cuda"))]
    jobs += [(switches.compile_case, case) for part in switches.cases() for case in part]
    failed = [str(job[1]) for job, why in side_by_side(_call, jobs, context.processes) if why is not None]
    if failed:
        raise RuntimeError(f"not compiled: {', '.join(failed)}")


def _call(job: tuple[object, object]) -> None:
    job[0](job[1])  # type: ignore[operator]


def smoke(context: Context) -> None:
    from bench.gpu import smoke

    smoke.run(context)


def attention(context: Context) -> None:
    from bench.gpu import attention

    attention.run(context)


def loss(context: Context) -> None:
    from bench.gpu import loss

    loss.run(context)


def switches(context: Context) -> None:
    from bench.gpu import switches

    switches.run(context)


def step(context: Context) -> None:
    from bench.gpu import step

    step.run(context)


def pytest(context: Context, *arguments: str) -> None:
    """Runs pytest; the log says what failed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    print(" ".join(command), flush=True)
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        raise RuntimeError(f"pytest ended with code {code}; {context.output.name}/log.txt says what failed")


def tests(context: Context) -> None:
    """The tests that use a GPU; their outcomes into ``junit.xml``, and the failures into the results."""
    junit = context.output / "junit.xml"
    ignored = [f"--ignore=tests/kernels/{name}" for name in COMPILES]
    spread = ["-n", str(context.processes), "--dist", "worksteal"]
    try:
        pytest(context, "tests/kernels", "tests/ops", *ignored, "-v", f"--junitxml={junit}", *spread)
    finally:
        if junit.exists():
            suite = ElementTree.parse(junit).getroot()
            failed = [
                f"{case.get('classname')}.{case.get('name')}"
                for case in suite.iter("testcase")
                if case.find("failure") is not None or case.find("error") is not None
            ]
            count = sum(case.find("skipped") is None for case in suite.iter("testcase"))
            context.record("tests", ran=count, failed=failed)


def tune(context: Context, tokens: int, batches: Sequence[int]) -> None:
    """Tiles of one shape class for some batches; into the results, not into the table."""
    from cmsbert_fast.kernels import tune

    if context.rehearsal:
        tune.CANDIDATES = {"short_forward": {name: v[:1] for name, v in tune.CANDIDATES["short_forward"].items()}}
        tokens, batches = 5, [2]
    for batch in context.missing("tiles", [f"{tokens} tokens, batch {n}" for n in batches]):
        count = int(batch.rpartition(" ")[2])
        if context.rehearsal:
            work = tune.Workload(tokens, tokens, 16, count, "float16", "cpu")
            rows, left_out = tune.find(work, 0, _seconds)
        else:
            work = tune.Workload(tokens, tokens, 64, count, "bfloat16")
            rows, left_out = tune.find(work, context.processes)
        context.record("tiles", case=batch, rows=rows, left_out=dict(left_out))


def _seconds(run: object) -> float:
    begin = time.perf_counter()
    run()  # type: ignore[operator]
    return time.perf_counter() - begin


def tune_short(context: Context) -> None:
    tune(context, 50, [128, 4096])


def tune_medium(context: Context) -> None:
    tune(context, 128, [512])


def race(context: Context, *tests: str) -> None:
    """Suites of ``pytest bench``; what is raced already is left out."""
    pytest(context, *tests, "-q", "-n", "0", f"--lines={context.path}", f"--seconds={RACE}")


def race_steps(context: Context) -> None:
    names = ("step_of_the_papers_batch", "variants_of_the_papers_batch", "step", "variants", "where_the_time_goes")
    race(context, *(f"bench/test_step.py::test_{name}" for name in names))


def race_attention(context: Context) -> None:
    """What the goals want first."""
    file, passes = "bench/test_attention.py", ("forward", "forward + backward")
    first = [f"{file}::test_attention[mosi-4096-{name}]" for name in passes]
    first += [f"{file}::test_with_projections[{shape}-{name}]" for shape in SIZES for name in passes]
    rest = [f"{file}::test_attention[{shape}-{name}]" for shape in SIZES[1:] for name in passes]
    race(context, *first, *rest)


SIZES = ("mosi-4096", "mosi-32", "mosi-1024", "50-1024", "128-512", "512-128", "mosi-128", "50-32", "128-32", "512-16")


def race_loss(context: Context) -> None:
    race(context, *(f"bench/test_contrastive.py::test_contrastive[{n}-smoothed]" for n in (32768, 128, 1024, 4096)))


def sanitizer(context: Context) -> None:
    pytest(context, "tests/kernels/test_sanitizer.py", "-m", "cuda", "-v", "-n", str(min(4, context.processes)))


STAGES = [
    Stage("facts", 20, facts, "versions, copy, matrix rate", always=True),
    Stage("warm", 60, warm, "compiled variants; with --warm only"),
    Stage("smoke", 60, smoke, "every kernel against float64"),
    Stage("attention", 60, attention, "ten shapes by kernel, graph, eager, host"),
    Stage("tests", 170, tests, "the tests that use a GPU"),
    Stage("loss", 45, loss, "n = 128 to 32,768 by kernel"),
    Stage("step", 60, step, "systems at 32 and 128: host, busy, launches"),
    Stage("switches", 45, switches, "attention and loss without each change made unmeasured"),
    Stage("tune-short", 75, tune_short, "tiles up to 64 tokens"),
    Stage("bench-step", 90, race_steps, "rows of the goals: step"),
    Stage("bench-attention", 90, race_attention, "rows of the goals: attention"),
    Stage("bench-loss", 60, race_loss, "rows of the goals: loss"),
    Stage("tune-medium", 120, tune_medium, "tiles up to 128 tokens"),
    Stage("sanitizer", 150, sanitizer, "compute-sanitizer's four tools"),
]
