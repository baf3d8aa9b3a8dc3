"""Checkpoints: atomic, complete, and nothing but data."""

import json
import os
import random

import numpy as np
import pytest
import torch

from cmsbert_fast.training import checkpoint
from cmsbert_fast.training.build import load_trained
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.log import RunLog
from tests.training.helpers import flip

CPU = torch.device("cpu")


def draw():
    numpy = np.random.rand(), np.random.randn()  # noqa: NPY002 - the global generator is what is tested
    return random.random(), random.gauss(0, 1), torch.rand(()).item(), *numpy


def test_random_states_come_back(tmp_path):
    draw()
    checkpoint.save(tmp_path, {"random": [checkpoint.random_state(CPU)]})
    expected = draw(), draw()
    checkpoint.set_random_state(checkpoint.load(tmp_path)["random"][0], CPU)
    assert (draw(), draw()) == expected


def test_seed_decides_every_generator():
    checkpoint.seed_everything(3)
    first = draw()
    checkpoint.seed_everything(3)
    assert draw() == first


def test_a_checkpoint_outlasts_a_loss_of_power(tmp_path, disk):
    for step in range(2):
        checkpoint.save(tmp_path, {"step": step})
        assert disk.holds(tmp_path / checkpoint.FILE_NAME)
        assert disk.knows_name(tmp_path / checkpoint.FILE_NAME)


def test_a_checkpoint_counts_on_log_lines_that_are_on_the_disk(tmp_path, disk):
    log = RunLog(tmp_path)
    for step in range(3):
        log.write("train", {"step": step})
    assert log.length() == (tmp_path / "log.jsonl").stat().st_size
    assert disk.holds(tmp_path / "log.jsonl")
    log.close()


def test_what_cannot_be_loaded(tmp_path):
    assert checkpoint.load(tmp_path) is None
    path = tmp_path / checkpoint.FILE_NAME
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UsageError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path)
    torch.save({"format": checkpoint.FORMAT + 1}, path)
    with pytest.raises(UsageError, match="another version"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 1.0])
def test_a_flipped_bit_is_noticed_and_the_one_before_is_there(tmp_path, place):
    for step in range(3):
        checkpoint.save(tmp_path, {"step": step, "model": {"w": torch.arange(1000.0) + step}})
    assert checkpoint.load(tmp_path)["step"] == 2
    flip(tmp_path / checkpoint.FILE_NAME, place)
    found = checkpoint.load(tmp_path)
    assert found["step"] == 1
    assert torch.equal(found["model"]["w"], torch.arange(1000.0) + 1)
    assert "the run continues from checkpoint-before.pt" in found["damaged"]
    flip(tmp_path / checkpoint.BEFORE, place)
    with pytest.raises(UsageError, match="no undamaged one before it; remove it to start over"):
        checkpoint.load(tmp_path)
    (tmp_path / checkpoint.FILE_NAME).unlink()
    assert checkpoint.load(tmp_path) is None


@pytest.mark.parametrize("name", ["checkpoint-before.pt", "checkpoint.pt"])
def test_killed_while_saving(tmp_path, monkeypatch, name):
    """Before any of the two files gets its name, the checkpoint that is there can be loaded."""
    checkpoint.save(tmp_path, {"step": 0})
    checkpoint.save(tmp_path, {"step": 1})
    replace = os.replace

    def killed(source, target):
        if str(target).endswith(name):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, {"step": 2})
    found = checkpoint.load(tmp_path)
    assert (found["step"], "damaged" in found) == (1, False)
    for step in (2, 3):
        checkpoint.save(tmp_path, {"step": step})
    assert checkpoint.load(tmp_path)["step"] == 3


def test_checkpoints_of_earlier_versions_have_no_checksum(tmp_path):
    torch.save({"format": checkpoint.FORMAT, "step": 0}, tmp_path / checkpoint.FILE_NAME)
    assert checkpoint.load(tmp_path)["step"] == 0


def test_a_run_continues_from_the_checkpoint_before(train, short, tmp_path):
    arguments = [*short, "--epochs", 3]
    assert train(*arguments, "--output", tmp_path / "a")[0] == 0
    assert train(*arguments, "--output", tmp_path / "b")[0] == 0
    whole, again = (next(path.glob("*/seed-0")) for path in (tmp_path / "a", tmp_path / "b"))
    (again / "results.json").unlink()
    (again / "predictions.csv").unlink()
    flip(again / checkpoint.FILE_NAME)
    status, errors = train(*arguments, "--resume", "--output", tmp_path / "b")
    assert status == 0
    assert "warning: " in errors
    assert "continues from checkpoint-before.pt" in errors
    for name in ("log.jsonl", "predictions.csv"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()


def test_a_flipped_bit_in_the_best_model_is_noticed(train, short, tmp_path, capsys):
    assert train(*short, "--epochs", 3, "--output", tmp_path)[0] == 0
    (best,) = tmp_path.glob("*/*/best")
    load_trained(best)
    flip(best / "model.safetensors", 0.9)
    with pytest.raises(UsageError, match=r"model\.safetensors is damaged"):
        load_trained(best)
    (best / "CHECKSUMS.json").unlink()
    load_trained(best)


def test_a_line_that_was_cut_does_not_stay(tmp_path):
    log = RunLog(tmp_path)
    for step in range(3):
        log.write("train", {"step": step})
    length = log.length()
    log.close()
    path = tmp_path / "log.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    log = RunLog(tmp_path, length, 2)
    log.write("train", {"step": 3})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 3]
    path.write_bytes(whole + b"more")
    RunLog(tmp_path, length, 2).close()
    assert path.read_bytes() == whole
