"""Self-MM's own checks: its losses, and the labels that it makes up."""

import math

import pytest
import torch

from cmsbert_fast.models.baselines import self_mm
from cmsbert_fast.models.baselines.self_mm import SelfMMConfig, SelfMMForSequenceClassification, UnimodalLabels
from cmsbert_fast.reference import self_mm as reference
from tests.models.baselines import steps
from tests.models.baselines.systems import config, system
from tests.models.baselines.utterances import labels, packed, utterances

TASKS = ("text", "acoustic", "visual")


@pytest.mark.parametrize(
    ("fields", "new"),
    [
        (dict(visual_hidden_size=64, acoustic_hidden_size=32, text_task_size=64), 222_724),  # of the official code
        ({}, 167_204),
    ],
)
def test_size_of_the_published_model(fields, new):
    config = SelfMMConfig(visual_size=47, acoustic_size=74, num_hidden_layers=1, **fields)
    with torch.device("meta"):
        model = SelfMMForSequenceClassification(config)
    assert sum(p.numel() for name, p in model.named_parameters() if not model.from_bert(name)) == new


def test_encoders_have_groups_of_their_own():
    """And the heads are "other", that of the text too."""
    model = system("self-mm")
    groups = {}
    for name, _ in model.named_parameters():
        groups.setdefault(model.parameter_group(name), set()).add(name.split(".")[0])
    assert groups == {
        "text": {"bert"},
        "visual": {"visual_lstm", "visual_linear"},
        "acoustic": {"acoustic_lstm", "acoustic_linear"},
        "other": {"heads"},
    }


def memory():
    return UnimodalLabels(TASKS, 3.0, torch.device("cpu"))


def features(**values):
    """Rows of one feature for every modality; all are as "fusion" unless given."""
    found = {name: values.get(name, values["fusion"]) for name in ("fusion", *TASKS)}
    return {f"{name}_features": torch.tensor(x, dtype=torch.float64)[:, None] for name, x in found.items()}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand():
    """Example 0 has y = 2; its D_M are 1 and 3, those of the text 2 and 3."""
    state = memory()
    state.start(tensor(2, 1, -1))
    # So the centres are 0 and 4, those of the text 0 and 5.
    state.step(1, torch.arange(3), features(fusion=[0.0, 0.0, 4.0], text=[0.0, 0.0, 5.0]))
    assert torch.equal(state.targets(torch.tensor([0])), tensor(2, 2, 2)[None])
    state.step(2, torch.tensor([0]), features(fusion=[1.0], text=[2.0]))
    made_up = state.targets(torch.tensor([0]))[0]
    # delta_M = 2, delta_l = 0.5; new = 0.5 * 0.25 * 2 + 0.5 (2 + 0.5 - 2) = 0.5; y_l = 1/3 * 2 + 2/3 * 0.5 = 1
    torch.testing.assert_close(made_up, tensor(1, 2, 2), rtol=0, atol=1e-7)
    assert (made_up[0] - 2).abs().tanh().item() == pytest.approx(0.761594, abs=1e-6)  # the weight of its loss
    others = state.targets(torch.tensor([1, 2]))
    assert torch.equal(others, tensor(1, -1)[:, None].repeat(1, 3))  # they were not in the batch


def test_momentum():
    """(n - 1)/(n + 1) and 2/(n + 1): for n = 3 both are 1/2."""
    state = memory()
    state.start(tensor(2, 1, -1))
    state.step(1, torch.arange(3), features(fusion=[0.0, 0.0, 4.0], text=[0.0, 0.0, 5.0]))
    state.step(3, torch.tensor([0]), features(fusion=[1.0], text=[2.0]))
    torch.testing.assert_close(
        state.targets(torch.tensor([0]))[0, 0], tensor(0.5 * 2 + 0.5 * 0.5)[0], rtol=0, atol=1e-7
    )


