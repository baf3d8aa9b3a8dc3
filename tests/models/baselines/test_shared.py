"""What every baseline must do, whatever it computes; a system is tested once it is in the registry."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from cmsbert_fast.models.losses import total_loss
from cmsbert_fast.models.registry import BASELINES, NEEDS, VARIANTS
from tests.models.baselines import steps
from tests.models.baselines.systems import BERT, case, config, needs, system, texts
from tests.models.baselines.utterances import labels, packed, padded, utterances

every_system = pytest.mark.parametrize("name", BASELINES)
every_text = pytest.mark.parametrize(("name", "text"), [(name, text) for name in BASELINES for text in texts(name)])


def batch_for(name):
    return utterances("word_frames" in needs(name), "frames_of_words" in needs(name))


def assert_same(found, expected, **tolerances):
    assert found.keys() == expected.keys()
    for row in expected:
        torch.testing.assert_close(found[row], expected[row], **({"rtol": 0, "atol": 1e-11} | tolerances), msg=row)


def taken(rows, indices):
    return {name: values[indices] for name, values in rows.items()}


@every_system
def test_is_in_the_registry(name):
    variant = VARIANTS[name]
    assert variant.needs <= set(NEEDS)
    model_class = variant.model_class
    assert model_class.config_class.model_type == f"cmsbert-{name}"
    assert set(case(name).FIELDS) <= {field.name for field in dataclasses.fields(model_class.config_class)}
    model, batch = system(name), batch_for(name)
    rows = model.rows(**packed(batch, model))
    assert rows["logits"].shape == (len(batch), 1)
    assert all(len(row) == len(batch) for row in rows.values())
    terms = model.train().losses(rows, labels(batch))
    assert next(iter(terms)) == "task"
    assert model.has_global_terms == any(not term.per_row for term in terms.values())
    assert {model.parameter_group(n) for n, _ in model.named_parameters()} <= set(model.parameter_groups)
    assert all(model.from_bert(n) == n.startswith("bert.") for n, _ in model.named_parameters())


@every_text
def test_a_batch_is_its_utterances_padded_packed_and_in_any_order(name, text):
    """And so no row depends on the others."""
    model, batch = system(name, text=text), batch_for(name)
    rows = model.rows(**packed(batch, model))
    assert_same(model.rows(**padded(batch, model)), rows)
    for k, utterance in enumerate(batch):
        assert_same(model.rows(**packed([utterance], model)), taken(rows, [k]))
        assert_same(model.rows(**padded([utterance], model, extra=0)), taken(rows, [k]))
    order = [3, 5, 1, 0, 4, 2]
    assert_same(model.rows(**packed([batch[k] for k in order], model)), taken(rows, order))


@every_text
def test_rows_of_no_utterance_reach_no_gradient(name, text):
    """NaN behind the last utterance's frames, word vectors and known features of text."""
    model, batch = system(name, text=text), batch_for(name)
    inputs = packed(batch, model)
    if text == "bert-frozen":
        inputs["text_features"] = model.text_features(**inputs)
    assert {"visual", "acoustic"} <= inputs.keys()

    def gradients(given):
        model.zero_grad()
        total_loss(model.losses(model.rows(**given), labels(batch))).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients(inputs)
    rest = dict(inputs)
    for each in {"visual", "acoustic", "word_vectors"} & inputs.keys():
        rest[each] = torch.cat([inputs[each], inputs[each].new_full((2, inputs[each].shape[1]), torch.nan)])
    if text == "bert-frozen":
        features = inputs["text_features"]
        rest["text_features"] = torch.cat([features, features.new_full((1, 2, features.shape[2]), torch.nan)], dim=1)
        for each in ("input_ids", "position_ids"):
            rest[each] = torch.cat([inputs[each], inputs[each].new_zeros(1, 2)], dim=1)
        if "token_words" in inputs:
            rest["token_words"] = torch.cat([inputs["token_words"], inputs["token_words"].new_full((1, 2), -1)], dim=1)
    assert_same(gradients(rest), expected)


