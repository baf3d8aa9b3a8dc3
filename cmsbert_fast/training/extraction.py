"""Whether features mean the same as those that a model was trained on: their names, and how they were extracted."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import PROCESSOR_NAME

from cmsbert_fast.data.example import MODALITIES, Corpus
from cmsbert_fast.data.text import printable
from cmsbert_fast.data.untrusted.files import read_text
from cmsbert_fast.models.processing import check_known_features
from cmsbert_fast.training.errors import UsageError

_LARGEST = 64 << 20  # bytes of a processor's file: it holds the statistics of frames
_EXTRACT = "python -m cmsbert_fast.extract"


def modalities_of(config: PreTrainedConfig) -> list[str]:
    """The modalities that a model reads."""
    return [modality for modality in MODALITIES if getattr(config, f"{modality}_size", 0)]


def fingerprints(corpus: Corpus, modalities: Collection[str]) -> dict[str, str] | None:
    """The fingerprint of the extraction of each modality that a model reads; None where no extraction is known."""
    found = {m: one.fingerprint for m, one in corpus.extraction.items() if m in modalities}
    return found or None


def feature_names(corpus: Corpus, modalities: Collection[str]) -> dict[str, list[str]] | None:
    """The names of the features of each modality that a model reads; None where no names are known."""
    found = {modality: names for modality, names in corpus.report.features.items() if modality in modalities}
    return found or None


def check_features(
    extraction: Mapping[str, str] | None,
    names: Mapping[str, Sequence[str]] | None,
    corpus: Corpus,
    modalities: Collection[str],
    model: str = "this model",
) -> None:
    """Finds features that mean something else than those of the training data.

    They are of another extraction, in a modality that both model and corpus have; or they have other names or another
    order, where both are known.

    Args:
        extraction: The processor's.
        names: The processor's ``feature_names``.
        corpus: What the model is to read.
        modalities: Those that the model reads.
        model: How to call the model.

    Raises:
        UsageError: With what to do about it.
    """
    _check_extraction(extraction, corpus, modalities, model)
    _check_names(names, corpus, modalities, model)


def _check_extraction(
    trained: Mapping[str, str] | None, corpus: Corpus, modalities: Collection[str], model: str
) -> None:
    for modality in modalities:
        if not getattr(corpus, f"{modality}_size"):
            continue
        ours = (trained or {}).get(modality)
        theirs = corpus.extraction[modality].fingerprint if modality in corpus.extraction else None
        if ours == theirs:
            continue
        if ours is None:
            raise UsageError(
                f"The {modality} features of {corpus.name} were extracted from video, those that {model} was trained "
                "on were not: a model of released COVAREP or FACET features cannot score others, even where their "
                f"sizes agree; extract the training videos with the same command ({_EXTRACT}) and train on them."
            )
        if theirs is None:
            raise UsageError(
                f"The {modality} features that {model} was trained on were extracted from video by {_EXTRACT}, those "
                f"of {corpus.name} were not, and it cannot score them even where their sizes agree; give it videos, or "
                "features that were extracted with the same command as those of the training videos."
            )
        raise UsageError(
            f"The {modality} features of {corpus.name} are of another extraction ({theirs[:12]}) than those that "
            f"{model} was trained on ({ours[:12]}): other options, versions or --columns give other numbers; extract "
            "the training videos with the same command as these and train on them, or extract these with that of those."
        )


def _check_names(
    trained: Mapping[str, Sequence[str]] | None, corpus: Corpus, modalities: Collection[str], model: str
) -> None:
    for modality in modalities:
        ours, theirs = (list((names or {}).get(modality, ())) for names in (trained, corpus.report.features))
        if not ours or not theirs or ours == theirs:
            continue
        if len(ours) != len(theirs):
            differ = f"{len(theirs)} features, those had {len(ours)}"
        else:
            k = next(k for k, pair in enumerate(zip(ours, theirs, strict=True)) if len(set(pair)) > 1)
            differ = f"{theirs[k]!r:.80} as feature {k + 1}, those had {ours[k]!r:.80}"
        raise UsageError(
            printable(
                f"The {modality} frames of {corpus.name} are not of the features that {model} was trained on "
                f"(these have {differ}); choose the same with --columns."
            )
        )


def trained_features(name: str) -> tuple[dict[str, str] | None, dict[str, list[str]] | None]:
    """The fingerprints and names of features in a checkpoint's folder; None where it has none, as those of BERT.

    Raises:
        UsageError: The file that has them is damaged.
    """
    path = Path(name) / PROCESSOR_NAME
    if not path.is_file():
        return None, None
    try:
        entries: Any = json.loads(read_text(path, _LARGEST))
        prints, names = entries.get("extraction"), entries.get("feature_names")
        check_known_features(prints, names)
    except (OSError, ValueError, AttributeError, RecursionError):
        raise UsageError(f"{path} is damaged; restore it, or give another checkpoint.") from None
    return prints, names
