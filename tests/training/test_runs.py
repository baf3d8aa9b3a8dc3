"""Runs in processes of their own: ranks, kills, signals, NaN, torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cmsbert_fast.training import checkpoint
from cmsbert_fast.training.batches import epoch_batches
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.lock import locked

SLOW_STEPS = """
import time, torch
step = torch.optim.AdamW.step
torch.optim.AdamW.step = lambda *a, **k: (time.sleep(0.05), step(*a, **k))[1]
"""
# The 7th step's labels are NaN. With accumulation or evaluation in between this would count them too; there is neither.
NAN_LABELS = """
from cmsbert_fast.training.batches import Batches
load, count = Batches.load, [0]
def broken(self, indices, labels=True):
    inputs = load(self, indices, labels)
    count[0] += labels
    if count[0] == 7:
        inputs["labels"] = inputs["labels"] * float("nan")
    return inputs
Batches.load = broken
"""
# The third checkpoint is cut in the middle by a kill.
KILLED_WHILE_SAVING = """
import os, signal, torch
save, count = torch.save, [0]
def cut(state, path):
    save(state, path)
    count[0] += 1
    if count[0] == 3:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = cut
"""
# Prints what run() returns.
RETURNED = """
import json
from cmsbert_fast.training import runs
run = runs.run
def telling(*arguments, **options):
    result = run(*arguments, **options)
    print("returned", json.dumps(result))
    return result
runs.run = telling
"""


@pytest.fixture(scope="module")
def base(corpus_folder: Path, bert: Path) -> list:
    """Arguments of a run with dropout: 3 epochs of 4 steps, a checkpoint every third step and after every epoch."""
    arguments = ["--data", corpus_folder, "--model", bert, "--epochs", 3, "--batch-size", 8, "--learning-rate", 1e-3]
    return [*arguments, "--checkpoint-every-steps", 3]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, start_run, base) -> Callable:
    """The run of ``base`` on so many ranks, from start to end."""
    runs = {}

    def run(ranks: int):
        if ranks not in runs:
            runs[ranks] = start_run(tmp_path_factory.mktemp("undisturbed"), base, ranks, before=RETURNED)
            assert runs[ranks].wait() == [0] * ranks, runs[ranks].errors()
        return runs[ranks]

    return run


def assert_same(run, other):
    """Losses, validation and test results are equal to the bit."""
    for event in ("start", "train", "valid", "test"):
        assert run.records(event) == other.records(event)
    ours, theirs = (next(r.folder.glob("out/*/*/predictions.csv")).read_bytes() for r in (run, other))
    assert ours == theirs


def test_ranks_change_rounding_only(tmp_path, start_run, make_corpus, bert_without_dropout):
    # Batches of 9, 8 and 8 examples, which no number of ranks divides; fewer validation examples than ranks.
    data = make_corpus(tmp_path / "data", sizes={"train": 25, "valid": 3, "test": 9})
    arguments = ["--data", data, "--model", bert_without_dropout, "--epochs", 2, "--batch-size", 9]
    runs = [start_run(tmp_path / str(ranks), arguments, ranks) for ranks in (1, 2, 4)]
    assert [run.wait() for run in runs] == [[0], [0] * 2, [0] * 4], [run.errors() for run in runs]
    assert not any("Warning" in run.errors(rank) for run in runs for rank in range(len(run.processes)))
    one, *more = runs
    assert len(one.records()) == 6
    for run in more:
        for event in ("start", "train", "valid", "test"):
            for ours, theirs in zip(run.records(event), one.records(event), strict=True):
                assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


def test_every_rank_returns_the_results(undisturbed):
    run = undisturbed(2)
    first, second = (
        json.loads(line.removeprefix("returned "))
        for line in (run.output(0) + run.output(1)).splitlines()
        if line.startswith("returned ")
    )
    assert first == second == json.loads(next(run.folder.glob("out/*/*/results.json")).read_text())
    assert first["seconds"] > 0


@pytest.mark.parametrize(("ranks", "lines"), [(1, 2), (1, 8), (2, 9)])
def test_killed_and_resumed(tmp_path, start_run, base, undisturbed, ranks, lines):
    start_run(tmp_path, base, ranks, before=SLOW_STEPS).kill_after(lines)
    saved = list(tmp_path.glob("out/*/*/checkpoint.pt"))
    assert [torch.load(path, weights_only=True)["progress"]["step"] for path in saved] in ([], [3], [4], [6], [8])
    run = start_run(tmp_path, [*base, "--resume"], ranks)
    assert run.wait() == [0] * ranks, run.errors()
    assert_same(run, undisturbed(ranks))


def test_killed_while_saving(tmp_path, start_run, base, undisturbed):
    assert start_run(tmp_path, base, before=KILLED_WHILE_SAVING).wait() == [-signal.SIGKILL]
    run = start_run(tmp_path, [*base, "--resume"])
    assert run.wait() == [0], run.errors()
    assert_same(run, undisturbed(1))


def test_stopped_by_sigterm(tmp_path, start_run, base, undisturbed):
    # Without --checkpoint-every-steps: what is resumed is the checkpoint that the signal asked for.
    run = start_run(tmp_path, base[:-2], before=SLOW_STEPS)
    run.wait_for(3)
    os.kill(run.processes[0].pid, signal.SIGTERM)
    assert run.wait() == [128 + signal.SIGTERM]
    assert "--resume" in run.errors()
    steps = len(run.records())
    assert 0 < steps < 12
    run = start_run(tmp_path, [*base, "--resume"])
    assert run.wait() == [0], run.errors()
    assert_same(run, undisturbed(1))


def test_nan_stops_the_run(tmp_path, start_run, base, undisturbed):
    run = start_run(tmp_path, base, before=NAN_LABELS)
    assert run.wait() == [3]
    message = run.errors().splitlines()[-1]
    ids = [f"train{i}" for i in epoch_batches(25, 8, seed=0, epoch=1)[2]]
    assert "step 7 (epoch 2)" in message
    assert message.endswith(": " + ", ".join(ids))
    # The checkpoint before it is good: without the NaN the run goes on from there.
    run = start_run(tmp_path, [*base, "--resume"])
    assert run.wait() == [0], run.errors()
    assert_same(run, undisturbed(1))


def test_one_rank_speaks(tmp_path, start_run, base):
    run = start_run(tmp_path, [*base, "--data", tmp_path / "missing"], ranks=2)
    run.processes[0].join(300)
    run.processes[1].terminate()  # as torchrun does when a rank is gone
    assert run.wait()[0] == 2
    assert run.errors(0).startswith("error: ")
    assert run.errors(0).count("\n") == 1
    assert run.errors(1) == ""


TORCHRUN = """
import os, signal, sys, torch
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
    step, count = torch.optim.AdamW.step, [0]
    def dying(*a, **k):
        count[0] += 1
        if count[0] == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*a, **k)
    torch.optim.AdamW.step = dying
