"""What several tests of training share."""

import json
from pathlib import Path

import numpy as np
import torch

from cmsbert_fast.data.example import Corpus, Example
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.training.distributed import Ranks

CPU = Ranks(0, 1, torch.device("cpu"))


def records(out: Path, event: str) -> list[dict]:
    lines = [json.loads(line) for line in next(out.glob("*/*/log.jsonl")).read_text().splitlines()]
    return [line for line in lines if line.pop("event") == event]


def tiny_corpus(count: int) -> Corpus:
    frames = np.ones((1, 3), np.float32)
    splits = {
        split: [Example(f"{split}{i}", ("good",), 0.5, frames, frames) for i in range(count)]
        for split in ("train", "valid", "test")
    }
    return Corpus("tiny", splits, 3, 3, ReadReport("tiny"))
