"""The configuration of the model to train."""

import dataclasses

import pytest
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, PreTrainedConfig

from cmsbert_fast import CMSBertConfig
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.registry import BASELINES, VARIANTS, Variant
from cmsbert_fast.training.build import load
from cmsbert_fast.training.config import build_config
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TrainingSettings
from tests.training.helpers import tiny_corpus


def test_another_sequence_classifiers_head_is_no_hindrance(bert, tmp_path):
    BertForSequenceClassification(BertConfig.from_pretrained(bert, num_labels=5)).save_pretrained(tmp_path)
    settings = TrainingSettings(data="tiny", model=str(tmp_path))  # cmsbert-clr has another head
    assert build_config(settings, tiny_corpus(2)).num_labels == 1


@pytest.mark.parametrize("labels", [1, 5])
@pytest.mark.parametrize("variant", sorted({"cmsbert-clr", *BASELINES} - {"mag-bert"}))  # MAG-BERT takes it
def test_its_head_is_not_mistaken_for_the_systems_own(bert, tmp_path, variant, labels):
    classifier = BertForSequenceClassification(BertConfig.from_pretrained(bert, num_labels=labels))
    classifier.classifier.bias.data.fill_(7)
    classifier.save_pretrained(tmp_path)
    fields = {"fusion_size": 16} if variant == "tfn" else {}  # a head of BERT's size
    settings = TrainingSettings(data="tiny", model=str(tmp_path), variant=variant, architecture=fields)
    BertTokenizerFast.from_pretrained(bert).save_pretrained(tmp_path)
    model, _ = load(settings, build_config(settings, tiny_corpus(2)))
    assert not any((values == 7).any() for values in model.state_dict().values())


def test_gates_are_the_checkpoints_unless_chosen(tmp_path, bert):
    config = CMSBertConfig.from_pretrained(bert, visual_size=3, acoustic_size=3, num_labels=1, gate_activation="tanh")
    config.save_pretrained(tmp_path)
    for model, choice, expected in (
        (bert, None, "relu"),
        (bert, "sigmoid", "sigmoid"),
        (tmp_path, None, "tanh"),
        (tmp_path, "relu", "relu"),
    ):
        settings = TrainingSettings(data="tiny", model=str(model), gate_activation=choice)
        assert build_config(settings, tiny_corpus(2)).gate_activation == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_predicted_is_in_every_configuration(variant):
    """`evaluate` reads by it what labels are, and Hugging Face's pipeline what a prediction is."""
    settings, corpus = TrainingSettings(variant=variant), tiny_corpus(2)
    assert build_config(settings, corpus).problem_type == "regression"
    if "regression" not in VARIANTS[variant].needs:
        found = build_config(settings, dataclasses.replace(corpus, classes=("a", "b")))
        assert (found.problem_type, found.id2label) == ("single_label_classification", {0: "a", 1: "b"})


class Plain(PreTrainedConfig):
    """A configuration that shares nothing with CMSBERT's but the encoder's width."""

    model_type = "plain"
    architecture_fields = ("hidden_size",)

    hidden_size: int = 12
    temperature: float = 5.0


class PlainModel(Classifier):
    config_class = Plain


def test_a_configuration_gets_no_field_that_its_class_lacks(monkeypatch):
    monkeypatch.setitem(VARIANTS, "plain", Variant(f"{__name__}:PlainModel", config={"temperature": 7.0}))
    settings = TrainingSettings(variant="plain", architecture={"hidden_size": 8})
    found = build_config(settings, tiny_corpus(2))
    assert (type(found), found.hidden_size, found.temperature, found.num_labels) == (Plain, 8, 7.0, 1)
    for name in ("smoothing", "visual_size", "vocab_size", "backend", "gate_activation"):
        assert not hasattr(found, name)
    with pytest.raises(UsageError, match=r"architecture names 'hidden_act'; it may change hidden_size[.]"):
        TrainingSettings(variant="plain", architecture={"hidden_act": "relu"})