@every_text
def test_agrees_with_the_literal_reference(name, text):
    model, batch = system(name, text=text), batch_for(name)
    rows = model.rows(**packed(batch, model))
    for k, utterance in enumerate(batch):
        read = model.utterances(**packed([utterance], model))
        frames = {m: f.values for m, f in read.frames.items()}
        with torch.no_grad():
            expected = case(name).reference(model, read.text.values, frames, utterance)
        assert "logits" in expected
        for row, values in expected.items():
            torch.testing.assert_close(rows[row][k], values, rtol=0, atol=1e-11, msg=row)


@every_system
@pytest.mark.parametrize("parts", [2, 3])
def test_micro_batches_change_rounding_only(name, parts):
    model, batch = system(name), batch_for(name)
    _, losses = steps.gradients_of(model, batch, state=steps.new_state(model, batch))
    _, of_parts = steps.gradients_of(model, batch, parts, state=steps.new_state(model, batch))
    assert_same(of_parts.rows, losses.rows)
    whole, found = steps.one_step(model, batch), steps.one_step(system(name), batch, parts)
    for ours, theirs in zip(found, whole, strict=True):
        assert_same(ours, theirs, rtol=1e-9)


@every_text
def test_every_trained_parameter_has_a_gradient(name, text):
    model, batch = system(name, text=text, loss="mse"), batch_for(name)  # with l1 the signs of a bias may cancel
    state = steps.new_state(model, batch)
    steps.train(model, batch, steps=3, state=state)
    gradients, _ = steps.gradients_of(model, batch, state=state)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n for n, _ in model.named_parameters()} - trained
    assert frozen == (
        {n for n, _ in model.named_parameters() if n.startswith("bert.")} if text == "bert-frozen" else set()
    )
    unread = {n for n in trained if not gradients[n].abs().max() > 0}
    assert not unread


@every_system
@pytest.mark.parametrize("absent", [None, "visual", "acoustic"])
@pytest.mark.parametrize("one", [0, 1, 2, 3, 5, None])
def test_few_frames_few_words_and_absent_modalities(name, absent, one):
    """Values and gradients are finite for a batch of one, in training mode too."""
    model = system(name, dropout=True, **({f"{absent}_size": 0} if absent else {}))
    batch = batch_for(name)
    batch = batch if one is None else [batch[one]]
    model.train()
    gradients, losses = steps.gradients_of(model, batch, state=steps.new_state(model, batch))
    assert all(g.isfinite().all() for g in gradients.values())
    assert all(value.isfinite() for value in losses.values.values())
    assert not any(absent in n for n, _ in model.named_parameters()) if absent else gradients


@pytest.mark.parametrize("name", [name for name in BASELINES if "regression" not in needs(name)])
def test_classes(name):
    model, batch = system(name, num_labels=3), batch_for(name)
    rows = model.rows(**packed(batch, model))
    assert rows["logits"].shape == (len(batch), 3)
    terms = model.losses(rows, torch.arange(len(batch)) % 3)
    torch.testing.assert_close(
        terms["task"].value, torch.nn.functional.cross_entropy(rows["logits"], torch.arange(len(batch)) % 3)
    )


@every_text
def test_saved_and_loaded(name, text, tmp_path):
    model, batch = system(name, text=text, backend="torch"), batch_for(name)
    model.save_pretrained(tmp_path)
    kind = type(model)
    for loaded in (
        kind.from_pretrained(tmp_path, dtype=torch.float64, backend="torch"),
        AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64, backend="torch"),
    ):
        assert type(loaded) is kind
        assert_same(loaded.state_dict(), model.state_dict(), atol=0)
        # Not to the bit: the file's weights are aligned otherwise in memory, and products may add in another order.
        assert_same(loaded.eval().rows(**packed(batch, model)), model.rows(**packed(batch, model)), atol=1e-13)
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert type(AutoConfig.from_pretrained(tmp_path)) is kind.config_class


