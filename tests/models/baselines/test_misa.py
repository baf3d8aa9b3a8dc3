"""MISA's own checks."""

import dataclasses
import itertools

import pytest
import torch

from cmsbert_fast.models.baselines.misa import MISAConfig, MISAForSequenceClassification
from cmsbert_fast.models.baselines.set_losses import central_moment_discrepancy, difference_loss
from cmsbert_fast.models.losses import total_loss
from tests.models.baselines.systems import system
from tests.models.baselines.utterances import labels, packed, utterances

UNUSED = 592_308  # of the published code: BERT's pooler, a head that no loss reads, a LayerNorm of text


def sizes(**fields):
    """Numbers of all parameters and of the trained ones, at the published sizes."""
    with torch.device("meta"):
        model = MISAForSequenceClassification(MISAConfig(acoustic_size=74, **fields))
    return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_size_of_the_published_model():
    assert sizes(visual_size=47) == (110_369_101, 110_369_101)
    total, trained = sizes(visual_size=35, frozen_layers=9)
    assert total - trained == 9 * 7_087_872  # a layer of BERT-base
    assert round((trained + UNUSED) / 1e6, 1) == 47.1
    assert round((total + UNUSED) / 1e6, 1) == 110.9


def test_frozen_are_the_first_layers_and_no_embeddings():
    model = system("misa", frozen_layers=1)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("bert.encoder.layer.0.")}


def test_recurrent_weights_start_orthogonal():
    model = system("misa", lively=False)
    found = [p for name, p in model.named_parameters() if name.endswith("weight_hh_l0")]
    assert len(found) == 8  # two modalities, two LSTMs, two directions
    for weight in found:
        torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1], dtype=weight.dtype), atol=1e-6, rtol=0)


def test_rows_of_frames_are_the_librarys_lstm():
    """u_m utterance by utterance, with torch.nn.LSTM(bidirectional=True) and its own order of final states."""
    model, batch = system("misa"), utterances(False)
    net, size = model.visual_net, model.config.visual_size
    libraries = []
    for ours, inputs in ((net.lstm1, size), (net.lstm2, 2 * size)):
        lstm = torch.nn.LSTM(inputs, size, bidirectional=True, dtype=torch.float64)
        lstm.load_state_dict(
            {**ours.forwards.state_dict(), **{f"{n}_reverse": p for n, p in ours.backwards.state_dict().items()}}
        )
        libraries.append(lstm)
    frames = model.frames(**packed(batch, model))["visual"]
    found = net(*frames, "auto")
    for k, utterance in enumerate(batch):
        if not len(utterance.visual):
            assert (found[k] == 0).all()
            continue
        hidden, (first, _) = libraries[0](utterance.visual[:, None])
        _, (second, _) = libraries[1](net.norm(hidden))
        # The published code: cat over the last dimension, then by utterance.
        expected = torch.cat([first, second], dim=2).permute(1, 0, 2).flatten()
        torch.testing.assert_close(found[k], expected, rtol=0, atol=1e-13)


def terms_of(model, batch):
    rows = model.rows(**packed(batch, model))
    return rows, model.losses(rows, labels(batch))


@pytest.mark.parametrize("absent", [None, "visual", "acoustic"])
def test_terms(absent):
    model, batch = system("misa", **({f"{absent}_size": 0} if absent else {})), utterances(False)
    rows, terms = terms_of(model, batch)
    assert list(terms) == ["task", "reconstruction", "similarity", "difference"]
    present = [name for name in ("text", "visual", "acoustic") if name != absent]
    private, shared = ({m: rows[f"{m}_{kind}"] for m in present} for kind in ("private", "shared"))
    pairs = list(itertools.combinations(present, 2))
    similarity = sum(central_moment_discrepancy(shared[a], shared[b]) for a, b in pairs) / len(pairs)
    difference = sum(difference_loss(private[m], shared[m]) for m in present)
    difference = difference + sum(difference_loss(private[a], private[b]) for a, b in pairs)
    torch.testing.assert_close(terms["similarity"].value, similarity)
    torch.testing.assert_close(terms["difference"].value, difference)
    torch.testing.assert_close(terms["reconstruction"].value, rows["reconstruction"].mean())
    task = (rows["logits"][:, 0] - labels(batch)).square().mean()
    expected = task + similarity + 0.3 * difference + rows["reconstruction"].mean()
    torch.testing.assert_close(total_loss(terms), expected)


def test_weights_are_settings():
    weights = dict(similarity_weight=0.7, difference_weight=0.0, reconstruction_weight=2.0)
    model = system("misa", **weights)
    _, terms = terms_of(model, utterances(False))
    assert {f"{name}_weight": term.weight for name, term in terms.items() if name != "task"} == weights
    with pytest.raises(ValueError, match=r"difference_weight is -1[.]0 but must be at least 0"):
        MISAConfig(difference_weight=-1.0)


def test_difference_of_a_repeated_batch_is_four_times_as_large():
    """Why the batch size belongs to its weight; the other terms stay."""
    model, batch = system("misa"), utterances(False)
    _, once = terms_of(model, batch)
    _, twice = terms_of(model, batch * 2)
    torch.testing.assert_close(twice["difference"].value, 4 * once["difference"].value)
    for name in ("task", "similarity", "reconstruction"):
        torch.testing.assert_close(twice[name].value, once[name].value)


def test_equal_codes_have_finite_gradients():
    """One utterance: all central moments are 0."""
    model, batch = system("misa"), utterances(False)[:1]
    _, terms = terms_of(model, batch)
    total_loss(terms).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_last_pieces_are_read():
    """The published code cuts pieces to the batch's largest number of words + 2: here 5 + 2 of 10."""
    model, batch = system("misa"), utterances(False)
    utterance = batch[0]
    changed = dataclasses.replace(utterance, ids=torch.cat([utterance.ids[:-3], utterance.ids[-3:].flip(0)]))
    found = [model.rows(**packed([u, batch[1]], model))["text_private"][0] for u in (utterance, changed)]
    assert not torch.allclose(*found)


def test_dropout_acts_in_the_transformer_and_before_the_last_layer():
    batch = utterances(False)
    for name in ("transformer_dropout", "fusion_dropout"):
        model = system("misa", **{name: 0.5})
        inputs = packed(batch, model)
        assert not torch.equal(model.train().rows(**inputs)["logits"], model.eval().rows(**inputs)["logits"]), name


def test_needs_frames_and_heads_that_share_the_size():
    with pytest.raises(ValueError, match="give its configuration a visual_size or an acoustic_size"):
        system("misa", visual_size=0, acoustic_size=0)
    with pytest.raises(ValueError, match="size is 9 but must be a multiple of fusion_heads, 2"):
        MISAConfig(size=9)
