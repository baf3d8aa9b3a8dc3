"""MFM's own checks."""

import dataclasses

import pytest
import torch

from cmsbert_fast.models.baselines.mfm import MFMConfig, MFMForSequenceClassification, SampleSeed
from cmsbert_fast.models.baselines.set_losses import gaussian
from cmsbert_fast.models.losses import total_loss
from cmsbert_fast.reference import mfm
from tests.models.baselines import steps
from tests.models.baselines.systems import system
from tests.models.baselines.utterances import labels, packed, utterances

VIEWS = ("text", "acoustic", "visual")
CODES = ("shared", *VIEWS)


def test_size_of_the_published_model():
    config = MFMConfig(visual_size=47, acoustic_size=74, num_hidden_layers=1)
    with torch.device("meta"):
        model = MFMForSequenceClassification(config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_586_346


def test_the_loss_is_the_weighted_sum_of_all_terms():
    weights = dict(text_weight=0.5, acoustic_weight=2.0, visual_weight=3.0, mmd_weight=0.25)
    model, batch = system("mfm", **weights), utterances(aligned=True)
    model.training_state(6, seed=4, momentum=0.9)
    model.train()
    rows = model.rows(**packed(batch, model))
    terms = model.losses(rows, labels(batch))
    expected = (rows["logits"][:, 0] - labels(batch)).abs().mean()
    for name in VIEWS:
        expected = expected + weights[f"{name}_weight"] * rows[f"{name}_error"].mean()
    for k, name in enumerate(CODES):
        z = rows[f"{name}_code"]
        expected = expected + 0.25 * mfm.mmd(z, gaussian(z, 4, 0, k))
    torch.testing.assert_close(total_loss(terms), expected, rtol=1e-13, atol=0)


def test_samples_change_with_step_and_seed_only():
    model, batch = system("mfm"), utterances(aligned=True)
    inputs = packed(batch, model)
    rows, state = model.train().rows(**inputs), model.training_state(6, seed=1)

    def mmd():
        return model.losses(rows, labels(batch))["mmd"].value.item()

    first = mmd()
    assert mmd() == first
    state.step(1, torch.arange(6), {})
    second = mmd()
    assert second != first
    state.load_state_dict({"steps": 0})
    assert mmd() == first
    other = model.training_state(6, seed=2)
    assert mmd() not in (first, second)
    other.load_state_dict(state.state_dict() | {"steps": 7})
    other.start(labels(batch))
    assert other.state_dict() == SampleSeed(1).state_dict() == {"steps": 0}
    # Without a trainer that counts steps, samples are drawn anew each time.
    alone = system("mfm").train()
    assert len({alone.losses(rows, labels(batch))["mmd"].value.item() for _ in range(3)}) == 3


def test_evaluation_has_no_sample():
    model, batch = system("mfm"), utterances(aligned=True)
    rows = model.rows(**packed(batch, model))
    once, again = (model.losses(rows, labels(batch)) for _ in range(2))
    assert "mmd" not in once
    assert all(torch.equal(once[name].value, again[name].value) for name in once)


def test_without_other_losses_only_the_task_trains():
    none = dict(text_weight=0.0, acoustic_weight=0.0, visual_weight=0.0, mmd_weight=0.0)
    model, batch = system("mfm", **none), utterances(aligned=True)
    gradients, _ = steps.gradients_of(model, batch, state=steps.new_state(model, batch))
    of_views = {name for name in gradients if "_autoencoder." in name}
    assert of_views
    assert all((gradients[name] == 0).all() for name in of_views)
    assert all((gradients[name] != 0).any() for name in gradients.keys() - of_views)


def test_as_many_steps_are_decoded_as_there_are_words(monkeypatch):
    model, batch = system("mfm"), utterances(aligned=True)
    decoded = []
    decode = type(model.text_autoencoder).decode

    def seen(self, *arguments):
        decoded.append(decode(self, *arguments))
        return decoded[-1]

    monkeypatch.setattr(type(model.text_autoencoder), "decode", seen)
    model.rows(**packed(batch, model))
    words = sum(len(u.vectors) for u in batch)
    assert [tuple(x.shape) for x in decoded] == [(words, 8), (words, 3), (words, 5)]


@pytest.mark.parametrize("absent", [None, "visual"])
def test_prediction_does_not_decode(monkeypatch, absent):
    model, batch = system("mfm", **({f"{absent}_size": 0} if absent else {})), utterances(aligned=True)
    inputs = packed(batch, model)
    expected = model(**inputs, labels=labels(batch)).logits
    monkeypatch.setattr(type(model.text_autoencoder), "encode", None)  # its codes are read by decoders and losses only
    monkeypatch.setattr(type(model.text_autoencoder), "decode", None)
    assert torch.equal(model(**inputs).logits, expected)
    assert model.predicted_rows(**inputs).keys() == {"logits"}
    with pytest.raises(TypeError):
        model(**inputs, labels=labels(batch))


def test_an_error_is_the_mean_over_an_utterances_own_words():
    """Of two utterances the shorter one counts as much as the longer one."""
    model, batch = system("mfm"), utterances(aligned=True)[:2]
    rows = model.rows(**packed(batch, model))
    for name in VIEWS:
        term = model.losses(rows, labels(batch))[f"{name}_reconstruction"]
        alone = [model.rows(**packed([u], model))[f"{name}_error"][0] for u in batch]
        torch.testing.assert_close(term.value, (alone[0] + alone[1]) / 2)


def test_reconstruction_may_be_exact():
    """A constant view is reconstructed from the output layer's bias."""
    model, batch = system("mfm"), utterances(aligned=True)[:1]
    output = model.acoustic_autoencoder.output
    output.weight.data.zero_()
    same = dataclasses.replace(batch[0], acoustic=output.bias.data.expand(5, 3))
    assert model.rows(**packed([same], model))["acoustic_error"] == 0


def test_dropout_acts_on_every_factor_and_the_head():
    batch = utterances(aligned=True)
    for name, row in [(f"{view}_factor", f"{view}_error") for view in VIEWS] + [
        ("shared_factor", "logits"),
        ("output", "logits"),
    ]:
        model = system("mfm", **{f"{name}_dropout": 0.5})
        inputs = packed(batch, model)
        assert not torch.equal(model.train().rows(**inputs)[row], model.eval().rows(**inputs)[row]), name


def test_trained_text_and_negative_weights_are_refused():
    with pytest.raises(ValueError, match="text is 'bert'; choose one of bert-frozen, vectors"):
        MFMConfig(text="bert")
    with pytest.raises(ValueError, match=r"mmd_weight is -1[.]0 but must be at least 0"):
        MFMConfig(mmd_weight=-1.0)
