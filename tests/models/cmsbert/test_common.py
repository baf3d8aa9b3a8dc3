"""The behaviours that Hugging Face's own common model tests demand, on our models (docs/hugging_face.md).

What those tests demand of decoders, of attention implementations and of cached keys does not apply to these encoders.
"""

import copy
import inspect
import io
import json
import pickle
import warnings

import pytest
import torch
from transformers import Trainer, TrainingArguments

from cmsbert_fast import (
    CMSBertCLRForSequenceClassification,
    CMSBertConfig,
    CMSBertForSequenceClassification,
    CMSBertModel,
    ContrastiveWeightCallback,
)
from cmsbert_fast.models.registry import BASELINES, VARIANTS
from tests.models.baselines.systems import needs, system
from tests.models.baselines.utterances import packed as packed_baseline
from tests.models.baselines.utterances import utterances
from tests.models.small import config, lively, packed

MODELS = [CMSBertModel, CMSBertForSequenceClassification, CMSBertCLRForSequenceClassification]
HEADS = MODELS[1:]
every = pytest.mark.parametrize("kind", MODELS)
with_head = pytest.mark.parametrize("kind", HEADS)
LABELS = torch.tensor([1.0, 1.05, -2.0, 0.0], dtype=torch.float64)


def first(output):
    return output[0] if isinstance(output, tuple) else next(iter(output.values()))


@pytest.fixture
def model(kind):
    torch.manual_seed(0)
    return lively(kind(config()))


@every
def test_configuration_round_trip(kind, tmp_path):
    saved = config(num_labels=3, label2id={"a": 0, "b": 1, "c": 2}, id2label={0: "a", 1: "b", 2: "c"})
    saved.save_pretrained(tmp_path)
    assert CMSBertConfig.from_pretrained(tmp_path).to_dict() == saved.to_dict()
    assert CMSBertConfig.from_dict(saved.to_dict()).to_dict() == saved.to_dict()
    assert copy.deepcopy(saved).to_dict() == saved.to_dict()


def test_a_configuration_is_used_as_any_other(tmp_path):
    """Fields are set, JSON is JSON, folders may be nested; the number of labels makes their names."""
    found = config()
    for name, value in {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 4, "vocab_size": 7}.items():
        setattr(found, name, value)
        assert getattr(found, name) == getattr(CMSBertConfig(**{name: value}), name) == value
    found.num_labels = 5
    assert (len(found.id2label), len(found.label2id)) == (5, 5)
    found.num_labels = 3
    assert (len(found.id2label), len(found.label2id)) == (3, 3)
    assert json.loads(found.to_json_string())["vocab_size"] == 7
    found.to_json_file(tmp_path / "config.json")
    assert CMSBertConfig.from_json_file(tmp_path / "config.json").to_dict() == found.to_dict()
    found.save_pretrained(tmp_path / "sub")
    assert CMSBertConfig.from_pretrained(tmp_path, subfolder="sub").to_dict() == found.to_dict()


@every
def test_weights_without_a_checkpoint(model, kind, batch):
    """From a state dict; all that a model computes with is in it."""
    loaded = kind.from_pretrained(None, config=config(), state_dict=model.state_dict()).eval()
    torch.testing.assert_close(first(loaded(**batch)), first(model(**batch)), rtol=0, atol=1e-13)
    for name, module in model.named_modules():
        assert not any(isinstance(value, torch.Tensor) for value in vars(module).values()), name


@with_head
def test_sizes_that_differ_are_refused_unless_meant(kind, tmp_path):
    kind(config()).save_pretrained(tmp_path)
    for other in ({"num_labels": 42}, {"vocab_size": 10}):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            kind.from_pretrained(tmp_path, **other)
        model = kind.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **other)
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
        assert all(getattr(model.config, name) == value for name, value in other.items())


@every
def test_input_embeddings_are_replaced_and_there_are_no_output_embeddings(model, batch):
    before = first(model(**batch))
    other = torch.nn.Embedding.from_pretrained(2 * model.get_input_embeddings().weight.detach())
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    assert model.get_output_embeddings() is None
    assert (first(model(**batch)) - before).abs().max() > 1e-3


