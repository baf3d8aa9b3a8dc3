"""Commands of one run or several, from the command line to the exit status."""

import json

import torch

from cmsbert_fast.training import runs


def test_folds(train, short, tmp_path):
    folds = [
        {split: [f"{old}{i}" for old in olds for i in range(41)] for split, olds in fold.items()}
        for fold in (
            {"train": ["train"], "valid": ["valid"], "test": ["test"]},
            {"train": ["train"], "valid": ["test"], "test": ["valid"]},
        )
    ]
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    assert train(*short, "--folds", tmp_path / "folds.json", "--fold", 1, 2, "--output", tmp_path / "out")[0] == 0
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert row["runs"] == [{"seed": 0, "fold": 1}, {"seed": 0, "fold": 2}]
    lines = [(tmp_path / "out" / "cmsbert-clr" / f"fold-{k}-seed-0" / "predictions.csv").read_text() for k in (1, 2)]
    assert all(text.splitlines()[1].startswith(split) for text, split in zip(lines, ("test", "valid"), strict=True))
    assert [text.count("\n") for text in lines] == [1 + 9, 1 + 7]


def test_nobody_reads_what_training_prints(monkeypatch):
    """As in ``python train.py | head -1``."""

    def closed(*arguments):
        raise BrokenPipeError

    monkeypatch.setattr(runs, "run_all", closed)
    monkeypatch.setattr(runs, "nobody_reads", lambda: 141)
    assert runs.main([]) == 141


def test_interrupted_before_training(train, short, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.distributed, "start", interrupt)
    status, errors = train(*short, "--output", tmp_path)
    assert status == 130
    assert errors.count("\n") == 1


def test_a_folder_called_embedded_is_not_the_embedded_corpus(train, short, tmp_path, make_corpus):
    folder = make_corpus(tmp_path / "embedded")
    status, errors = train("--data", folder, "--output", tmp_path / "none", figures=True)
    assert status == 2
    assert "--model" in errors
    arguments = ["--data", folder, *short[2:], "--epochs", 1, "--output", tmp_path / "out"]
    status, errors = train(*arguments, figures=True)
    assert status == 0, errors
    assert list((tmp_path / "out").glob("*/*/figures/shift_maps.png"))


def test_threads_are_a_setting(train, short, tmp_path):
    (tmp_path / "c.yaml").write_text("threads: 1\n")
    torch.set_num_threads(2)
    assert train(*short, "--variant", "bert", "--epochs", 1, "--output", tmp_path / "default")[0] == 0
    assert torch.get_num_threads() == 2
    arguments = [*short, "--config", tmp_path / "c.yaml", "--variant", "bert", "--epochs", 1]
    assert train(*arguments, "--output", tmp_path / "one")[0] == 0
    assert torch.get_num_threads() == 1
    recorded = [
        json.loads((tmp_path / name / "bert" / "seed-0" / "results.json").read_text())["machine"]["threads"]
        for name in ("default", "one")
    ]
    assert recorded == [2, 1]
    # Their number changes rounding, so a run is not continued with another.
    status, errors = train(*arguments, "--output", tmp_path / "one", "--resume", "--threads", 2)
    assert status == 2
    assert "threads = 1, not 2" in errors


def test_what_is_printed_while_it_trains(train, short, tmp_path, capsys, monkeypatch):
    """One line of progress, whose last state is final and names its metric, and a table of the epochs; or neither."""
    told = []
    monkeypatch.setattr(runs, "_say", lambda *values, **options: told.append(" ".join(map(str, values))))
    status, errors = train(*short, "--output", tmp_path / "loud")
    assert status == 0
    lines = [json.loads(line) for line in next((tmp_path / "loud").glob("*/*/log.jsonl")).read_text().splitlines()]
    best = min((line for line in lines if line["event"] == "valid"), key=lambda line: line["mae"])
    loss = [line["loss"] for line in lines if line["event"] == "train"][-1]
    (line,) = [line for line in errors.splitlines() if "steps" in line]
    assert line.startswith("cmsbert-clr: 6/6 steps in 0:00:")
    assert line.endswith(f"epoch 2, loss {loss:.3f}, best valid mae {best['mae']:.3f} in epoch {best['epoch']}")
    (table,) = [text for text in told if "train loss" in text]
    assert [row.split()[0] for row in table.splitlines()[2:4]] == ["1", "2"]
    told.clear()
    status, errors = train(*short, "--quiet", "--output", tmp_path / "quiet")
    assert (status, errors) == (0, "")
    assert len(told) == 1
    assert "| cmsbert-clr | 1 " in told[0]
