"""The configuration of the model to train, from variant, settings, data and checkpoint."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig

from cmsbert_fast.data.embedded import embedded_tokenizer
from cmsbert_fast.data.example import MODALITIES, Corpus
from cmsbert_fast.data.word_vectors import WordVectors
from cmsbert_fast.models.configuration import declared_fields
from cmsbert_fast.models.registry import VARIANTS
from cmsbert_fast.training.errors import UsageError, impossible_architecture
from cmsbert_fast.training.extraction import check_features, trained_features
from cmsbert_fast.training.pretrained import check_sizes, saved_config
from cmsbert_fast.training.settings import FIELDS, TrainingSettings

# Fields that are not taken from a checkpoint: its identity, dtype, task and CMS layers.
_NOT_TAKEN_OVER = (
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "cms_layers",
)
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
_PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


def reads_vectors(config: PreTrainedConfig) -> bool:
    """Whether a model reads words as vectors."""
    return getattr(config, "text", None) == "vectors"


def build_config(settings: TrainingSettings, corpus: Corpus, vectors: WordVectors | None = None) -> PreTrainedConfig:
    """The configuration of the model to train; reads only the checkpoint's ``config.json``.

    Args:
        settings: What to train.
        corpus: On which data.
        vectors: Vectors of its words, if there are any.

    Raises:
        UsageError: There is no such checkpoint, or it does not fit the data.
    """
    variant = VARIANTS[settings.variant]
    config_class = _config_class(settings)
    fields = _asked_fields(settings, corpus)
    saved: dict[str, Any] = {}
    if settings.model is not None:
        saved = saved_config(settings.model, config_class)
        _check_fit(settings, saved, fields, corpus)
        for name in _NOT_TAKEN_OVER:
            saved.pop(name, None)
    elif not settings.embedded:
        raise UsageError(
            f"Name a pretrained checkpoint with --model to train on {corpus.name}; only the embedded corpus is small "
            "enough to train from scratch."
        )
    else:
        fields["vocab_size"] = len(embedded_tokenizer())
    if vectors is not None:
        fields["word_size"] = vectors.size
    known = declared_fields(config_class)
    fields = {name: value for name, value in fields.items() if name in known}
    fields = {**saved, **fields, **settings.architecture, **copy.deepcopy(dict(variant.config))}
    check_architecture(fields, config_class)
    try:
        config = config_class(**fields)
    except Exception as error:  # fields of a stranger's file can be of any type, and fail anywhere
        raise impossible_architecture(error) from None
    positions = getattr(config, "max_position_embeddings", math.inf)
    if settings.max_length > positions:
        raise UsageError(
            f"max_length is {settings.max_length} but the model has {positions} positions; choose at most that."
        )
    return config


def _config_class(settings: TrainingSettings) -> type[PreTrainedConfig]:
    found = VARIANTS[settings.variant].model_class.config_class
    assert found is not None
    return found


def _asked_fields(settings: TrainingSettings, corpus: Corpus) -> dict[str, Any]:
    """The fields set by settings and data, whatever the variant."""
    multimodal = VARIANTS[settings.variant].multimodal
    fields: dict[str, Any] = {
        "visual_size": corpus.visual_size if multimodal else 0,
        "acoustic_size": corpus.acoustic_size if multimodal else 0,
        "num_labels": len(corpus.classes) if corpus.classes else 1,
        "problem_type": "regression",
        "temperature": settings.temperature,
        "smoothing": settings.smoothing,
        "threshold": settings.threshold,
        "backend": settings.backend,
    }
    if corpus.classes:
        fields["problem_type"] = f"{'multi' if corpus.several else 'single'}_label_classification"
        fields["id2label"] = dict(enumerate(corpus.classes))
        fields["label2id"] = {name: i for i, name in enumerate(corpus.classes)}
    for name in FIELDS:
        if getattr(settings, name) is not None:
            fields[name] = getattr(settings, name)
    return fields


def check_architecture(fields: dict[str, Any], config_class: type[PreTrainedConfig]) -> None:
    """Finds values that the configuration accepts but a layer or the first step fails on.

    Raises:
        UsageError: A size or a probability is out of range.
    """
    known = declared_fields(config_class)
    check_sizes({name: value for name, value in fields.items() if name in known})
    rules: dict[str, tuple[type | tuple[type, ...], Callable[[Any], bool], str]] = {
        **dict.fromkeys(_SIZES, (int, lambda v: v >= 1, "a whole number of at least 1")),
        **dict.fromkeys(_PROBABILITIES, ((int, float), lambda v: 0 <= v < 1, "at least 0 and less than 1")),
        "initializer_range": ((int, float), lambda v: 0 <= v < math.inf, "a number of at least 0"),
        "layer_norm_eps": ((int, float), lambda v: 0 < v < math.inf, "a number greater than 0"),
    }
    for name, (kind, valid, rule) in rules.items():
        value = fields.get(name)
        if name not in fields or (name == "classifier_dropout" and value is None):
            continue
        if isinstance(value, bool) or not isinstance(value, kind) or not valid(value):
            raise impossible_architecture(f"{name} is {value!r:.100} but must be {rule}")
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(config_class)}
    hidden, heads = ((defaults | fields).get(name) for name in ("hidden_size", "num_attention_heads"))
    if hidden and heads and hidden % heads:
        raise impossible_architecture(f"num_attention_heads {heads} does not divide hidden_size {hidden}")


def _check_fit(settings: TrainingSettings, saved: dict[str, Any], fields: dict[str, Any], corpus: Corpus) -> None:
    kind = saved.get("model_type")
    own = _config_class(settings).model_type
    if kind not in ("bert", own):
        raise UsageError(f"{settings.model} is a {kind!r:.100} checkpoint; give one of BERT or {own.upper()}.")
    read = [modality for modality in MODALITIES if saved.get(f"{modality}_size") and fields[f"{modality}_size"]]
    if read:  # one of ours
        check_features(*trained_features(str(settings.model)), corpus, read, str(settings.model))
    for modality in MODALITIES:
        trained, given = saved.get(f"{modality}_size") or 0, fields[f"{modality}_size"]
        if trained and given and trained != given:
            raise UsageError(
                f"The {modality} stream of {corpus.name} has {given} features a frame but {settings.model} was trained "
                f"with {trained}; give the stream it was trained with, or another checkpoint."
            )
    trained_labels = len(saved.get("id2label") or {}) or saved.get("num_labels", 2)
    has_head = any(name.endswith("ForSequenceClassification") for name in saved.get("architectures") or ())
    if kind == "bert" and not VARIANTS[settings.variant].model_class.takes_bert_head:
        has_head = False
    if has_head and trained_labels != fields["num_labels"]:
        raise UsageError(
            f"{settings.model} predicts {trained_labels} values but {corpus.name} needs {fields['num_labels']}; "
            "give another checkpoint."
        )