@every
def test_feed_forward_layers_in_chunks(model, kind, batch):
    chunked = kind(config(chunk_size_feed_forward=1)).double().eval()
    chunked.load_state_dict(model.state_dict())
    torch.testing.assert_close(first(chunked(**packed(batch))), first(model(**packed(batch))), rtol=0, atol=1e-12)


@every
def test_tuple_and_dict_outputs_are_equal(model, batch):
    for asked in ({}, {"output_hidden_states": True}):
        as_dict, as_tuple = model(**batch, **asked), model(**batch, **asked, return_dict=False)
        assert isinstance(as_tuple, tuple)
        values = as_dict.to_tuple()
        assert len(values) == len(as_tuple)
        for a, b in zip(values, as_tuple, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@every
def test_the_result_is_the_same_every_time_and_after_saving(model, kind, batch, tmp_path):
    expected = first(model(**batch))
    torch.testing.assert_close(first(model(**batch)), expected, rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(first(loaded(**batch)), expected, rtol=0, atol=1e-13)  # memory lies otherwise
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = kind(config()).double().eval()
    fresh.load_state_dict(torch.load(buffer))
    torch.testing.assert_close(first(fresh(**batch)), expected, rtol=0, atol=1e-13)


@every
def test_input_ids_and_their_embeddings_are_the_same(model, batch):
    embeds = model.get_input_embeddings()(batch["input_ids"])
    given = {name: value for name, value in batch.items() if name != "input_ids"}
    torch.testing.assert_close(first(model(**given, inputs_embeds=embeds)), first(model(**batch)), rtol=0, atol=1e-12)


@every
def test_hidden_states_by_argument_and_by_configuration(model, batch):
    asked = model(**batch, output_hidden_states=True).hidden_states
    assert len(asked) == 4
    assert all(states.shape == (4, 9, 16) for states in asked)
    model.config.output_hidden_states = True
    if isinstance(model, CMSBertModel):
        configured = model(**batch).hidden_states
    else:
        model.bert.config.output_hidden_states = True
        configured = model(**batch).hidden_states
    for a, b in zip(asked, configured, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@every
def test_embeddings_can_be_resized(model, batch):
    before = first(model(**batch))
    model.resize_token_embeddings(57)
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 57
    torch.testing.assert_close(first(model(**batch)), before, rtol=0, atol=0)
    model(**{**batch, "input_ids": torch.full_like(batch["input_ids"], 56)})
    model.resize_token_embeddings(40)
    assert model.get_input_embeddings().weight.shape[0] == 40


@with_head
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(model, batch, reentrant):
    def gradients(model):
        model.zero_grad()
        model(**batch, labels=LABELS).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.train()
    expected = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert model.is_gradient_checkpointing
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12, msg=name)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@every
def test_pickled_and_copied_whole(model, batch):
    """Also after PEFT asked for gradients of the inputs."""
    model.enable_input_require_grads()
    expected = first(model(**batch))
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        torch.testing.assert_close(first(other(**batch)), expected, rtol=0, atol=1e-13)
        assert other.get_input_embeddings()(batch["input_ids"]).requires_grad
    model.requires_grad_(False)
    assert first(model(**batch)).requires_grad
    model.disable_input_require_grads()
    assert not first(model(**batch)).requires_grad


@every
def test_gradients_of_hidden_states_are_kept(model, batch):
    """Of packed inputs: the hidden states of padded ones are copies, brought back to their form."""
    output = model(**packed(batch), output_hidden_states=True)
    for states in output.hidden_states:
        states.retain_grad()
    first(output).flatten()[0].backward()
    assert all(states.grad is not None for states in output.hidden_states)


@every
def test_initial_weights_are_the_same_on_the_meta_device(kind, tmp_path):
    """Loading makes the model on the meta device, then initialises what the checkpoint lacks."""
    torch.manual_seed(0)
    kind(config()).save_pretrained(tmp_path)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in kind(config()).state_dict().items()}
    loaded = kind.from_pretrained(tmp_path)
    assert {name: tensor.shape for name, tensor in loaded.state_dict().items()} == shapes
    assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())