def test_centres_are_those_of_the_step_before():
    """The features of a step reach the centres after it, and an example whose made-up label crosses 0 changes sides."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(7, generator=generator, dtype=torch.float64)
    state = memory()
    state.start(y)
    remembered = {name: [[0.0, 0.0]] * 7 for name in ("fusion", *TASKS)}
    made_up = {name: y.tolist() for name in TASKS}
    crossed = 0
    for epoch in (1, 2, 3, 4):
        for indices in torch.randperm(7, generator=generator).split(3):
            rows = {
                f"{name}_features": torch.randn(len(indices), 2, generator=generator, dtype=torch.float64)
                for name in ("fusion", *TASKS)
            }
            state.step(epoch, indices, rows)
            if epoch > 1:
                before = {name: list(values) for name, values in made_up.items()}
                for row, i in enumerate(indices.tolist()):
                    f = {name: rows[f"{name}_features"][row].tolist() for name in ("fusion", *TASKS)}
                    whole = reference.delta(f["fusion"], remembered["fusion"], y.tolist())
                    for name in TASKS:
                        own = reference.delta(f[name], remembered[name], before[name])
                        made_up[name][i] = reference.made_up(float(y[i]), before[name][i], own, whole, epoch)
                        crossed += (made_up[name][i] >= 0) != (before[name][i] >= 0)
            for row, i in enumerate(indices.tolist()):
                for name in remembered:
                    remembered[name] = [*remembered[name]]
                    remembered[name][i] = rows[f"{name}_features"][row].tolist()
            expected = torch.tensor([made_up[name] for name in TASKS], dtype=torch.float64).T
            torch.testing.assert_close(state.targets(torch.arange(7)), expected, rtol=0, atol=1e-10)
    assert crossed > 3
    distances = (expected - y[:, None]).abs().mean(0).tolist()
    assert list(state.report()) == [f"{name}_label_distance" for name in TASKS]
    assert list(state.report().values()) == pytest.approx(distances)


def test_zero_is_positive():
    state = memory()
    state.start(tensor(0, -1))
    state.step(1, torch.arange(2), features(fusion=[1.0, 2.0], text=[1.0, 3.0]))
    state.step(2, torch.tensor([1]), features(fusion=[1.5], text=[1.5]))
    # D_M = (0.5, 0.5), D_l = (0.5, 1.5): the new label is clipped.
    assert state.targets(torch.tensor([1]))[0, 0] == pytest.approx(1 / 3 * -1 + 2 / 3 * -3)


@pytest.mark.parametrize("sign", [1, -1])
def test_labels_stay_while_a_side_is_empty(sign):
    state = memory()
    state.start(tensor(1, 2) * sign)
    for epoch in (1, 2):
        state.step(epoch, torch.arange(2), features(fusion=[1.0, 2.0]))
    assert torch.equal(state.targets(torch.arange(2)), (tensor(1, 2) * sign)[:, None].repeat(1, 3))


def test_labels_stay_where_a_quotient_is_not_finite(monkeypatch):
    """delta_M + 1e-8 = 0; with 0 in place of 1e-8 so that a number hits it."""
    monkeypatch.setattr(self_mm, "EPSILON", 0.0)
    state = memory()
    state.start(tensor(1, 2, -1))
    state.step(1, torch.arange(3), features(fusion=[0.0, 0.0, 2.0], text=[0.0, 0.0, 5.0]))
    state.step(2, torch.tensor([0]), features(fusion=[1.0], text=[2.0]))  # delta_M = 0, delta_l = 0.5, others 0
    assert torch.equal(state.targets(torch.arange(3)), tensor(1, 2, -1)[:, None].repeat(1, 3))


def test_unimodal_losses():
    """tanh |y_s - y| |y'_s - y_s|, 0 in epoch 1, none without labels of the modalities."""
    model, batch = system("self-mm"), utterances(False)
    rows, y = model.rows(**packed(batch, model)), labels(batch)
    state = steps.new_state(model, batch)
    terms = model.losses(rows, y, state.targets(torch.arange(6)))
    assert list(terms) == ["task", *TASKS]
    assert all(terms[name].value == 0 and terms[name].weight == 1 for name in TASKS)
    torch.testing.assert_close(terms["task"].value, (rows["logits"][:, 0] - y).abs().mean())
    targets = torch.stack([y + 1, y, y - 0.5], dim=1)
    terms = model.losses(rows, y, targets)
    for k, name in enumerate(TASKS):
        total = 0.0
        for y_s, label, score in zip(targets[:, k].tolist(), y.tolist(), rows[f"{name}_logits"].tolist(), strict=True):
            total += math.tanh(abs(y_s - label)) * abs(score[0] - y_s)
        assert terms[name].value.item() == pytest.approx(total / 6, abs=1e-12)
    assert list(model.losses(rows, y)) == ["task"]


