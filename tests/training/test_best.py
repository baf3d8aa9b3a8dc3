"""The best model of a run, and the one before it."""

import json

import numpy as np
import pytest
import torch
from transformers.utils import SAFE_WEIGHTS_NAME

from cmsbert_fast.evaluate import main as evaluate
from cmsbert_fast.models.model_card import weights_digest
from cmsbert_fast.training import best, checksums, report
from cmsbert_fast.training.build import load_trained
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.trainer import Trainer
from tests.training.helpers import flip


def writes(number):
    def write(folder):
        (folder / SAFE_WEIGHTS_NAME).write_bytes(bytes([number]) * 20)
        (folder / "config.json").write_text("{}")

    return write


def number(folder):
    return (folder / SAFE_WEIGHTS_NAME).read_bytes()[0]


def test_the_one_before_stays(tmp_path):
    best.save(tmp_path, 2, writes(2))
    assert best.find(tmp_path) == best.Best(tmp_path / "best", 2)
    assert not (tmp_path / "best-before").exists()
    for epoch in (3, 7):
        best.save(tmp_path, epoch, writes(epoch))
    assert [number(tmp_path / name) for name in ("best", "best-before")] == [7, 3]
    flip(tmp_path / "best" / SAFE_WEIGHTS_NAME)
    found = best.find(tmp_path)
    assert found[:2] == (tmp_path / "best-before", 3)
    assert "best is damaged (the checksum of its weights is another): the best model is lost." in found.lost
    assert "of epoch 3" in found.lost
    (tmp_path / "best" / SAFE_WEIGHTS_NAME).unlink()
    assert "it has no model.safetensors" in best.find(tmp_path).lost
    flip(tmp_path / "best-before" / SAFE_WEIGHTS_NAME)
    assert best.find(tmp_path) == best.Best(tmp_path / "best")


@pytest.mark.parametrize("when", range(12))
def test_killed_while_it_is_replaced(tmp_path, monkeypatch, when):
    """One of the two models is whole at any time, and its epoch known."""
    for epoch in (1, 2):
        best.save(tmp_path, epoch, writes(epoch))
    replace, count = best.atomic.os.replace, []

    def killed(*names):
        count.append(1)
        if len(count) > when:
            raise KeyboardInterrupt
        replace(*names)

    monkeypatch.setattr(best.atomic.os, "replace", killed)
    try:
        best.save(tmp_path, 3, writes(3))
    except KeyboardInterrupt:
        pass
    else:
        assert when >= 6  # three files of each
    monkeypatch.undo()
    found = best.find(tmp_path)
    assert found.lost is None
    assert found.epoch == number(found.folder)
    assert number(tmp_path / "best-before") in (1, 2)
    best.save(tmp_path, 3, writes(3))
    assert best.find(tmp_path) == best.Best(tmp_path / "best", 3)
    assert number(tmp_path / "best-before") in (2, 3)


def test_checksums_without_epochs(tmp_path):
    """As those of runs of an earlier version."""
    best.save(tmp_path, 1, writes(1))
    (tmp_path / "best" / "CHECKSUMS.json").write_text(
        json.dumps({"sha256": checksums.known(tmp_path / "best" / "CHECKSUMS.json")})
    )
    best.save(tmp_path, 2, writes(2))
    flip(tmp_path / "best" / SAFE_WEIGHTS_NAME)
    found = best.find(tmp_path)
    assert found.epoch is None
    assert "of epoch" not in found.lost


@pytest.fixture
def run(train, short, tmp_path, monkeypatch):
    """The folder of a run of three epochs, each better than the one before, and its command."""
    scores = iter((3.0, 2.0, 1.0))
    monkeypatch.setattr("cmsbert_fast.training.evaluate.selection", lambda values: next(scores))
    command = [*short, "--epochs", 3, "--output", tmp_path / "out"]
    monkeypatch.setattr(Trainer, "finish", lambda *a: exit(9))  # killed before the test
    with pytest.raises(SystemExit):
        train(*command)
    monkeypatch.undo()
    return next((tmp_path / "out").glob("*/*")), command


def test_a_run_is_tested_with_the_one_before_and_says_so(run, train, corpus_folder, capsys):
    folder, command = run
    flip(folder / "best" / SAFE_WEIGHTS_NAME)
    status, errors = train(*command, "--resume")
    assert status == 0
    assert errors.count("the best model is lost") >= 1
    results = report.read_results(folder)
    assert results["best_epoch"] == 2
    assert "of epoch 2" in results["lost"]
    card = (folder / "best-before" / "README.md").read_text()
    assert "epoch 2 of 3 was chosen" in card
    assert "this is the best before it" in card
    assert weights_digest(folder / "best-before") in card
    assert not (folder / "best" / "README.md").exists()
    capsys.readouterr()
    assert evaluate([str(folder), "--data", str(corpus_folder)]) == 0
    out, errors = capsys.readouterr()
    assert "warning: " in errors
    assert "the best model is lost" in errors
    assert f"mae                {results['test']['mae']:.3f}" in out
    with pytest.raises(UsageError, match=r"restore it, give .*best-before, the best model before it"):
        load_trained(folder / "best")
    flip(folder / "best-before" / SAFE_WEIGHTS_NAME)  # nothing to advise then
    with pytest.raises(UsageError, match=r"restore it, or train again"):
        load_trained(folder / "best")


def test_undamaged_it_is_not_looked_at(run, train):
    folder, command = run
    flip(folder / "best-before" / SAFE_WEIGHTS_NAME)
    assert train(*command, "--resume")[0] == 0
    results = report.read_results(folder)
    assert results["best_epoch"] == 3
    assert "lost" not in results
    first, second = (load_trained(name)[0].state_dict() for name in (folder, folder / "best"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert np.isfinite(results["test"]["mae"])
