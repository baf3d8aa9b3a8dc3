"""The log of a run."""

import json
import sys

import pytest

from cmsbert_fast.training.log import RunLog


def test_log_and_what_a_resumed_run_keeps_of_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as where tensorboard is not installed
    log = RunLog(tmp_path)
    log.write("train", {"step": 1, "loss": 0.1 + 0.2})
    kept = log.length()
    log.write("train", {"step": 2, "loss": float("nan")})
    log.close()
    log = RunLog(tmp_path, kept, step=1)
    log.write("train", {"step": 2, "loss": 1.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.1 + 0.2), (2, 1.0)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl"]


def test_tensorboard_shows_no_killed_attempt(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for loss in (1.0, 2.0):  # the second begins anew: no checkpoint was written
        log = RunLog(tmp_path)
        for step in range(3):
            log.write("train", {"step": step, "loss": loss})
        log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(0, 2.0), (1, 2.0), (2, 2.0)]
