"""The whole command on small data: results, continuing after kill -9, several runners, broken runs, tuning."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cmsbert_fast.experiments.command import main
from cmsbert_fast.experiments.worker import EXIT_BUSY, Job
from cmsbert_fast.experiments.worker import main as work
from cmsbert_fast.training import lock
from tests.experiments.conftest import CONFIGS


def contents(output, table):
    """The JSON of a table without what depends on the clock."""
    value = json.loads((output / "tables" / f"{table}.json").read_text())
    for section in value["data"].values():
        for row in section["rows"]:
            for run in row["runs"]:
                del run["seconds"]
    return value


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    """The output of a command that nothing disturbed."""
    output = tmp_path_factory.mktemp("done")
    assert main(small("small", output, "--seeds", 0, 1, "--workers", 2), CONFIGS) == 0
    return output


def start(arguments):
    command = [sys.executable, "-m", "cmsbert_fast.experiments", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_every_run_and_its_report(done, small, capsys):
    folders = sorted(done.glob("runs/reviews/*/*/seed-*"))
    assert len(folders) == 4
    for folder in folders:
        assert {"results.json", "predictions.csv", "best"} <= {path.name for path in folder.iterdir()}
        assert not list(folder.glob("checkpoint*"))  # gigabytes that nobody needs
    rows = contents(done, "small")["data"]["reviews"]["rows"]
    assert [len(row["runs"]) for row in rows] == [2, 2]
    assert rows[0]["comparison"]["mae"]["p"] <= 1
    before = contents(done, "small"), [path.stat().st_mtime_ns for path in done.glob("runs/*/*/*/*/log.jsonl")]
    capsys.readouterr()
    assert main(small("small", done, "--seeds", 0, 1, "--dry-run"), CONFIGS) == 0
    assert "2 runs, 2 finished" in capsys.readouterr().out
    (done / "tables" / "small.json").unlink()
    assert (
        main(["tables", small("small", done)[1], "--output", str(done), "--report-only", "--resamples", "200"], CONFIGS)
        == 0
    )
    after = contents(done, "small"), [path.stat().st_mtime_ns for path in done.glob("runs/*/*/*/*/log.jsonl")]
    assert after == before


def test_kill_9_and_two_runners_later_everything_is_the_same(done, small, tmp_path):
    arguments = small("small", tmp_path, "--seeds", 0, 1, "--workers", 2)
    runner = start(arguments)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("runs/*/*/*/*/checkpoint.pt")):
        assert runner.poll() is None, runner.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    runner.kill()
    for path in tmp_path.glob("runs/*/*/*/*/.lock"):
        pid = path.read_text().split()[0]
        if not (path.parent / "results.json").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
            break  # the other ends by itself, with a checkpoint
    runner.communicate()
    runners = [start(arguments), start(arguments)]
    outputs = [process.communicate(timeout=600)[0] for process in runners]
    assert [process.returncode for process in runners] == [0, 0], outputs
    assert contents(tmp_path, "small") == contents(done, "small")
    for path in tmp_path.glob("runs/*/*/*/*/log.jsonl"):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [event["step"] for event in events if event["event"] == "train"]
        assert steps == list(range(1, 9)), path
        assert sum(event["event"] == "test" for event in events) == 1


def test_a_broken_run_leaves_the_others_alone(done, small, capsys):
    assert main(small("broken", done, "--seeds", 0), CONFIGS) == 1
    rows = contents(done, "broken")["data"]["reviews"]["rows"]
    assert [row["status"] for row in rows] == ["", "failed (1 of 1)"]
    assert "not finite" in rows[1]["notes"][0]
    assert rows[0]["metrics"]["mae"]["mean"] > 0
    printed = capsys.readouterr()
    assert printed.out.count("tried again") == 1
    assert "failed: cmsbert on reviews seed 0" in printed.err


def test_tuning_never_sees_the_test_set(done, small, capsys):
    options = ["--seeds", 0, "--tune", "--tune-seeds", 7]
    assert main(small("tuned", done, *options), CONFIGS) == 0
    assert "2 different points were found, not 27; all are tried" in capsys.readouterr().err
    tuned = sorted(done.glob("runs/reviews/cmsbert-clr/*/seed-7"))
    assert len(tuned) == 2
    for folder in tuned:
        assert "test" not in json.loads((folder / "results.json").read_text())
        assert not (folder / "predictions.csv").exists()
        assert '"event": "test"' not in (folder / "log.jsonl").read_text()
        assert not (folder / "best").exists()
    (value,) = json.loads((done / "tune.json").read_text()).values()
    scores = {trial["settings"]["temperature"]: trial["mean"] for trial in value["trials"]}
    assert value["chosen"]["temperature"] == min(scores, key=scores.get)
    (run,) = contents(done, "tuned")["data"]["reviews"]["rows"][0]["runs"]
    assert run["settings"]["temperature"] == value["chosen"]["temperature"]
    assert "test" in run


def test_a_stopped_command_continues(small, tmp_path):
    runner = start(small("small", tmp_path, "--seeds", 0))
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("runs/*/*/*/*/log.jsonl")):
        assert runner.poll() is None, runner.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    runner.send_signal(signal.SIGTERM)
    output = runner.communicate(timeout=600)[0]
    assert runner.returncode == 128 + signal.SIGTERM
    assert output.strip().endswith("the same command continues.")
    for path in tmp_path.glob("runs/*/*/*/*"):
        with lock.locked(path):  # nobody is left
            pass


class Sent:
    def send(self, text):
        raise AssertionError(text)

    def close(self):
        pass


def test_a_run_of_another_runner_is_busy(tmp_path, monkeypatch):
    from cmsbert_fast.experiments.plan import Run
    from cmsbert_fast.training.settings import TrainingSettings

    monkeypatch.setattr(os, "dup2", lambda *descriptors: None)
    run = Run("x", TrainingSettings(data="nowhere"), tmp_path.relative_to("/"), "f", 1)
    with lock.locked(tmp_path), pytest.raises(SystemExit) as end:
        work(Job(run, tmp_path.__class__("/"), 1), Sent())
    assert end.value.code == EXIT_BUSY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", 0, 0], "twice"),
        (["--seeds", 7, "--tune", "--tune-seeds", 7], "both tuned with and reported"),
        (["--tune", "momentum=0.1", "--tune-seeds", 9], "can tune momentum"),
        (["--set", "epoch=3"], "did you mean"),
        (["--variants", "bert", "tfn"], "No row of these tables is of the variant 'tfn'; see bert, cmsbert."),
        (["--set", "seed=3"], "Leave out --set seed"),
        (["--set", "data=x"], "Leave out --set data"),
        (["--set", "word_vectors=bert"], "Leave out --set word_vectors: no row of these tables reads"),
        (["--trials", 3], "Leave out --trials: it is for --tune"),
        (["--tune-seeds", 3], "Leave out --tune-seeds"),
        (["--search", "adaptive"], "Leave out --search"),
        (["--tune", "--tune-seeds", 9, 9], "twice"),
        (["--tune", "temperature=0.1", "--trials", 3], "Leave out --trials: a grid"),
        (["--workers", 0], "at least 1"),
        (["--set", "model=/nowhere"], "no checkpoint"),
        (["--search", "adaptive", "--tune", "a=1"], "without names"),
    ],
)
def test_mistakes_end_before_any_work(small, tmp_path, capsys, options, message):
    assert main(small("small", tmp_path / "out", *options), CONFIGS) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_settings_that_no_run_reads_are_said(small, tmp_path, capsys, monkeypatch):
    """Once, however many seeds there are; what one of the systems reads is read."""
    monkeypatch.setattr("cmsbert_fast.training.unread.of_run", lambda settings, corpus, model: ["loss has no effect"])
    options = ("--seeds", 0, 1, "--dry-run", "--set", "temperature=0.5", "standardise=false")
    assert main(small("small", tmp_path / "out", *options), CONFIGS) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "no effect" in line] == [
        "warning: temperature = 0.5 has no effect: no system of this command reads it",
        "warning: loss has no effect",
    ]


def test_mistakes_in_pairs(capsys):
    for options in (["--data", "mosi"], ["--data", "a=b", "a=c"], []):
        assert main(["tables", "2", *options], CONFIGS) == 2
    assert main(["tables", "2", "--report-only", "--output", "nowhere"], CONFIGS) == 2
    assert "no plan" in capsys.readouterr().err


def test_data_that_no_table_takes(capsys):
    assert main(["tables", "4", "--data", "mosi=x", "iemocap=y"], CONFIGS) == 2
    assert "do not take the data 'mosi'; they are of iemocap" in capsys.readouterr().err


def test_a_report_says_what_it_does_not_read(tmp_path, capsys):
    options = ["--report-only", "--seeds", "1", "2", "--data", "mosi=x", "--output", str(tmp_path)]
    assert main(["tables", "2", *options], CONFIGS) == 2
    assert "--report-only reads the runs that are there, and not --data, --seeds\n" in capsys.readouterr().err
