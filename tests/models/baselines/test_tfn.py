"""TFN's own checks."""

import dataclasses
from pathlib import Path

import pytest
import torch

from cmsbert_fast.models.baselines.tfn import TFNConfig, TFNForSequenceClassification, outer, with_one
from cmsbert_fast.packing import segment_mean
from tests.models.baselines.systems import system
from tests.models.baselines.utterances import packed, utterances


def test_size_of_the_published_model():
    config = TFNConfig(visual_size=47, acoustic_size=74, num_hidden_layers=1)
    with torch.device("meta"):
        model = TFNForSequenceClassification(config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 9_571_267


def test_the_product():
    generator = torch.Generator().manual_seed(0)
    z = {m: torch.randn(3, size, generator=generator) for m, size in (("a", 2), ("v", 4), ("l", 3))}
    ones = {m: with_one(rows) for m, rows in z.items()}
    found = outer(ones["a"], outer(ones["v"], ones["l"]))
    expected = torch.einsum("bi,bj,bk->bijk", ones["a"], ones["v"], ones["l"])
    torch.testing.assert_close(found, expected.flatten(1))
    assert torch.equal(expected[:, 0, 0], torch.cat([torch.ones(3, 1), z["l"]], dim=1))


def test_scores_are_within_3():
    model = system("tfn")
    for parameter in model.parameters():
        parameter.data.mul_(20)
    logits = model.rows(**packed(utterances(False), model))["logits"]
    assert logits.abs().max() <= 3
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.zero_()
    assert (model.rows(**packed(utterances(False), model))["logits"] == 0).all()


def test_scores_in_half_precision_are_not_rounded():
    model, batch = system("tfn", text="bert").float(), utterances(False)
    inputs = {n: x.float() if x.is_floating_point() else x for n, x in packed(batch, model).items() if "max" not in n}
    inputs |= {n: x for n, x in packed(batch, model).items() if "max" in n}
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.rows(**inputs)["logits"]
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_order_and_number_of_frames_do_not_matter():
    model, batch = system("tfn"), utterances(False)
    rows = model.rows(**packed(batch, model))["logits"]
    changed = [
        dataclasses.replace(u, visual=u.visual.flip(0).repeat(2, 1), acoustic=u.acoustic.repeat(3, 1)) for u in batch
    ]
    torch.testing.assert_close(model.rows(**packed(changed, model))["logits"], rows, rtol=0, atol=1e-12)


def test_without_frames_the_text_alone_decides():
    """Where z_v and z_a are 0, whatever the frames are."""
    model, batch = system("tfn"), utterances(False)
    for name in ("visual", "acoustic"):
        last = getattr(model, f"{name}_net").layers[2]
        last.weight.data.zero_()
        last.bias.data.zero_()
    rows = model.rows(**packed(batch, model))["logits"]
    changed = [dataclasses.replace(u, visual=u.visual + 1, acoustic=u.acoustic[:1]) for u in batch]
    assert torch.equal(model.rows(**packed(changed, model))["logits"], rows)


def test_statistics_are_those_of_the_utterances_means(tmp_path: Path):
    model, batch = system("tfn"), utterances(False)
    model.prepare([packed(batch[:4], model), packed(batch[4:], model)])
    for name in ("visual", "acoustic"):
        frames = model.frames(**packed(batch, model))[name]
        means = segment_mean(frames.values, frames.packing)
        norm = getattr(model, f"{name}_net").norm
        torch.testing.assert_close(norm.mean, means.mean(0))
        torch.testing.assert_close(norm.deviation, (means.var(0, correction=0) + 1e-5).sqrt())
        # What BatchNorm1d computes of the whole split in training.
        batch_norm = torch.nn.BatchNorm1d(means.shape[1], dtype=torch.float64)
        norm.reset_parameters()
        model.prepare([packed(batch, model)])
        torch.testing.assert_close(norm(means), batch_norm(means))
    model.save_pretrained(tmp_path)
    loaded = TFNForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(loaded.visual_net.norm.mean, model.visual_net.norm.mean)


def test_dropout_acts_on_text_frames_and_product():
    batch = utterances(False)
    for name in ("text_dropout", "visual_dropout", "acoustic_dropout", "fusion_dropout"):
        model = system("tfn", **{name: 0.5})
        inputs = packed(batch, model)
        assert not torch.equal(model.train().rows(**inputs)["logits"], model.eval().rows(**inputs)["logits"]), name


def test_a_field_out_of_range():
    with pytest.raises(ValueError, match="fusion_size is 0 but must be a whole number of at least 1"):
        TFNConfig(fusion_size=0)
    with pytest.raises(ValueError, match=r"text_dropout is 1[.]0 but must be at least 0 and less than 1"):
        TFNConfig(text_dropout=1.0)
