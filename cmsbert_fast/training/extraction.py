"""Whether features mean the same as those that a model was trained on: the fingerprints of their extraction."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import PROCESSOR_NAME

from cmsbert_fast.data.example import MODALITIES, Corpus
from cmsbert_fast.data.untrusted.files import read_text
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


def check_fingerprints(
    trained: Mapping[str, str] | None, corpus: Corpus, modalities: Collection[str], model: str = "this model"
) -> None:
    """Finds features of another extraction than the training data's, in a modality that both model and corpus have.

    Args:
        trained: The processor's ``extraction``.
        corpus: What the model is to read.
        modalities: Those that the model reads.
        model: How to call the model.

    Raises:
        UsageError: With what to do about it.
    """
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


def trained_fingerprints(name: str) -> dict[str, str] | None:
    """The fingerprints in a checkpoint's folder; None where it has none, as those of BERT.

    Raises:
        UsageError: The file that has them is damaged.
    """
    path = Path(name) / PROCESSOR_NAME
    if not path.is_file():
        return None
    try:
        found: Any = json.loads(read_text(path, _LARGEST)).get("extraction")
        if found is None or all(isinstance(value, str) for value in found.values()):
            return found
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    raise UsageError(f"{path} is damaged; restore it, or give another checkpoint.")
