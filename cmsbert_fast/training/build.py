"""The model, the processor and the optimiser that settings and data ask for."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer
from transformers.utils import cached_file

from cmsbert_fast.data.embedded import embedded_tokenizer
from cmsbert_fast.data.example import Corpus
from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.models.cmsbert.modeling_cmsbert import (
    CMSBertCLRForSequenceClassification,
    CMSBertForSequenceClassification,
)
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.training.batches import fitting
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import VARIANTS, TrainingSettings

LOADING_ERRORS = (OSError, RuntimeError, ValueError, SafetensorError)
BEST = "best"  # the folder of a run's best model
# What a checkpoint's config says about itself, its dtype, its own task and its own layers with CMS.
_NOT_TAKEN_OVER = (
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "id2label",
    "label2id",
    "num_labels",
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
Classifier: TypeAlias = CMSBertForSequenceClassification | CMSBertCLRForSequenceClassification
Loaded: TypeAlias = tuple[Classifier, Any]  # a model and its tokenizer


def build_config(settings: TrainingSettings, corpus: Corpus) -> CMSBertConfig:
    """The configuration of the model to train; nothing but the checkpoint's ``config.json`` is read.

    Raises:
        UsageError: There is no such checkpoint, or it does not fit the data.
    """
    variant = VARIANTS[settings.variant]
    fields: dict[str, Any] = {
        "visual_size": corpus.visual_size if variant.multimodal else 0,
        "acoustic_size": corpus.acoustic_size if variant.multimodal else 0,
        "num_labels": len(corpus.classes) if corpus.classes else 1,
        "temperature": settings.temperature,
        "smoothing": settings.smoothing if variant.smoothing else None,
        "threshold": settings.threshold,
        "backend": settings.backend,
    }
    if variant.multimodal and not (corpus.visual_size or corpus.acoustic_size):
        raise UsageError(
            f"{corpus.name} holds no visual or acoustic frames, which {settings.variant} needs; name its streams, or "
            "train --variant bert."
        )
    if corpus.classes:
        fields["id2label"] = dict(enumerate(corpus.classes))
        fields["label2id"] = {name: i for i, name in enumerate(corpus.classes)}
    for name in ("projection_size", "gate_activation"):
        if getattr(settings, name) is not None:
            fields[name] = getattr(settings, name)
    saved: dict[str, Any] = {}
    if settings.model is not None:
        saved = _saved_config(settings.model)
        _check_fit(settings, saved, fields, corpus)
        for name in _NOT_TAKEN_OVER:
            saved.pop(name, None)
    elif not settings.embedded:
        raise UsageError(
            f"Name a pretrained checkpoint with --model to train on {corpus.name}; only the embedded corpus is small "
            "enough to start without one."
        )
    else:
        fields["vocab_size"] = len(embedded_tokenizer())
    fields = {**saved, **fields, **settings.architecture}
    _check_architecture(fields)
    try:
        config = CMSBertConfig(**fields)
        layers = range(config.num_hidden_layers) if variant.cms_layers is None else variant.cms_layers
        config.cms_layers = list(layers) if variant.multimodal else []
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"The architecture is not possible: {reason}") from None
    if settings.max_length > config.max_position_embeddings:
        raise UsageError(
            f"max_length is {settings.max_length} but the model has {config.max_position_embeddings} positions; "
            "ask for no more than that."
        )
    return config


def build(
    settings: TrainingSettings, corpus: Corpus, loaded: Loaded | None = None
) -> tuple[Classifier, CMSBertProcessor]:
    """The model, from its checkpoint or newly initialised, and the processor fitted to the training examples.

    Args:
        settings: What to build.
        corpus: The data to train on.
        loaded: What :func:`load` has given for them; None: it is called.

    Raises:
        UsageError: The checkpoint is missing, of another architecture or does not fit the data.
    """
    model, tokenizer = loaded or load(settings, build_config(settings, corpus))
    config = model.config
    processor = CMSBertProcessor(tokenizer, max_length=settings.max_length)
    standardise = corpus.standardise and settings.standardise
    if standardise and corpus.statistics is not None:
        sizes = {"visual": config.visual_size, "acoustic": config.acoustic_size}
        processor.set_statistics({name: values for name, values in corpus.statistics.items() if sizes[name]})
    elif standardise:
        processor.fit(fitting(example, config) for example in corpus.splits["train"])
    return model, processor


def load(settings: TrainingSettings, config: CMSBertConfig) -> Loaded:
    """The model of :func:`build_config`'s configuration, from its checkpoint or newly initialised, and its tokenizer.

    Raises:
        UsageError: The checkpoint is damaged, incomplete or of other sizes, or no model can be built.
    """
    contrastive = VARIANTS[settings.variant].contrastive
    model_class = CMSBertCLRForSequenceClassification if contrastive else CMSBertForSequenceClassification
    if settings.model is None:
        tokenizer = embedded_tokenizer()
        try:
            model: Classifier = model_class(config)
        except (ValueError, KeyError) as error:
            raise UsageError(f"The architecture is not possible: {error}") from None
    else:
        tokenizer = _load_tokenizer(settings.model)
        model = _load_weights(model_class, settings.model, config)
        if len(tokenizer) > config.vocab_size:
            raise UsageError(
                f"The tokenizer of {settings.model} has {len(tokenizer)} pieces, its model {config.vocab_size}; give "
                "a checkpoint whose files belong together."
            )
    return model, tokenizer


def load_trained(name: str | Path, backend: str = "auto") -> tuple[Classifier, CMSBertProcessor]:
    """A model that ``train.py`` has trained, in eval mode, and its processor.

    Args:
        name: The folder of the model, or of the run it is the best of, or a name on the Hugging Face hub.
        backend: See :mod:`cmsbert_fast.ops.dispatch`.

    Raises:
        UsageError: There is no such model, or it is of another kind.
    """
    if (Path(name) / BEST).is_dir():
        name = Path(name) / BEST
    kinds = {kind.__name__: kind for kind in (CMSBertForSequenceClassification, CMSBertCLRForSequenceClassification)}
    kind = next(iter(_saved_config(str(name)).get("architectures") or ()), None)
    if kind not in kinds:
        raise UsageError(f"{name} is a checkpoint of {kind or 'unknown kind'}; give one that train.py has trained.")
    try:
        model = kinds[kind].from_pretrained(name, backend=backend, dtype=torch.float32)
        processor = CMSBertProcessor.from_pretrained(name)
    except LOADING_ERRORS as error:
        first_line = str(error).strip().splitlines()[0]
        raise UsageError(f"{name} cannot be loaded, give an undamaged checkpoint: {first_line}") from None
    return model.eval(), processor


def parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """AdamW's groups: new modules' weights, BERT's weights, and biases and LayerNorm, which do not decay.

    New is what no BertModel has: gates, shifts, and everything outside the encoder.
    """
    undecayed = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)}
    new: list[nn.Parameter] = []
    bert: list[nn.Parameter] = []
    none: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if id(parameter) in undecayed or "bias" in name.rsplit(".", 1)[-1]:
            none.append(parameter)
        elif is_new(name):
            new.append(parameter)
        else:
            bert.append(parameter)
    groups = (("new", new, settings.weight_decay), ("bert", bert, settings.bert_weight_decay), ("undecayed", none, 0.0))
    return [{"name": n, "params": parameters, "weight_decay": d} for n, parameters, d in groups if parameters]


def state_options(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that a model's training state may use."""
    return {"momentum": settings.momentum if VARIANTS[settings.variant].ema else None}


