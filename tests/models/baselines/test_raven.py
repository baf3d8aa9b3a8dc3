"""RAVEN's own checks."""

import dataclasses

import pytest
import torch

from cmsbert_fast.models.baselines.raven import RAVENConfig, RAVENForSequenceClassification, shift_words
from cmsbert_fast.reference.recurrent import cell, part
from tests.models.baselines import steps
from tests.models.baselines.systems import system
from tests.models.baselines.utterances import packed, utterances


def test_size_of_the_published_model():
    config = RAVENConfig(visual_size=47, acoustic_size=74, num_hidden_layers=1)
    with torch.device("meta"):
        model = RAVENForSequenceClassification(config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_194_753


def test_a_shift_is_at_most_beta_of_the_word():
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    shifts = torch.randn(40, 5, generator=generator, dtype=torch.float64) * torch.linspace(0, 1, 40)[:, None]
    moved = shift_words(words, shifts, 0.3) - words
    limit, length = 0.3 * words.norm(dim=1), shifts.norm(dim=1)
    long = length >= limit
    assert 5 < int(long.sum()) < 35
    torch.testing.assert_close(moved.norm(dim=1)[long], limit[long], rtol=1e-13, atol=0)
    torch.testing.assert_close(moved[~long], shifts[~long], rtol=0, atol=1e-15)
    assert (torch.cosine_similarity(moved[1:], shifts[1:]) > 1 - 1e-12).all()


@pytest.mark.parametrize("zero", ["shift", "word", "both"])
def test_nothing_to_shift(zero):
    """e' = e, and finite gradients."""
    word, shift = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    word, shift = (0 * x if zero in (name, "both") else x for name, x in (("word", word), ("shift", shift)))
    word.requires_grad_()
    shift.requires_grad_()
    moved = shift_words(word, shift, 0.2)
    assert torch.equal(moved, word)
    moved.sum().backward()
    assert word.grad.isfinite().all()
    assert shift.grad.isfinite().all()


def test_a_word_with_one_frame_is_one_step():
    model, batch = system("raven"), utterances(aligned=True)[:1]
    own = model.visual_frames
    seen = {}
    own.lstm.register_forward_hook(lambda module, given, found: seen.update(h=found))
    model.rows(**packed(batch, model))
    weights = part(own.state_dict(), "lstm")
    zero = torch.zeros(4, dtype=torch.float64)
    for h, frame in zip(seen["h"], batch[0].visual, strict=True):
        torch.testing.assert_close(h, cell(own.dense(frame), zero, zero, weights)[0], rtol=0, atol=1e-14)


def test_frames_belong_to_their_words():
    """Frames change the row with the word they are given to, and a word without frames has no summand."""
    model, batch = system("raven"), utterances(aligned=False, of_words=True)
    batch = batch[4:5]
    row = model.rows(**packed(batch, model))["logits"]
    counts = batch[0].counts["visual"]
    assert {0, 1, 2, 3} <= set(counts.tolist())
    other = [dataclasses.replace(batch[0], counts=batch[0].counts | {"visual": counts.roll(1)})]
    assert not torch.allclose(model.rows(**packed(other, model))["logits"], row)
    # Nothing of any frame reaches a word that has none: s = b there.
    seen = {}
    model.shift.register_forward_hook(lambda module, given, found: seen.update(s=found))
    model.rows(**packed(batch, model))
    silent = (counts == 0) & (batch[0].counts["acoustic"] == 0)
    assert silent.any()
    assert torch.equal(seen["s"][silent], model.shift.bias.expand(int(silent.sum()), -1))
    assert not (seen["s"][~silent] == model.shift.bias).all(dim=1).any()


def test_everything_non_verbal_trains():
    model, batch = system("raven"), utterances(aligned=False, of_words=True)
    gradients, _ = steps.gradients_of(model, batch)
    of_frames = {name for name in gradients if name.startswith(("visual_frames.", "acoustic_frames.", "shift."))}
    assert len(of_frames) == 2 * 8 + 2
    assert all(gradients[name].abs().max() > 0 for name in of_frames)


def test_dropout_acts_on_frames_and_shifted_words():
    batch = utterances(aligned=False, of_words=True)
    for name in ("frame_dropout", "text_dropout"):
        model = system("raven", **{name: 0.5})
        inputs = packed(batch, model)
        assert not torch.equal(model.train().rows(**inputs)["logits"], model.eval().rows(**inputs)["logits"]), name


def test_a_negative_shift_is_refused():
    with pytest.raises(ValueError, match=r"largest_shift is -0[.]1 but must be at least 0"):
        RAVENConfig(largest_shift=-0.1)
