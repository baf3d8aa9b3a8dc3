"""Builds a model and processor from settings and data, or loads those of a run."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_NAME

from cmsbert_fast.data.embedded import embedded_tokenizer
from cmsbert_fast.data.example import MODALITIES, Corpus
from cmsbert_fast.data.word_vectors import WordVectors
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.configuration import declared_fields
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.models.registry import VARIANTS, class_of_architecture
from cmsbert_fast.training import best, checksums
from cmsbert_fast.training.batches import fitting
from cmsbert_fast.training.best import BEFORE, BEST, CHECKSUMS
from cmsbert_fast.training.config import build_config, check_architecture, reads_vectors
from cmsbert_fast.training.errors import UsageError, impossible_architecture
from cmsbert_fast.training.extraction import feature_names, fingerprints, modalities_of
from cmsbert_fast.training.pretrained import check_folder, check_tokenizer, check_weights, reason, saved_config
from cmsbert_fast.training.settings import TrainingSettings

Loaded: TypeAlias = tuple[Classifier, Any]  # a model and its tokenizer


def build(
    settings: TrainingSettings, corpus: Corpus, loaded: Loaded | None = None, vectors: WordVectors | None = None
) -> tuple[Classifier, CMSBertProcessor]:
    """The model, from a checkpoint or newly initialised, and the processor, fitted to the training examples.

    Args:
        settings: What to build.
        corpus: The data to train on.
        loaded: Result of :func:`load`; None = call it.
        vectors: Vectors of the words, for a model that reads them.

    Raises:
        UsageError: The checkpoint is missing, has another architecture or does not fit the data.
    """
    model, tokenizer = loaded or load(settings, build_config(settings, corpus, vectors))
    config = model.config
    processor = CMSBertProcessor(
        tokenizer,
        max_length=settings.max_length,
        repeat_frames=settings.repeat_frames,
        extraction=fingerprints(corpus, modalities_of(config)),
        feature_names=feature_names(corpus, modalities_of(config)),
    )
    if reads_vectors(config):
        processor.word_vectors = vectors
    standardise = corpus.standardise and settings.standardise
    if standardise and corpus.statistics is not None:
        sizes = {"visual": config.visual_size, "acoustic": config.acoustic_size}
        processor.set_statistics({name: values for name, values in corpus.statistics.items() if sizes[name]})
    elif standardise:
        processor.fit(fitting(example, config) for example in corpus.splits["train"])
    return model, processor


def load(settings: TrainingSettings, config: PreTrainedConfig) -> Loaded:
    """The model for a configuration of :func:`build_config`, from a checkpoint or new, and its tokenizer.

    Raises:
        UsageError: The checkpoint is damaged, incomplete or has other sizes, or no model can be built.
    """
    model_class = VARIANTS[settings.variant].model_class
    if settings.model is None:
        tokenizer = embedded_tokenizer()
        try:
            model = model_class(config)
        except (ValueError, KeyError) as error:
            raise impossible_architecture(error) from None
    else:
        tokenizer = load_tokenizer(settings.model)
        check_weights(settings.model, model_class, config)
        model = _load_weights(model_class, settings.model, config)
        check_tokenizer(settings.model, tokenizer, config)
    return model, tokenizer


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr, flush=True)


def load_trained(
    name: str | Path, backend: str = "auto", say: Callable[[str], None] = _warn
) -> tuple[Classifier, CMSBertProcessor]:
    """A model trained by ``train.py``, in eval mode, and its processor.

    Args:
        name: Folder of the model or of its run, or a name on the Hugging Face hub.
        backend: See :mod:`cmsbert_fast.ops.dispatch`.
        say: Takes a sentence where the best model of a run is damaged, and this is the best before it.

    Raises:
        UsageError: There is no such model, or it is of another kind.
    """
    if (Path(name) / BEST).is_dir():
        found = best.find(Path(name))
        name = found.folder
        if found.lost:
            say(found.lost)
    check_folder(name)
    weights, sums = Path(name) / SAFE_WEIGHTS_NAME, Path(name) / CHECKSUMS
    if weights.is_file() and checksums.is_damaged(weights, sums):
        before = Path(name).parent / BEFORE
        usable = before != Path(name) and (before / SAFE_WEIGHTS_NAME).is_file()
        usable = usable and not checksums.is_damaged(before / SAFE_WEIGHTS_NAME, before / CHECKSUMS)
        other = f", give {before}, the best model before it" if usable else ""
        raise UsageError(
            f"{weights} is damaged: it is not what training wrote; restore it{other}, or train again (or remove "
            f"{sums.name} beside it if you changed it yourself)."
        )
    kind = next(iter(saved_config(str(name)).get("architectures") or ()), None)
    model_class = class_of_architecture(kind)
    if model_class is None:
        raise UsageError(f"{name} is a checkpoint of {kind or 'unknown kind'}; give one trained by train.py.")
    config = _trained_config(str(name), model_class, backend)
    check_weights(name, model_class, config)
    try:
        model = model_class.from_pretrained(name, config=config, dtype=torch.float32, trust_remote_code=False)
        processor = CMSBertProcessor.from_pretrained(name)
    except Exception as error:  # what a stranger's files make fail has no common class
        raise UsageError(f"{name} cannot be loaded; give an undamaged checkpoint: {reason(error)}") from None
    check_tokenizer(name, processor.tokenizer, config)
    _check_processor(name, processor, config)
    return model.eval(), processor


def _trained_config(name: str, model_class: type[Classifier], backend: str) -> PreTrainedConfig:
    """The configuration of a trained model.

    Raises:
        UsageError: It is not possible.
    """
    config_class = model_class.config_class
    assert config_class is not None
    fields = saved_config(name, config_class)
    check_architecture(fields, config_class)
    machine: dict[str, Any] = {"backend": backend} if "backend" in declared_fields(config_class) else {}
    try:
        return config_class.from_dict(fields, name_or_path=name, **machine)
    except Exception as error:  # as in from_pretrained
        raise UsageError(f"The config.json of {name} is not possible: {reason(error)}") from None


def _check_processor(name: str | Path, processor: CMSBertProcessor, config: PreTrainedConfig) -> None:
    """Finds a processor of another model.

    Raises:
        UsageError: Its statistics or its longest text do not fit the model.
    """
    for modality in MODALITIES:
        size, mean = getattr(config, f"{modality}_size", 0), getattr(processor, f"{modality}_mean")
        if mean is not None and len(mean) != size:
            raise UsageError(
                f"The processor of {name} standardises {len(mean)} {modality} features, its model reads {size}; give a "
                "checkpoint whose files belong together."
            )
    positions = getattr(config, "max_position_embeddings", processor.max_length)
    if processor.max_length > positions:
        raise UsageError(
            f"The processor of {name} makes up to {processor.max_length} word pieces, its model has {positions} "
            "positions; give a checkpoint whose files belong together."
        )


def state_options(settings: TrainingSettings) -> dict[str, Any]:
    """The settings for a model's training state."""
    given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return {**given, **VARIANTS[settings.variant].state_options}


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        UsageError: It has none, or one without BERT's special tokens.
    """
    try:
        found = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise UsageError(f"{name} has no tokenizer ({type(error).__name__}); add its vocabulary.") from None
    check_tokenizer(name, found, None)
    return found


def _load_weights(model_class: Any, name: str, config: PreTrainedConfig) -> Classifier:
    # The head of a BertForSequenceClassification is called "classifier", as a system's own may be.
    other_head = not model_class.takes_bert_head and saved_config(name).get("model_type") == "bert"
    options = dict(dtype=torch.float32, output_loading_info=True, trust_remote_code=False)
    try:
        model, report = model_class.from_pretrained(name, config=config, ignore_mismatched_sizes=other_head, **options)
        if any(model.from_bert(key) for key, *_ in report["mismatched_keys"]):
            raise RuntimeError
    except KeyError as error:
        raise impossible_architecture(error) from None
    except RuntimeError:
        raise UsageError(
            f"The weights of {name} do not have the sizes of the requested model; use the architecture and the streams "
            "it was trained with, or give another checkpoint."
        ) from None
    except Exception as error:  # what a stranger's files make fail has no common class
        raise UsageError(
            f"The weights of {name} cannot be loaded; give an undamaged checkpoint: {reason(error)}"
        ) from None
    lacking = sorted(key for key in report["missing_keys"] if model.from_bert(key))
    if lacking:
        raise UsageError(
            f"{name} lacks {len(lacking)} weights of BERT, such as {lacking[0]}; give a BertModel checkpoint."
        )
    new = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if other_head and any(key.startswith("classifier.") and key not in new for key in model.state_dict()):
        model.classifier.apply(model._init_weights)  # it was taken for the system's own, since the sizes agree
    return model
