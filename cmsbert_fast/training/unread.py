"""Settings that nothing reads: a value that is ignored would look as if it had been tried."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from cmsbert_fast.data.example import Corpus
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.registry import OF_WORDS, VARIANTS
from cmsbert_fast.training.settings import TrainingSettings

# Settings that only some systems read; those of all are in no list.
_OF_SYSTEMS = ("temperature", "smoothing", "threshold", "momentum", "gate_activation", "projection_size")
_OF_FRAMES = ("standardise", "repeat_frames")
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(TrainingSettings)}


def of_no_run(runs: Sequence[TrainingSettings], given: Collection[str] | None = None) -> list[str]:
    """A sentence for each setting that is not at its default and that no run of a command reads.

    Args:
        runs: They have these settings in common.
        given: The settings to look at; None: all.
    """
    first = runs[0]
    return [
        f"{name} = {_shown(getattr(first, name))} has no effect: no system of this command reads it"
        for name in (*_OF_SYSTEMS, *_OF_FRAMES)
        if given is None or name in given
        if getattr(first, name) != _DEFAULTS[name] and not any(_reads(run.variant, name) for run in runs)
    ]


def removed(settings: TrainingSettings) -> TrainingSettings:
    """The settings with those at their defaults that the run's system does not read: they do not tell runs apart."""
    names = [name for name in (*_OF_SYSTEMS, *_OF_FRAMES) if not _reads(settings.variant, name)]
    text = settings.text or getattr(VARIANTS[settings.variant].model_class.config_class, "text", None)
    if text != "vectors":
        names.append("word_vectors")
    return dataclasses.replace(settings, **{name: _DEFAULTS[name] for name in names})


def of_run(settings: TrainingSettings, corpus: Corpus, model: Classifier) -> list[str]:
    """A sentence for each setting of a run that its labels or its model leave without effect."""
    found = []
    if settings.loss is not None and corpus.classes is not None:
        found.append(f"loss = {settings.loss} has no effect: the labels of {corpus.name} are classes")
    trained = {model.parameter_group(name) for name, p in model.named_parameters() if p.requires_grad}
    for setting in ("learning_rates", "weight_decays"):
        found += [
            f"{setting} {group}={value:g} has no effect: {settings.variant} has no trained parameter of that group here"
            for group, value in getattr(settings, setting).items()
            if group not in trained
        ]
    return found


def _reads(name: str, setting: str) -> bool:
    """Whether a variant reads one of the settings above."""
    variant = VARIANTS[name]
    if setting == "repeat_frames":
        return bool(variant.needs & OF_WORDS)
    if setting in ("standardise", "gate_activation") and not variant.multimodal:
        return False
    if setting == "standardise":
        return True
    fixed = variant.config.keys() | variant.state_options.keys()
    if setting == "threshold" and "smoothing" in fixed:  # which is what it is for
        return False
    return setting in variant.model_class.own_settings and setting not in fixed


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
