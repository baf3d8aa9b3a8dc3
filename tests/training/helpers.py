"""What several tests of training share."""

import json
from pathlib import Path

import numpy as np
import torch

from cmsbert_fast.data.example import Corpus, Example
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.trainer import Trainer

CPU = Ranks(0, 1, torch.device("cpu"))


def records(out: Path, event: str) -> list[dict]:
    lines = [json.loads(line) for line in next(out.glob("*/*/log.jsonl")).read_text().splitlines()]
    return [line for line in lines if line.pop("event") == event]


def flip(path: Path, place: float = 0.5) -> None:
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def tiny_corpus(count: int) -> Corpus:
    frames = np.ones((1, 3), np.float32)
    splits = {
        split: [Example(f"{split}{i}", ("good",), 0.5, frames, frames) for i in range(count)]
        for split in ("train", "valid", "test")
    }
    return Corpus("tiny", splits, 3, 3, ReadReport("tiny"))


def stop_and_resume(train, arguments, tmp_path, monkeypatch, batch):
    """A run without interruption in "whole", and one stopped after ``batch`` steps and resumed in "again": the same."""
    assert train(*arguments, "--output", tmp_path / "whole")[0] == 0
    step, count = Trainer.step, []

    def stopped(self, indices):
        count.append(1)
        if len(count) == batch + 1:
            raise KeyboardInterrupt
        return step(self, indices)

    monkeypatch.setattr(Trainer, "step", stopped)
    assert train(*arguments, "--output", tmp_path / "again")[0] == 130
    monkeypatch.setattr(Trainer, "step", step)
    assert train(*arguments, "--output", tmp_path / "again", "--resume")[0] == 0
    for name in ("log.jsonl", "predictions.csv"):
        ours, theirs = (next((tmp_path / out).glob(f"*/*/{name}")).read_text() for out in ("again", "whole"))
        assert ours == theirs
