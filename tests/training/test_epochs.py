"""The table of a run's epochs."""

import json

from cmsbert_fast.training.epochs import ROWS, epoch_table


def write(folder, epochs, tested=True, nu=0.5):
    lines = [{"event": "start", "step": 0}]
    for epoch in range(1, epochs + 1):
        for loss in (1.0, 3.0):
            lines.append({"event": "train", "step": 2 * epoch, "epoch": epoch, "loss": loss / epoch})
        valid = {"task_loss": 2.0, "contrastive_loss": 0.25, "nu": nu, "mae": 1 / epoch, "corr": None}
        lines.append({"event": "valid", "step": 2 * epoch, "epoch": epoch, **valid, "a": 1, "b": 2, "c": 3})
    if tested:
        lines.append({"event": "test", "step": 2 * epochs, "epoch": 2, "mae": 0.1})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_losses_nu_and_first_metrics(tmp_path):
    write(tmp_path, 3)
    assert epoch_table(tmp_path).splitlines() == [
        "epoch  train loss  valid task loss  valid contrastive loss     mae  corr  a  b   nu",
        "    1           2                2                    0.25       1        1  2  0.5",
        "  2 *           1                2                    0.25     0.5        1  2  0.5",
        "    3      0.6667                2                    0.25  0.3333        1  2  0.5",
        "(* best on validation, tested)",
    ]


def test_a_system_without_nu_and_a_run_that_was_not_tested(tmp_path):
    write(tmp_path, 1, tested=False, nu=None)
    table = epoch_table(tmp_path)
    assert "nu" not in table
    assert "*" not in table


def test_long_runs_are_thinned_and_it_is_said(tmp_path):
    write(tmp_path, 500)
    lines = epoch_table(tmp_path).splitlines()
    epochs = [line.split()[0] for line in lines[1:-2]]
    assert len(epochs) == ROWS + 1
    assert (epochs[0], epochs[-1]) == ("1", "500")
    assert "2" in epochs  # the best
    assert lines[-1] == f"({ROWS + 1} of 500 epochs; all are in log.jsonl)"


def test_no_epoch_no_table(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"event": "start", "step": 0}\n')
    assert epoch_table(tmp_path) == ""