from cmsbert_fast.training.runs import main
sys.exit(main(sys.argv[1:], embedded_config="none"))
"""


# Says which process it is.
WORKER = """
import os, sys
from pathlib import Path
Path(__file__).with_name("worker" + os.environ["RANK"]).write_text(str(os.getpid()))
from cmsbert_fast.training.runs import main
sys.exit(main(sys.argv[1:], embedded_config="none"))
"""


def torchrun(folder: Path, program: str, *arguments: object) -> subprocess.Popen:
    """Starts a program on two ranks."""
    (folder / "program.py").write_text(program)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
    ]
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command += [str(folder / "program.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_torchrun_restarts_and_resumes(tmp_path, base, undisturbed):
    started = torchrun(tmp_path, TORCHRUN, *base, "--output", tmp_path / "out")
    _, errors = started.communicate(timeout=600)
    assert started.returncode == 0, errors
    run = undisturbed(2)
    assert_same(type(run)([], tmp_path), run)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for a parent that never asks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_workers_end_with_the_agent_of_torchrun(tmp_path, start_run, base, undisturbed):
    """With a checkpoint: else they would train on, beside those of the next start."""
    started = torchrun(tmp_path, SLOW_STEPS.replace("0.05", "0.4") + WORKER, *base, "--output", tmp_path / "out")
    log = tmp_path / "out" / "cmsbert-clr" / "seed-0" / "log.jsonl"
    deadline = time.monotonic() + 300
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert started.poll() is None, started.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = [int((tmp_path / f"worker{rank}").read_text()) for rank in range(2)]
    started.kill()
    assert all(map(is_alive, workers))
    with pytest.raises(UsageError, match="Another process"), locked(log.parent):  # they have it still
        pass
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with locked(log.parent):
        pass
    started.communicate()
    assert not (log.parent / "results.json").exists()
    saved = checkpoint.load(log.parent)
    assert saved["progress"]["step"] == len([line for line in log.read_text().splitlines() if '"train"' in line])
    run = start_run(tmp_path, [*base, "--resume"], ranks=2)
    assert run.wait() == [0, 0], run.errors()
    assert_same(run, undisturbed(2))


def test_interrupted_while_importing(tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    command = [sys.executable, str(Path(__file__).resolve().parents[2] / "train.py")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.cuda
def test_killed_and_resumed_on_a_gpu(tmp_path, start_run, base):
    base = [*base, "--device", "cuda"]
    whole = start_run(tmp_path / "whole", base)
    assert whole.wait() == [0], whole.errors()
    start_run(tmp_path / "killed", base, before=SLOW_STEPS).kill_after(8)
    run = start_run(tmp_path / "killed", [*base, "--resume"])
    assert run.wait() == [0], run.errors()
    assert_same(run, whole)