def is_new(parameter_name: str) -> bool:
    """Whether a parameter of our models exists in no BertModel."""
    return not parameter_name.startswith("bert.") or ".gate_" in parameter_name or ".shift_" in parameter_name


def _saved_config(name: str) -> dict[str, Any]:
    missing = UsageError(
        f"There is no checkpoint {name!r}: give a folder with config.json and weights, or the name of a model on the "
        "Hugging Face hub that can be reached."
    )
    if Path(name).exists() and not Path(name).is_dir():
        raise UsageError(f"{name} is a file; give the checkpoint's folder, with config.json and weights.")
    try:
        path = cached_file(name, "config.json")
    except Exception:  # offline, unknown, forbidden, not a name at all: the hub's errors have no common class
        raise missing from None
    if path is None:
        raise missing
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"The config.json of {name} cannot be read; give an undamaged checkpoint.") from None
    return saved


def _check_architecture(fields: dict[str, Any]) -> None:
    """Finds what BertConfig lets pass and a layer, or the first step, fails on.

    Raises:
        UsageError: A size or a probability is out of range.
    """
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
            raise UsageError(f"The architecture is not possible: {name} is {value!r} but must be {rule}.")
    defaults = CMSBertConfig()
    hidden, heads = (fields.get(name, getattr(defaults, name)) for name in ("hidden_size", "num_attention_heads"))
    if hidden % heads:
        raise UsageError(
            f"The architecture is not possible: hidden_size is {hidden}, which {heads} attention heads cannot share; "
            "choose a num_attention_heads that divides it."
        )


