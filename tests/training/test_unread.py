"""Settings without effect are said: of a variant, of its labels, of parameters that it does not have."""

import dataclasses

import pytest

from cmsbert_fast.models.registry import VARIANTS
from cmsbert_fast.training import unread
from cmsbert_fast.training.settings import TrainingSettings

CHANGED = {"temperature": 0.5, "smoothing": 0.8, "threshold": 0.3, "momentum": 0.5, "projection_size": 8}
CHANGED |= {"gate_activation": "tanh", "standardise": False, "repeat_frames": True}
FUSED = {"temperature", "smoothing", "threshold", "momentum", "projection_size"}
READ = {
    "bert": set(),
    "cmsbert": {"gate_activation", "standardise"},
    "cmsbert/1": {"gate_activation", "standardise"},
    "cmsbert-clr": {*FUSED, "gate_activation", "standardise"},
    "cmsbert-clr-no-ema": {*FUSED, "gate_activation", "standardise"} - {"momentum"},
    "cmsbert-clr-no-ls": {*FUSED, "gate_activation", "standardise"} - {"smoothing", "threshold"},
    "mfn": {"standardise", "repeat_frames"},
    "tfn": {"standardise"},
}


def named(runs):
    return {sentence.partition(" = ")[0] for sentence in unread.of_no_run(runs)}


@pytest.mark.parametrize("variant", READ)
def test_what_a_variant_does_not_read(variant):
    """Fields that a system's configuration lacks are refused before."""
    possible = CHANGED
    if variant in ("mfn", "tfn"):
        possible = {name: v for name, v in CHANGED.items() if name not in ("projection_size", "gate_activation")}
    run = TrainingSettings(variant=variant, **possible)
    assert named([run]) == possible.keys() - READ[variant]
    assert unread.of_no_run([TrainingSettings(variant=variant)]) == []


def test_one_run_that_reads_it_is_enough():
    runs = [TrainingSettings(variant=name, temperature=0.5) for name in ("bert", "cmsbert-clr")]
    assert unread.of_no_run(runs) == []
    assert unread.of_no_run(runs[:1]) == ["temperature = 0.5 has no effect: no system of this command reads it"]
    assert all(isinstance(VARIANTS[name].model_class.own_settings, tuple) for name in VARIANTS)


def test_settings_of_every_system_are_in_no_list():
    fields = {field.name for field in dataclasses.fields(TrainingSettings)}
    assert fields >= CHANGED.keys()


def test_a_command_says_it(train, short, make_corpus, tmp_path):
    data = make_corpus(tmp_path / "moods", label=lambda k: ("sad", "glad")[k % 2])
    given = ["--data", data, "--variant", "misa", "--visual", "none", "--loss", "l1", "--epochs", 1]
    groups = ["--learning-rates", "visual=1e-3", "acoustic=1e-3"]
    status, errors = train(*short, *given, *groups, "--temperature", 0.5, "--output", tmp_path / "out")
    assert status == 0
    assert [line for line in errors.splitlines() if "no effect" in line] == [
        "warning: loss = l1 has no effect: the labels of moods are classes",
        "warning: learning_rates visual=0.001 has no effect: misa has no trained parameter of that group here",
        "warning: temperature = 0.5 has no effect: no system of this command reads it",
    ]
    status, errors = train(*short, "--variant", "bert", "cmsbert-clr", "--temperature", 0.5, "--output", tmp_path / "b")
    assert status == 0
    assert "no effect" not in errors