@every_system
def test_starts_from_a_bert_checkpoint(name, tmp_path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    bert = BertModel(BertConfig(**BERT))
    bert.save_pretrained(tmp_path)
    for text in texts(name):
        fresh = config(name, text=text)
        model, report = type(system(name)).from_pretrained(tmp_path, config=fresh, output_loading_info=True)
        state = model.state_dict()
        new = {key for key in state if not key.startswith("bert.")}
        assert set(report["missing_keys"]) == new
        assert not report["mismatched_keys"]
        assert all(values.isfinite().all() and values.abs().max() < 10 for values in state.values())
        if text != "vectors":
            weight = "encoder.layer.1.output.dense.weight"
            assert torch.equal(state[f"bert.{weight}"], bert.state_dict()[weight])


@every_system
def test_overfits_eight_utterances(name):
    model = system(name, lively=False)
    batch = batch_for(name)
    other = [dataclasses.replace(u, ids=u.ids.flip(0), vectors=u.vectors.flip(0)) for u in (batch[0], batch[4])]
    batch = [*batch, *(dataclasses.replace(u, label=-u.label) for u in other)]
    model.prepare([packed(batch, model)])
    first, *_, end = steps.train(model, batch, 200, getattr(case(name), "RATE", 1e-2))
    assert end < 0.1 * first


@every_system
def test_forward_is_rows_and_losses(name):
    model, batch = system(name), batch_for(name)
    inputs = packed(batch, model)
    output = model(**inputs, labels=labels(batch))
    rows = model.rows(**inputs)
    assert torch.equal(output.logits, rows["logits"])
    torch.testing.assert_close(output.loss, total_loss(model.losses(rows, labels(batch))))


@every_system
def test_loss_and_architecture_are_fields(name):
    model, batch = system(name, loss="mse"), batch_for(name)
    rows = model.rows(**packed(batch, model))
    expected = (rows["logits"][:, 0] - labels(batch)).square().mean()
    torch.testing.assert_close(model.row_losses(rows, labels(batch))["task"].value, expected)
    with pytest.raises(ValueError, match="loss is 'l3'; choose one of mse, l1"):
        config(name, loss="l3")
    with pytest.raises(ValueError, match="text is 'glove'; choose one of"):
        config(name, text="glove")


@pytest.mark.parametrize("name", [name for name in BASELINES if "bert-frozen" in texts(name)])
def test_features_of_frozen_text_may_be_known(name):
    model, batch = system(name, text="bert-frozen"), batch_for(name)
    for form in (packed, padded):
        inputs = form(batch, model)
        words = {n: x for n, x in inputs.items() if "word" not in n}
        features = model.train().text_features(**words)
        model.eval()
        assert not features.requires_grad
        rows = model.rows(**inputs)
        assert_same(model.rows(**inputs, text_features=features), rows, atol=0)
        changed = model.rows(**inputs, text_features=features + 1)
        assert not torch.equal(changed["logits"], rows["logits"])  # BERT did not run again


@every_system
def test_features_are_for_frozen_text_only(name):
    for text in set(texts(name)) - {"bert-frozen"}:
        model, batch = system(name, text=text), batch_for(name)
        with pytest.raises(ValueError, match=f"text_features are for text 'bert-frozen', not '{text}'; leave them out"):
            model.rows(**packed(batch, model), text_features=torch.zeros(1, 30, 8))


@every_system
def test_numbers_out_of_range(name):
    config_class = VARIANTS[name].model_class.config_class
    wrong = {"_size": 0, "_dropout": 1.0, "_weight": -1.0}
    for field in config_class.own_fields():
        value = next((value for end, value in wrong.items() if field.endswith(end)), None)
        if value is not None:
            with pytest.raises(ValueError, match=f"{field} is {value} but must be"):
                config(name, **{field: value})


@pytest.mark.parametrize("name", ["mag-bert", "misa", "mult", "raven"])
def test_systems_that_cannot_do_without_frames(name):
    with pytest.raises(ValueError, match="needs a second modality; give its configuration a visual_size or an acousti"):
        system(name, visual_size=0, acoustic_size=0)
