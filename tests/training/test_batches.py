"""What a batch holds, and the order in which an epoch takes the examples."""

import numpy as np
import torch

from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.data import read_corpus
from cmsbert_fast.training.batches import Batches, epoch_batches
from cmsbert_fast.training.build import build
from cmsbert_fast.training.settings import TrainingSettings


def test_a_model_gets_only_the_inputs_it_reads(monkeypatch):
    corpus = read_corpus("embedded")
    model, processor = build(TrainingSettings(), corpus)
    collate = processor.collate
    monkeypatch.setattr(processor, "collate", lambda *a, **k: {**collate(*a, **k), "extra": torch.ones(3, 2)})
    batches = Batches(corpus.splits["train"], processor, model, torch.device("cpu"))
    batch = batches.load([0, 1])
    assert "extra" not in batch
    assert batch.pop("labels").shape == (2,)
    assert batches.load([0, 1], labels=False).keys() == batch.keys()
    assert model.rows(**batch)["logits"].shape == (2, 1)
    monkeypatch.setattr(type(model), "inputs", (*model.inputs, "extra"))
    assert "extra" in Batches(corpus.splits["train"], processor, model, torch.device("cpu")).load([0])


def test_global_batches():
    batches = epoch_batches(25, 8, seed=1, epoch=2)
    assert [len(b) for b in batches] == [7, 6, 6, 6]  # never a tiny last one
    assert sorted(np.concatenate(batches)) == list(range(25))
    again, other = epoch_batches(25, 8, 1, 2), epoch_batches(25, 8, 1, 3)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    assert any((a != b).any() for a, b in zip(batches, other, strict=True))


def test_a_new_run_shows_the_model_the_training_split(train, short, tmp_path, monkeypatch):
    seen = []

    def prepare(self, batches):
        seen.append([len(self.rows(**batch)["logits"]) for batch in batches])

    monkeypatch.setattr(CMSBertCLRForSequenceClassification, "prepare", prepare)
    assert train(*short, "--output", tmp_path)[0] == 0
    assert seen == [[9, 9, 7]]
    next(tmp_path.glob("*/*/results.json")).unlink()
    assert train(*short, "--output", tmp_path, "--resume")[0] == 0
    assert len(seen) == 1
