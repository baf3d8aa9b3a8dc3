"""One process a run: a second one is refused in one sentence, and a dead one leaves no lock."""

import json
import os
import signal
import threading

import pytest

from cmsbert_fast.training import folders
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.lock import locked, turn


def test_a_second_process_is_refused_until_the_first_ends(train, short, tmp_path):
    run = tmp_path / "cmsbert-clr" / "seed-0"
    arguments = [*short, "--epochs", 1, "--output", tmp_path]
    run.mkdir(parents=True)
    with locked(run):
        for more in ([], ["--resume"]):
            status, errors = train(*arguments, *more)
            assert status == 2
            assert errors == (
                f"error: Another process ({os.getpid()} on {os.uname().nodename}) trains in {run}; wait for it or stop "
                "it, or choose another --output.\n"
            )
            assert not (run / "log.jsonl").exists()
    assert train(*arguments)[0] == 0
    assert train(*arguments, "--resume")[0] == 0


def test_all_runs_of_a_command_are_locked_before_the_first_starts(train, short, tmp_path):
    second = tmp_path / "cmsbert-clr" / "seed-1"
    second.mkdir(parents=True)
    with locked(second):
        status, errors = train(*short, "--seeds", 0, 1, "--output", tmp_path)
    assert status == 2
    assert f"trains in {second}" in errors
    assert not list(tmp_path.glob("*/*/log.jsonl"))


def test_two_started_together_write_one_log(start_run, short, tmp_path):
    """Both pass the check for a run that is there before either has begun."""
    runs = [start_run(tmp_path, short), start_run(tmp_path, short)]  # the same output
    statuses = sorted(run.wait()[0] for run in runs)
    assert statuses == [0, 2]
    lines = (tmp_path / "out" / "cmsbert-clr" / "seed-0" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["start", *(["train"] * 3 + ["valid"]) * 2, "test"]


def test_a_killed_process_leaves_no_lock(start_run, short, tmp_path):
    run = start_run(tmp_path, [*short, "--epochs", 200])
    run.wait_for(6)
    second = start_run(tmp_path, [*short, "--epochs", 200, "--resume"])
    assert second.wait() == [2]
    assert "Another process" in second.errors()
    for process in run.processes:
        os.kill(process.pid, signal.SIGKILL)
    run.wait()
    third = start_run(tmp_path, [*short, "--epochs", 200, "--resume"])
    third.wait_for(12)
    for process in third.processes:
        process.kill()
    third.wait()


def test_default_folders_are_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = folders.output_folder(None, "mosi", resume=False)
    # Another process creates the next folder between our look and our creating it.
    glob = folders.Path.glob
    monkeypatch.setattr(folders.Path, "glob", lambda self, pattern: [p for p in glob(self, pattern) if p != first])
    assert folders.output_folder(None, "mosi", resume=False).name == "mosi-2"
    (tmp_path / "blocked").mkdir()
    monkeypatch.chdir(tmp_path / "blocked")
    (tmp_path / "blocked" / "runs").touch()
    with pytest.raises(UsageError, match="cannot be created"):
        folders.output_folder(None, "mosi", resume=False)


def test_one_turn_at_a_time(tmp_path):
    count = tmp_path / "count"
    count.write_text("0")

    def add():
        for _ in range(200):
            with turn(tmp_path):
                value = int(count.read_text())
                count.write_text(str(value + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]  # each has a file of its own open, as processes have
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.read_text() == "800"
