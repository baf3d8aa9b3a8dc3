"""Groups of parameters, and the learning rate of each step."""

import numpy as np
import pytest
import torch

from cmsbert_fast.data import read_corpus
from cmsbert_fast.training.build import build
from cmsbert_fast.training.optimiser import parameter_groups, restore, schedule
from cmsbert_fast.training.settings import TrainingSettings


def test_schedule():
    factors = [schedule(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert factors[10] == 1
    assert np.diff(factors[10:]) == pytest.approx(-1 / 90)
    assert factors[-1] == pytest.approx(1 / 90)
    assert [schedule(step, 3, 0.0) for step in range(3)] == pytest.approx([1, 2 / 3, 1 / 3])


def test_parameter_groups(corpus_folder, bert):
    settings = TrainingSettings(data=str(corpus_folder), model=str(bert), weight_decay=0.1, bert_weight_decay=1e-3)
    model, _ = build(settings, read_corpus(corpus_folder))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        g["name"]: ({names[id(p)] for p in g["params"]}, g["weight_decay"]) for g in parameter_groups(model, settings)
    }
    assert [decay for _, decay in groups.values()] == [0.1, 1e-3, 0]
    new, bert_names, undecayed = (members for members, _ in groups.values())
    assert len(new) + len(bert_names) + len(undecayed) == len(names)
    attention = "bert.encoder.layer.1.attention"
    assert {f"{attention}.self.gate_visual.weight", f"{attention}.self.shift_acoustic.weight"} <= new
    assert {"visual_lstm.weight_hh_l0", "fusion.out_proj.weight", "linguistic_projector.dense.weight"} <= new
    assert {f"{attention}.self.query.weight", "bert.embeddings.word_embeddings.weight"} <= bert_names
    assert {
        f"{attention}.output.LayerNorm.weight",
        "visual_lstm.bias_ih_l0",
        f"{attention}.self.gate_visual.bias",
    } <= undecayed
    assert "fusion.transformer.norm1.weight" in undecayed
    assert not any(name.endswith("bias") for name in new | bert_names)


def test_frozen_parameters_are_in_no_group(corpus_folder, bert):
    settings = TrainingSettings(data=str(corpus_folder), model=str(bert), learning_rate=3e-4)
    model, _ = build(settings, read_corpus(corpus_folder))
    model.bert.requires_grad_(False)
    groups = parameter_groups(model, settings)
    assert [(group["name"], group["base_lr"]) for group in groups] == [("new", 3e-4), ("undecayed", 3e-4)]
    expected = {id(p) for name, p in model.named_parameters() if not name.startswith("bert.")}
    assert {id(p) for group in groups for p in group["params"]} == expected


def test_base_rates_survive_a_checkpoint_without_them(corpus_folder, bert):
    settings = TrainingSettings(data=str(corpus_folder), model=str(bert))
    model, _ = build(settings, read_corpus(corpus_folder))
    optimizer = torch.optim.AdamW(parameter_groups(model, settings))
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["base_lr"]
    restore(optimizer, saved)
    assert [group["base_lr"] for group in optimizer.param_groups] == [settings.learning_rate] * 3


def test_constant_schedule():
    factors = [schedule(step, 100, 0.1, "constant") for step in range(100)]
    assert factors[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert set(factors[10:]) == {1}


def groups_of(corpus_folder, bert, **settings):
    given = TrainingSettings(data=str(corpus_folder), model=str(bert), variant="tfn", text="bert", **settings)
    model, _ = build(given, read_corpus(corpus_folder))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, given)
    assert sorted(names[id(p)] for g in groups for p in g["params"]) == sorted(names.values())
    return {g["name"]: ({names[id(p)] for p in g["params"]}, g["weight_decay"], g["base_lr"]) for g in groups}


def test_groups_with_rates_and_decays_of_their_own(corpus_folder, bert):
    rates, decays = {"text": 5e-5, "acoustic": 5e-3}, {"acoustic": 0.0, "visual": 0.3}
    found = groups_of(corpus_folder, bert, learning_rates=rates, weight_decays=decays, weight_decay=0.1)
    assert {name: (decay, rate) for name, (_, decay, rate) in found.items()} == {
        "new": (0.1, 1e-4),  # "other"
        "undecayed": (0, 1e-4),
        "new, text": (0.1, 5e-5),
        "bert, text": (1e-3, 5e-5),
        "undecayed, text": (0, 5e-5),
        "new, visual": (0.3, 1e-4),
        "undecayed, visual": (0, 1e-4),
        "new, acoustic": (0, 5e-3),
        "undecayed, acoustic": (0, 5e-3),
    }
    assert {"fusion_dense.weight", "classifier.weight"} <= found["new"][0]
    assert "visual_net.layers.1.weight" in found["new, visual"][0]
    assert "acoustic_net.layers.1.bias" in found["undecayed, acoustic"][0]
    assert "bert.encoder.layer.1.attention.self.query.weight" in found["bert, text"][0]
    assert found["new, text"][0] == {"text_linear.weight", "text_lstm.weight_ih_l0", "text_lstm.weight_hh_l0"}


def test_a_group_of_one_rate_for_all_is_none_of_its_own(corpus_folder, bert):
    assert list(groups_of(corpus_folder, bert)) == ["new", "bert", "undecayed"]