def _check_fit(settings: TrainingSettings, saved: dict[str, Any], fields: dict[str, Any], corpus: Corpus) -> None:
    kind = saved.get("model_type")
    if kind not in ("bert", "cmsbert"):
        raise UsageError(f"{settings.model} is a checkpoint of architecture {kind!r}; give one of BERT or CMSBERT.")
    for modality in ("visual", "acoustic"):
        trained, given = saved.get(f"{modality}_size") or 0, fields[f"{modality}_size"]
        if trained and given and trained != given:
            raise UsageError(
                f"The {modality} stream of {corpus.name} has {given} features a frame but {settings.model} was trained "
                f"with {trained}; give the stream it was trained with, or another checkpoint."
            )
    trained_labels = len(saved.get("id2label") or {}) or saved.get("num_labels", 2)
    has_head = any(name.endswith("ForSequenceClassification") for name in saved.get("architectures") or ())
    if kind == "bert" and VARIANTS[settings.variant].contrastive:
        has_head = False  # CMSBERT-CLR has none of the kind: it is not loaded
    if has_head and trained_labels != fields["num_labels"]:
        raise UsageError(
            f"{settings.model} predicts {trained_labels} values but {corpus.name} asks for {fields['num_labels']}; "
            "give another checkpoint."
        )


def _load_tokenizer(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise UsageError(f"{name} holds no tokenizer ({type(error).__name__}); put its vocabulary beside it.") from None


def _load_weights(model_class: Any, name: str, config: CMSBertConfig) -> Classifier:
    try:
        model, report = model_class.from_pretrained(name, config=config, dtype=torch.float32, output_loading_info=True)
    except KeyError as error:  # hidden_act
        raise UsageError(f"The architecture is not possible: {error} is unknown.") from None
    except RuntimeError:
        raise UsageError(
            f"The weights of {name} have other sizes than the model asked for; ask for the architecture and the "
            "streams it was trained with, or give another checkpoint."
        ) from None
    except LOADING_ERRORS as error:
        first_line = str(error).strip().splitlines()[0]
        raise UsageError(
            f"The weights of {name} cannot be loaded, give an undamaged checkpoint: {first_line}"
        ) from None
    lacking = sorted(key for key in report["missing_keys"] if not is_new(key))
    if lacking:
        raise UsageError(
            f"{name} lacks {len(lacking)} weights of BERT, {lacking[0]} among them; give a checkpoint of BertModel."
        )
    return model