@with_head
def test_labels_of_all_problem_types(kind, batch):
    whole = config(num_labels=3, problem_type="multi_label_classification")
    several = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]], dtype=torch.float64)
    cases = [
        (whole, several),
        (config(num_labels=3), torch.tensor([0, 2, 1, 1])),
        (config(), LABELS),
        (config(), LABELS[:, None]),
    ]
    losses = []
    for configuration, labels in cases:
        torch.manual_seed(0)
        model = lively(kind(configuration)).train()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        assert loss.isfinite()
        losses.append(loss.item())
    assert losses[2] == losses[3]


@with_head
def test_one_label_is_a_score(kind, tmp_path):
    """Without it Hugging Face's pipeline would print a sigmoid of the score. A checkpoint may get other labels."""
    kind(config()).save_pretrained(tmp_path)
    assert CMSBertConfig.from_pretrained(tmp_path).problem_type == "regression"
    other = kind.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert other.config.problem_type is None
    assert other.config.num_labels == 3


@with_head
def test_labels_a_token_are_refused_in_words(model, batch):
    """``DataCollatorWithFlattening`` makes a label a token."""
    inputs = packed(batch)
    with pytest.raises(
        ValueError, match=r"one a token, as DataCollatorWithFlattening makes them; give one an .* \(4,\)"
    ):
        model(**inputs, labels=torch.zeros_like(inputs["input_ids"]))


@every
def test_what_an_encoder_does_not_have(model, batch):
    expected = first(model(**batch))
    nothing = dict(output_attentions=False, use_cache=None, past_key_values=None)
    torch.testing.assert_close(first(model(**batch, **nothing)), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"output_attentions is not available: .* output_shift_maps=True"):
        model(**batch, output_attentions=True)
    with pytest.raises(TypeError, match="has no argument 'foo'; it takes"):
        model(**batch, foo=1)
    with pytest.raises(TypeError, match="did you mean 'cu_seq_lens_visual'"):
        model(**batch, cu_seq_len_visual=torch.tensor([0]))


@pytest.mark.parametrize("name", BASELINES)
def test_what_a_baseline_does_not_have(name):
    model = system(name)
    inputs = packed_baseline(utterances("word_frames" in needs(name), "frames_of_words" in needs(name)), model)
    model(**inputs, output_attentions=None, output_hidden_states=False)
    for asked in ("output_attentions", "output_hidden_states"):
        with pytest.raises(ValueError, match=f"{asked} is not available"):
            model(**inputs, **{asked: True})
    with pytest.raises(TypeError, match="has no argument 'foo'"):
        model(**inputs, foo=1)
    model.enable_input_require_grads()
    pickle.loads(pickle.dumps(model))


def test_training_without_labels_is_told(batch):
    model = lively(CMSBertCLRForSequenceClassification(config()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**batch)
        model.rows(**batch)
    with pytest.warns(UserWarning, match="without labels, so there is no contrastive loss"):
        model.train()(**batch)


def test_label_smoothing_of_the_trainer_is_refused(batch, tmp_path):
    model = CMSBertCLRForSequenceClassification(config(num_labels=2))
    rows = [{"input_ids": batch["input_ids"][k], "labels": torch.tensor(k % 2)} for k in range(4)]
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to=[])
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.add_callback(ContrastiveWeightCallback(trainer))
    with pytest.raises(ValueError, match="Leave out label_smoothing_factor"):
        trainer.train()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_system_is_a_model_of_hugging_face(variant):
    model_class = VARIANTS[variant].model_class
    assert model_class.main_input_name == "input_ids"
    assert model_class.config_class.model_type
    assert "labels" in inspect.signature(model_class.forward).parameters
    assert not model_class.accepts_loss_kwargs
