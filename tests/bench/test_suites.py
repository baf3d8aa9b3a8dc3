"""``pytest bench`` from outside, and that a wrong contender has no speed."""

import argparse
import functools
import inspect
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from bench import conftest, lines, names, report, workload
from bench import test_attention as attention
from bench import test_batches as batches
from bench import test_contrastive as contrastive
from bench import test_inference as inference
from bench import test_step as step
from bench.test_attention import calls, calls_with_projections, check
from bench.workload import AttentionBatch

ROOT = Path(__file__).resolve().parents[2]


def test_bench_ends_with_a_paired_table_and_keeps_its_numbers(tmp_path):
    kept = tmp_path / "result.json"
    command = [sys.executable, "-m", "pytest", "bench/test_batches.py", "-k", "words", "-q", "--benchmark-json"]
    # pytest-benchmark measures nothing where pytest-xdist runs tests side by side.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}
    run = subprocess.run([*command, kept], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "paired comparison" in run.stdout
    assert "padded to 50 by hand" in run.stdout
    file = json.loads(kept.read_text())
    assert file["machine_info"]["copy_bytes_per_second"] > 1e8
    assert "node" not in file["machine_info"]  # nobody's host name is published
    benchmark = file["benchmarks"][0]
    (result,) = benchmark["extra_info"]["results"]
    rounds = {len(times) for times in result["seconds"].values()}
    assert len(result["seconds"]) == 2
    assert len(rounds) == 1
    assert benchmark["stats"]["rounds"] == rounds.pop()
    # pytest-benchmark's own statistics are those of the first contender, ours.
    first = next(iter(result["seconds"].values()))
    assert benchmark["stats"]["min"] == pytest.approx(min(first))


def test_results_are_kept_one_by_one_and_not_measured_again(tmp_path):
    """As JSON lines, which the report reads; what a kill cut off is measured again, what is finished is not."""
    kept = tmp_path / "result.jsonl"
    command = [sys.executable, "-m", "pytest", "bench/test_batches.py", "-k", "words", "-q", "--seconds", "0.1"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}

    def run():
        arguments = dict(cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        return subprocess.run([*command, "--lines", kept], **arguments).stdout

    assert "1 passed" in run()
    (found,) = lines.runs(kept)
    (machine,) = report.load(tmp_path).values()
    run_of = {"machine": found["machine_info"], "datetime": found["datetime"]}
    assert machine["results"] == [found["benchmarks"][0]["extra_info"]["results"][0] | run_of]
    whole = kept.read_text()
    assert "passed" not in run()
    assert kept.read_text() == whole
    kept.write_text(whole[: whole.rindex("finished")])  # killed before the last line was whole
    assert lines.finished(kept) == set()
    lines.append(kept, kind="finished", test="a test")
    assert lines.finished(kept) == {"a test"}
    assert len(lines.read(kept)) == len(whole.splitlines())


def test_compiled_contenders_run_on_a_gpu_only_if_asked_for():
    names_of = dict.fromkeys([names.OURS, names.LEAN, names.LEAN_COMPILED, names.AUGMENTED_COMPILED])
    on = {device: conftest.Race(None, torch.device(device)).without_compiled(names_of) for device in ("cpu", "cuda")}
    assert on["cpu"] == {}
    assert list(on["cuda"]) == [names.LEAN_COMPILED, names.AUGMENTED_COMPILED]
    asked = conftest.Race(None, torch.device("cuda"), argparse.Namespace(compile=True, seconds=None))
    assert asked.without_compiled(names_of) == {}


def test_a_wrong_contender_stops_the_case():
    batch = AttentionBatch.draw([3, 5], [3, 5], torch.device("cpu"), torch.float32, 2, 4, (3, 5))
    runs = calls(batch, True, torch.randn_like(batch.inputs[0]))
    runs = {name: runs[name] for name in ("ours", "torch backend", "literal reference, padded")}
    check(runs, batch, 1e-4)
    right = runs["torch backend"]

    def wrong():
        z, gradients = right()
        return z, (*gradients[:-1], gradients[-1] * 1.01)

    with pytest.raises(AssertionError, match="torch backend and ours differ"):
        check(runs | {"torch backend": wrong}, batch, 1e-4)


@pytest.fixture
def varlen_on_a_cpu(monkeypatch):
    """PyTorch's varlen attention, sequence by sequence."""

    def attend(query, key, value, cu_q, cu_k, max_q, max_k):
        assert torch.equal(cu_q, cu_k)
        assert max_q == max_k == int(cu_q.diff().max())
        parts = [slice(a, b) for a, b in itertools.pairwise(cu_q.tolist())]
        heads = [[x[part].transpose(0, 1) for x in (query, key, value)] for part in parts]
        return torch.cat([torch.nn.functional.scaled_dot_product_attention(*x).transpose(0, 1) for x in heads])

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attend)
    monkeypatch.setattr(attention, "why_not_varlen", lambda example: None)


def test_varlen_attention_takes_what_its_rivals_give_it():
    """Of the installed PyTorch; a GPU is needed to run it."""
    parameters = list(inspect.signature(varlen_attn).parameters)
    assert parameters[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


def test_varlen_rivals_compute_the_same(varlen_on_a_cpu):
    batch = AttentionBatch.draw([3, 50, 7], [3, 50, 7], torch.device("cpu"), torch.float32)
    runs = calls(batch, True, torch.randn_like(batch.inputs[0]))
    assert f"{attention.TEXT_ONLY}: varlen attention" in runs
    check({name: runs[name] for name in (names.OURS, names.VARLEN)}, batch, 1e-4)


def test_the_shift_inside_the_projections_is_the_same(varlen_on_a_cpu):
    batch = AttentionBatch.draw([3, 50, 7], [3, 50, 7], torch.device("cpu"), torch.float32)
    runs = calls_with_projections(batch, True, torch.randn_like(batch.inputs[0]))
    assert names.AUGMENTED_VARLEN in runs
    check({name: run for name, run in runs.items() if "compile" not in name}, batch, 1e-4)


class OneRound:
    """In place of the race: every contender runs once, compiled ones excepted."""

    compiles = True

    def without_compiled(self, contenders):
        return {}

    def __init__(self):
        self.results = []

    def __call__(self, suite, case, contenders, *, missing=None, **options):
        assert not set(contenders) & set(missing or {})
        for name, run in contenders.items():
            if "compile" not in name:
                run()
        self.results.append((suite, case, {*contenders, *(missing or {})}))

    def growth(self, suite, case, quantity, contenders, **options):
        for run in contenders.values():
            run()
        self.results.append((suite, case, set()))

    def record(self, **result):
        self.results.append((result["suite"], result["case"], set(result["seconds"])))

    def skip(self, suite, case, why):
        self.results.append((suite, case, set()))


@pytest.fixture(scope="module")
def measured():
    """The contenders of all cases in ``bench/results``, by suite and case."""
    return {
        (result["suite"], result["case"]): {*result.get("seconds", {}), *result.get("missing", {})}
        for machine in report.load().values()
        for result in machine["results"]
    }


@pytest.mark.parametrize(
    "suite",
    [
        functools.partial(attention.test_attention, kind="mosi", batch_size=16, backward=True),
        functools.partial(attention.test_attention, kind=512, batch_size=128, backward=False),  # too large: skipped
        functools.partial(attention.test_with_projections, kind="mosi", batch_size=16, backward=True),
        functools.partial(contrastive.test_contrastive, n=64, smoothing=0.9),
        functools.partial(contrastive.test_contrastive, n=64, smoothing=None),
        functools.partial(contrastive.test_contrastive, n=65536, smoothing=None),
        functools.partial(inference.test_inference, batch_size=1),
        functools.partial(inference.test_inference, batch_size=3),
        batches.test_from_words,
        batches.test_prepared,
        step.test_step,
        step.test_bfloat16,
        step.test_step_of_the_reference,
        step.test_step_compiled,
        step.test_variants,
        step.test_engineering,
        step.test_growth_with_batch,
        step.test_where_the_time_goes,
        step.test_share_of_the_loss,
    ],
    ids=lambda suite: ",".join(
        [getattr(suite, "func", suite).__name__, *map(str, getattr(suite, "keywords", {}).values())]
    ),
)
def test_every_suite_runs(suite, monkeypatch, measured):
    """On a small model; speed is not looked at. Names are those that ``bench/results`` keeps."""
    for module in (step, inference):
        monkeypatch.setattr(module, "make_config", functools.partial(workload.make_config, "tiny"))
    if getattr(suite, "keywords", {}).get("batch_size") == 1:  # the other batch is inferred by compiled code
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    race = OneRound()
    suite(race, torch.device("cpu"))
    ((name, case, contenders),) = race.results
    assert name in names.SUITES
    if getattr(suite, "keywords", {}).get("batch_size") != 3:  # which nobody measures
        since = {
            contender for contender in contenders if contender.startswith(names.RUNTIMES)
        }  # raced on no machine yet
        assert contenders - since <= measured[name, case]
