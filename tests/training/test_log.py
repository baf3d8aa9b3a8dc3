"""The log of a run."""

import json

from cmsbert_fast.training.log import RunLog


def test_log_and_what_a_resumed_run_keeps_of_it(tmp_path):
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
