"""The configuration of the model to train."""

from transformers import BertConfig, BertForSequenceClassification

from cmsbert_fast import CMSBertConfig
from cmsbert_fast.training.architecture import build_config
from cmsbert_fast.training.settings import TrainingSettings
from tests.training.helpers import tiny_corpus


def test_another_sequence_classifiers_head_is_no_hindrance(bert, tmp_path):
    BertForSequenceClassification(BertConfig.from_pretrained(bert, num_labels=5)).save_pretrained(tmp_path)
    settings = TrainingSettings(data="tiny", model=str(tmp_path))  # cmsbert-clr has another head
    assert build_config(settings, tiny_corpus(2)).num_labels == 1


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
