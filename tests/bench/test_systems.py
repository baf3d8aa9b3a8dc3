"""The races between systems run, on a small model; speed is not looked at."""

import functools

import pytest
import torch

from bench import names, systems, workload
from bench import test_systems as suite
from cmsbert_fast.models.registry import BASELINES, VARIANTS
from tests.bench.test_suites import OneRound

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(systems, "make_config", functools.partial(workload.make_config, "tiny"))


@pytest.mark.parametrize(("test", "expected"), [(suite.test_step, names.STEP), (suite.test_inference, names.INFERENCE)])
def test_every_system_races_once(test, expected):
    race = OneRound()
    for trains_bert in (True, False):
        test(race, CPU, trains_bert)
    assert {name for name, _, _ in race.results} == {expected}
    assert len({case for _, case, _ in race.results}) == 2
    raced = [name for _, _, contenders in race.results for name in contenders]
    assert sorted(raced) == sorted([names.CLR, names.CLR, *BASELINES])
    assert set(BASELINES) < set(VARIANTS)


def test_known_text_is_that_of_prediction():
    suite.test_known_text_is_that_of_prediction(CPU)


def test_a_system_reads_what_training_gives_it():
    utterances = systems.Utterances([5, 8, 3], CPU)
    for name in BASELINES:
        model = systems.make_model(name, CPU)
        inputs = utterances.inputs(model)
        assert inputs["input_ids"].shape == (1, 16)
        assert ("text_features" in inputs) == (systems.text_of(name) == "bert-frozen")
        assert ("word_vectors" in inputs) == (systems.text_of(name) == "vectors")