def test_epoch_1_changes_no_label_and_trains_no_head():
    model, batch = system("self-mm"), utterances(False)
    state = steps.new_state(model, batch)
    steps.train(model, batch, steps=1, state=state)
    assert torch.equal(state.targets(torch.arange(6)), labels(batch)[:, None].repeat(1, 3))
    assert all(distance == 0 for distance in state.report().values())
    gradients, _ = steps.gradients_of(model, batch, state=state)
    assert not gradients["heads.text.classifier.weight"].any()
    steps.train(model, batch, steps=2, state=state)
    gradients, _ = steps.gradients_of(model, batch, state=state)
    assert gradients["heads.text.classifier.weight"].any()


def test_an_absent_modality_has_no_label():
    model, batch = system("self-mm", visual_size=0), utterances(False)
    state = steps.new_state(model, batch)
    steps.train(model, batch, steps=2, state=state)
    assert state.targets(torch.arange(6)).shape == (6, 2)
    assert list(state.report()) == ["text_label_distance", "acoustic_label_distance"]


def test_the_limit_is_a_field():
    with pytest.raises(ValueError, match=r"label_limit is 0[.]0 but must be greater than 0"):
        config("self-mm", label_limit=0.0)
    model, batch = system("self-mm", label_limit=0.25), utterances(False)
    state = steps.new_state(model, batch)
    steps.train(model, batch, steps=40, state=state)
    assert state.targets(torch.arange(6)).abs().max() < 0.3


def test_no_classes():
    with pytest.raises(ValueError, match="Self-MM predicts a score, not 3 classes"):
        SelfMMForSequenceClassification(config("self-mm", num_labels=3))


def test_dropout_acts_before_each_head():
    batch = utterances(False)
    for name, row in (
        ("fusion_dropout", "logits"),
        ("text_dropout", "text_logits"),
        ("visual_dropout", "visual_logits"),
        ("acoustic_dropout", "acoustic_logits"),
        ("visual_lstm_dropout", "logits"),
        ("acoustic_lstm_dropout", "acoustic_logits"),
    ):
        model = system("self-mm", **{name: 0.5})
        inputs = packed(batch, model)
        expected = model.rows(**inputs)
        found = model.train().rows(**inputs)
        changed = {n for n in expected if not torch.equal(found[n], expected[n])}
        assert row in changed, name
        if name == "text_dropout":
            assert changed == {"text_logits", "text_features"}


def test_the_memory_survives_saving():
    model, batch = system("self-mm"), utterances(False)
    state = steps.new_state(model, batch)
    steps.train(model, batch, steps=3, state=state)
    other = model.training_state(6)
    other.load_state_dict(state.state_dict())
    assert other.report() == state.report()
    rows = {name: torch.ones_like(values[:2]) for name, values in state.memory.features.items()}
    for one in (state, other):
        one.step(5, torch.tensor([1, 3]), {name: values.clone() for name, values in rows.items()})
    assert torch.equal(other.targets(torch.arange(6)), state.targets(torch.arange(6)))
