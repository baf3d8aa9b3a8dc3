"""``python -m bench.gpu`` without a GPU: how it runs stages, a rehearsal by Triton's interpreter, and what it names."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import lines, names, report, tables
from bench.gpu import __main__ as command
from bench.gpu import runner, smoke, stages
from bench.gpu.runner import Context, Stage
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.capability import HAS_TRITON

ROOT = Path(__file__).resolve().parents[2]
CASES = [
    (name, limit) for name, limit in (("facts", 20), ("smoke", 60), ("attention", 60), ("tests", 170), ("loss", 45))
]


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path, "cuda", 1)


def states(context):
    return {name: line["state"] for name, line in runner.states(context.output).items()}


def sleep(context):
    context.record("race", suite="s", case="measured before the end")
    subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])


def test_a_stage_that_fails_hangs_or_dies_does_not_end_the_run(context):
    def fail(_):
        raise ValueError("wrong\nsecond line")

    def die(_):
        import os

        os._exit(7)

    every = [Stage("fails", 60, fail, ""), Stage("hangs", 2, sleep, ""), Stage("dies", 60, die, "")]
    every.append(Stage("works", 60, lambda context: context.record("found", case="it"), ""))
    begin = time.monotonic()
    runner.run_all(every, context, 1000, [])
    assert time.monotonic() - begin < 60  # the one that hangs sleeps longer
    assert states(context) == {"fails": "failed", "hangs": "stopped", "dies": "failed", "works": "done"}
    why = {name: line["why"] for name, line in runner.states(context.output).items()}
    assert why["fails"] == "ValueError: wrong"
    assert why["hangs"] == "it was not ready after 2 s"
    assert "code 7" in why["dies"]
    # What was measured is kept although its stage was stopped.
    assert [line["case"] for line in lines.read(context.path) if line["kind"] in ("race", "found")] == [
        "measured before the end",
        "it",
    ]
    assert "second line" in (context.output / runner.LOG).read_text()


def test_what_is_done_is_not_done_again_and_what_does_not_fit_is_named(context):
    ran = context.output / "ran"

    def note(name):
        def run(_):
            with ran.open("a") as file:
                file.write(name + "\n")

        return run

    every = [Stage(name, limit, note(name), "", always=name == "facts") for name, limit in CASES]
    became = runner.run_all(every, context, 40, ["smoke"])
    assert became == dict(facts="done", smoke="done", attention="done", tests="left out", loss="done")
    assert ran.read_text().split() == ["facts", "attention", "loss"]
    runner.run_all(every, context, 100, [])
    assert ran.read_text().split()[3:] == ["facts", "smoke", "tests"]
    assert set(states(context).values()) == {"done"}


def test_cases_go_on_where_they_were_stopped(context):
    asked = []

    def measure(case):
        asked.append(case)
        if case == 2:
            raise ValueError("no")
        return {"seconds": case}

    with pytest.raises(RuntimeError, match=r"1 failed: 2$"):
        runner.each(context, "some", [1, 2, 3], measure)
    with pytest.raises(RuntimeError, match="1 failed"):
        runner.each(context, "some", [1, 2, 3, 4], measure)
    assert asked == [1, 2, 3, 2, 4]  # what failed is tried again

    def broken(case):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        runner.each(context, "others", [1, 2], broken)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_rehearsal(tmp_path):
    """The stages that measure, at tiny sizes, interpreted; and the report reads what they leave."""
    stages_run = ["smoke", "attention", "loss", "step", "switches", "tune-short"]
    arguments = ["--device", "cpu", "--processes", "1", "--limit", "3000", "--output", tmp_path, "--only", *stages_run]
    result = subprocess.run([sys.executable, "-m", "bench.gpu", *arguments], cwd=ROOT, capture_output=True, text=True)
    log = (tmp_path / runner.LOG).read_text()
    assert result.returncode == 0, result.stdout + result.stderr + log[-3000:]
    found = lines.read(tmp_path / runner.RESULTS)
    assert found[0]["kind"] == "run"
    assert {line["stage"] for line in found if line["kind"] == "stage"} == {"facts", *stages_run}
    of = {kind: [line for line in found if line["kind"] == kind] for kind in ("smoke", "kernels", "tiles")}
    assert all(line["passed"] for line in of["smoke"])
    assert [len(of[kind]) for kind in of] == [3, 10, 1]
    assert {line["suite"] for line in of["kernels"]} == {names.ATTENTION, names.CONTRASTIVE, names.STEP}
    for line in of["kernels"]:
        assert line["eager"] > 0
        assert line["launches"] > 0
        assert line["kernels"]
    (machine,) = report.load(tmp_path).values()
    page = "\n".join(tables.kernel_lines(report._of_kind(machine["results"], "kernels")))
    assert all(f"| {line['case']} | not captured |" in page for line in of["kernels"])


def passes(case, device):
    assert device == "cuda"


def test_smoke_hands_every_case_to_processes(tmp_path, monkeypatch):
    """As on a GPU; what a case does there is replaced."""
    monkeypatch.setattr(smoke, "check_case", passes)
    smoke.run(Context(tmp_path, "cuda", 2))
    found = lines.read(tmp_path / runner.RESULTS)
    assert [line["case"] for line in found] == [str(case) for case in smoke.cases()]
    assert all(line["passed"] for line in found)


def test_every_test_that_a_stage_names_exists(context, monkeypatch):
    """pytest is asked once, for all of them; and with options that it knows."""
    asked = []
    monkeypatch.setattr(stages, "pytest", lambda context, *arguments: asked.append(list(arguments)))
    for stage in stages.STAGES:
        if stage.name.startswith("bench") or stage.name in ("tests", "sanitizer"):
            stage.run(context)
    assert len(asked) == 5
    wanted = sorted({argument for arguments in asked[1:4] for argument in arguments if "::" in argument})
    options = sorted({argument for argument in asked[1] if argument.startswith("--")})
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "-p", "no:cacheprovider"]
    result = subprocess.run([*collect, *options, *wanted], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]
    assert set(wanted) <= set(result.stdout.splitlines())
    assert not context.path.exists()
    ignored = [argument.partition("=")[2] for argument in asked[0] if argument.startswith("--ignore")]
    assert all((ROOT / path).exists() for path in (*ignored, "tests/kernels", "tests/ops", asked[4][0]))


def test_the_goals_are_measured_first():
    first = {stage.name: i for i, stage in enumerate(stages.STAGES)}
    assert max(first["bench-step"], first["bench-attention"], first["bench-loss"]) < first["tune-medium"]
    assert sum(stage.limit for stage in stages.STAGES) > 530 > sum(stage.limit for stage in stages.STAGES[:6])


def test_tiles_that_were_tuned_go_into_the_table_when_asked(tmp_path, monkeypatch, capsys):
    from cmsbert_fast.kernels import tiles

    table = tmp_path / "tiles.json"
    row = {"kernel": "short_forward", "device": "sm_90", "item_size": 2, "at_most": {"tokens": 64, "head_size": 64}}
    row |= {"config": {"HEADS": 1, "num_warps": 4}}
    table.write_text(json.dumps({"cms_attention": [row]}))
    monkeypatch.setattr(tiles, "PATH", table)
    tiles.table.cache_clear()
    better = row | {"at_most": {"tokens": 64, "head_size": 64, "batch": 128}, "config": {"HEADS": 2, "num_warps": 8}}
    lines.append(tmp_path / runner.RESULTS, kind="tiles", case="50 tokens, batch 128", rows=[better])
    try:
        assert command.main(["--output", str(tmp_path), "--write-tiles"]) == 0
    finally:
        tiles.table.cache_clear()
    assert json.loads(table.read_text())["cms_attention"] == [row, better]
    assert "batch" in capsys.readouterr().out


def test_results_of_two_cards_are_not_mixed(tmp_path):
    """Each stands under its own machine, with the ceilings of its own run."""
    path = tmp_path / "gpu.jsonl"
    facts = dict(threads=16, cpus=16, python="3", torch="2", transformers="5", triton="3")
    race = dict(kind="race", suite=names.ATTENTION, case="a case", seconds={"ours": [1.0] * 5}, memory={}, facts={})
    race |= dict(missing={}, dtype="bfloat16", flops=1e9, bytes=1e9)
    for card, rate in (("NVIDIA H200", 4e12), ("NVIDIA H100", 3e12), ("NVIDIA H200", 5e12)):
        rates = dict(copy_bytes_per_second=rate, matrix_flops_per_second={"float32": 1e13, "bfloat16": 8e14})
        lines.begin(path, dict(device=card, **facts, **rates))
        lines.append(path, kind="stage", stage="facts", state="done", seconds=1, why="")
        lines.append(path, **race)
    machines = report.load(tmp_path)
    assert list(machines) == ["NVIDIA H200, 16 threads", "NVIDIA H100, 16 threads"]
    assert [m["results"][0]["machine"]["copy_bytes_per_second"] for m in machines.values()] == [5e12, 3e12]


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_what_warms_the_step_launches_what_layers_launch(monkeypatch):
    from bench.gpu import step
    from tests.kernels import aot

    monkeypatch.setattr(capability, "why_not_triton", lambda device, dtype: None)
    launched = aot.record(lambda: step.compile_layers(torch.device("cpu")))
    ways = ("forward", "backward")
    assert {launch.name for launch in launched} == {
        f"{x}_{way}" for x in ("residual_norm", "bias_gelu") for way in ways
    }


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_switches_take_back_what_they_name(monkeypatch):
    from bench.gpu import switches
    from cmsbert_fast.kernels import tune
    from cmsbert_fast.kernels.cms_attention import aligned, launch
    from cmsbert_fast.kernels.contrastive import call as of_loss
    from cmsbert_fast.ops.contrastive import triton
    from cmsbert_fast.ops.contrastive.types import Call
    from tests.kernels import aot

    monkeypatch.setattr(launch.common, "device_class", lambda device: "sm_90")
    attention, _ = tune.example(tune.Workload(50, 50, 64, 300, "bfloat16", "cpu"))
    labels = torch.tensor([0.5, -1.0])
    loss = Call([torch.zeros(2, 4)] * 3, labels, None, 0.1, 0.9, 0.1, "triton")
    scalars = triton._scalars_of_square(loss)
    side = of_loss.side([torch.zeros(1100, 4)] * 3, None, torch.zeros(3, 1100), None)

    def state():
        launcher = launch.Launcher(attention)
        return {
            "low tiles": (launcher.short_tiles, launcher.config("short_forward")["HEADS"]),
            "aligned rows": len(aot.record(lambda: aligned.aligned(attention))),
            "sorted rows": triton._in_order(loss)[0] is not None,
            "one exponential": of_loss.bound(side, side, scalars),
        }

    before = state()
    assert before == {
        "low tiles": ((16, 32, 64), 6), "aligned rows": 1, "sorted rows": True, "one exponential": True,
    }  # fmt: skip
    for name, take_back in (switches.OF_ATTENTION | switches.OF_LOSS).items():
        with take_back():
            found = state()
        assert [key for key in before if found[key] != before[key]] == [name]
        assert state() == before
