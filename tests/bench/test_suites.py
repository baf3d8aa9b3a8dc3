"""``pytest bench`` from outside, and that a wrong contender has no speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.test_attention import calls, check
from bench.workload import AttentionBatch

ROOT = Path(__file__).resolve().parents[2]


def test_bench_ends_with_a_paired_table_and_keeps_its_numbers(tmp_path):
    kept = tmp_path / "result.json"
    command = [sys.executable, "-m", "pytest", "bench/test_batches.py", "-q", "--benchmark-json", str(kept)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
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
