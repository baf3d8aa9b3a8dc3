"""Checkpoints: atomic, complete, and nothing but data."""

import random

import numpy as np
import pytest
import torch

from cmsbert_fast.training import checkpoint
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.log import RunLog

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
