"""Micro-batches and ranks change rounding only."""

import numpy as np
import pytest
import torch

from cmsbert_fast.data import read_corpus
from cmsbert_fast.training.backward import backward
from cmsbert_fast.training.batches import Batches
from cmsbert_fast.training.build import build
from cmsbert_fast.training.distributed import Gradients
from cmsbert_fast.training.settings import TrainingSettings
from tests.training import remembering
from tests.training.helpers import CPU, records


@pytest.fixture
def systems():
    """Makes the systems of :mod:`tests.training.remembering` known."""
    remembering.register()
    yield
    remembering.unregister()


@pytest.mark.parametrize("variant", ["cmsbert", "cmsbert-clr"])
def test_accumulation_changes_rounding_only(train, short, tmp_path, variant):
    for parts in (1, 3):
        out = tmp_path / str(parts)
        assert (
            train(*short, "--variant", variant, "--accumulation", parts, "--max-grad-norm", 1, "--output", out)[0] == 0
        )
    for event in ("train", "valid", "test"):
        for whole, split in zip(records(tmp_path / "1", event), records(tmp_path / "3", event), strict=True):
            assert split == pytest.approx(whole, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("variant", ["cmsbert", "cmsbert-clr", "comparing"])
def test_accumulation_in_bf16_agrees_to_its_rounding(train, short, tmp_path, systems, variant):
    """Losses of several micro-batches are computed outside autocast, those of an undivided batch inside."""
    arguments = [*short, "--variant", variant, "--precision", "bf16"]
    for parts in (1, 3):
        assert train(*arguments, "--accumulation", parts, "--output", tmp_path / str(parts))[0] == 0
    whole, split = (records(tmp_path / parts, "train") for parts in ("1", "3"))
    assert split[0] == pytest.approx(whole[0], rel=2**-6, abs=2**-6)
    for ours, theirs in zip(split, whole, strict=True):
        for name in (name for name in theirs if "loss" in name):
            assert ours[name] == pytest.approx(theirs[name], rel=2**-6, abs=2**-6)


def test_accumulation_over_ranks(start_run, short, train, tmp_path):
    assert train(*short, "--output", tmp_path / "one")[0] == 0
    run = start_run(tmp_path, [*short, "--accumulation", 3], ranks=2)  # 9 examples: 5 in 3 parts, 4 in 3 parts
    assert run.wait() == [0, 0], run.errors()
    for one, two in zip(records(tmp_path / "one", "train"), run.records("train"), strict=True):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-5)


def test_a_class_that_forgets_its_global_terms_is_named(monkeypatch):
    """Its micro-batches would be compared each with itself."""
    corpus, settings = read_corpus("embedded"), TrainingSettings()
    model, processor = build(settings, corpus)
    batches = Batches(corpus.splits["train"], processor, model, torch.device("cpu"))
    monkeypatch.setattr(type(model), "has_global_terms", False)
    with pytest.raises(TypeError, match="CMSBertCLRForSequenceClassification has global losses; its has_global_terms"):
        backward(model, batches, np.arange(4), Gradients(model, CPU), CPU, settings)
