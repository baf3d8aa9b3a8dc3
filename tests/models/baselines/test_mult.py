"""MulT's own checks; its encoders' are in test_crossmodal.py."""

import dataclasses

import pytest
import torch

from cmsbert_fast.models.baselines.mult import MulTConfig, MulTForSequenceClassification, PackedConv
from cmsbert_fast.packing import Packing, cumulative
from tests.models.baselines.systems import system
from tests.models.baselines.utterances import packed, utterances

MOSEI = dict(size=30, heads=6, text_kernel_size=5, acoustic_kernel_size=1, visual_kernel_size=3)


@pytest.mark.parametrize(("visual_size", "fields", "count"), [(47, {}, 1_571_641), (35, MOSEI, 982_951)])
def test_size_of_the_published_model(visual_size, fields, count):
    config = MulTConfig(visual_size=visual_size, acoustic_size=74, num_hidden_layers=1, **fields)
    with torch.device("meta"):
        model = MulTForSequenceClassification(config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("lengths", [[3, 1, 5], [1], [0, 2, 0], [0]], ids=str)
def test_convolution_is_the_librarys_in_each_sequence(width, lengths):
    conv = PackedConv(4, 3, width).double()
    packing = Packing(cumulative(torch.tensor(lengths)), max(lengths))
    total = sum(lengths)
    rows = torch.randn(total + 2, 4, dtype=torch.float64, requires_grad=True)  # two of no sequence
    found = conv(rows, packing)
    parts = [part for part in rows[:total].split(lengths) if len(part)]
    expected = [torch.nn.functional.conv1d(part.T[None], conv.weight, padding="same")[0].T for part in parts]
    right = torch.cat(expected) if expected else found[:0]
    torch.testing.assert_close(found[:total], right, rtol=0, atol=1e-14)
    if expected:
        inputs = [rows, conv.weight]
        for ours, theirs in zip(
            torch.autograd.grad(found[:total].sin().sum(), inputs),
            torch.autograd.grad(right.sin().sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_encoders():
    """Six and three, of the widths and numbers of layers that the published code has; fewer without a modality."""
    model = system("mult")
    assert set(model.crossmodal) == {
        *("text_from_acoustic", "text_from_visual", "acoustic_from_text"),
        *("acoustic_from_visual", "visual_from_text", "visual_from_acoustic"),
    }
    assert {name: (len(e.layers), len(e.norm.weight)) for name, e in model.memory.items()} == dict.fromkeys(
        ("text", "acoustic", "visual"), (3, 8)
    )
    assert {len(encoder.layers) for encoder in model.crossmodal.values()} == {2}
    assert len(system("mult", layers=4).memory["text"].layers) == 4
    model = system("mult", acoustic_size=0)
    assert set(model.crossmodal) == {"text_from_visual", "visual_from_text"}
    assert {name: len(e.norm.weight) for name, e in model.memory.items()} == {"text": 4, "visual": 4}
    assert model.classifier.in_features == 8


def test_dropout_of_attention_is_that_of_its_source():
    config = MulTConfig(
        visual_size=5, acoustic_size=3, attention_dropout=0.1, visual_attention_dropout=0.2,
        acoustic_attention_dropout=0.3, num_hidden_layers=1, hidden_size=8, num_attention_heads=2,
    )  # fmt: skip
    model = MulTForSequenceClassification(config)
    of = {"text": 0.1, "visual": 0.2, "acoustic": 0.3}
    for name, encoder in model.crossmodal.items():
        assert {layer.attention.dropout for layer in encoder.layers} == {of[name.rpartition("_")[2]]}
    for encoder in model.memory.values():
        assert {layer.attention.dropout for layer in encoder.layers} == {0.1}


def test_dropout_acts_on_text_and_before_the_last_layer():
    batch = utterances(False)
    for name in ("text_dropout", "output_dropout"):
        model = system("mult", **{name: 0.5})
        inputs = packed(batch, model)
        assert not torch.equal(model.train().rows(**inputs)["logits"], model.eval().rows(**inputs)["logits"]), name


def test_the_order_of_frames_matters():
    """By positions, masks and the last row."""
    model, batch = system("mult"), utterances(False)
    changed = [dataclasses.replace(u, visual=u.visual.flip(0)) for u in batch]
    before, after = (model.rows(**packed(some, model))["logits"] for some in (batch, changed))
    several = [k for k, u in enumerate(batch) if len(u.visual) > 1]
    assert ((before - after).abs()[several] > 1e-6).all()
    others = [k for k in range(len(batch)) if k not in several]
    torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-12)


def test_initial_weights():
    model = system("mult", lively=False)
    layer = model.crossmodal["text_from_visual"].layers[0]
    assert (layer.attention.in_proj_bias == 0).all()
    assert (layer.attention.out_proj.bias == 0).all()
    assert (layer.dense.bias == 0).all()
    assert not (model.dense.bias == 0).any()  # PyTorch's own, as all else


def test_fields_out_of_range():
    with pytest.raises(ValueError, match="size is 6 but must be even, at least 4 and a multiple of heads, 4"):
        MulTConfig(size=6, heads=4)
    with pytest.raises(ValueError, match="acoustic_kernel_size is 2 but must be odd"):
        MulTConfig(acoustic_kernel_size=2)
    with pytest.raises(ValueError, match="give its configuration a visual_size or an acoustic_size"):
        system("mult", visual_size=0, acoustic_size=0)
