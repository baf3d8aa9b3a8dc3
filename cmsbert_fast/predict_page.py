"""The page of ``predict --page``: what a model made of the examples that it scored."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig

from cmsbert_fast.data.example import MODALITIES, Corpus, Example, examples_of, outlines
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.page.build import LARGEST, MOST, write_page
from cmsbert_fast.page.collect import Model, Scored, page_of
from cmsbert_fast.page.packing import size
from cmsbert_fast.training.errors import UsageError, os_reason
from cmsbert_fast.training.gates import has_gates, word_gates


class Scores(NamedTuple):
    """A trained model and what it predicted.

    Attributes:
        model, processor: From `load_trained`.
        logits: (n, num_labels), in the order of the examples.
        classes: Names of the classes; empty for a score.
        name: What the checkpoint is called.
    """

    model: Classifier
    processor: CMSBertProcessor
    logits: Tensor
    classes: list[str]
    name: str


def check_page(page: Path | None) -> None:
    """Finds a ``--page`` that cannot be written.

    Raises:
        UsageError: With what to do about it.
    """
    if page is None:
        return
    if page.exists():
        raise UsageError(f"{page} exists; remove it or choose another --page.")
    if not page.parent.is_dir():
        raise UsageError(f"There is no folder {page.parent}; make it, or choose another --page.")


def check_size(corpus: Corpus, split: str | None, config: PreTrainedConfig) -> None:
    """Finds more than a page can show.

    Raises:
        UsageError: There are too many examples, or they would fill too large a file.
    """
    parts = [examples for name, examples in corpus.splits.items() if split in (None, name)]
    count = sum(map(len, parts))
    if count > MOST:
        raise UsageError(
            f"A page shows at most {MOST} segments, but there are {count}; give fewer videos, choose a "
            "--split of data, or leave out --page."
        )
    layers = len(config.cms_layers) if has_gates(config) else 0
    widths = {modality: getattr(corpus, f"{modality}_size") for modality in MODALITIES}
    total = sum(
        size(len(one.words), layers, {m: (getattr(one, m), width) for m, width in widths.items() if getattr(one, m)})
        for part in parts
        for one in outlines(part)
    )
    if total > LARGEST:
        raise UsageError(
            f"The page would have about {total / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f}: its {count} segments have "
            f"{' and '.join(f'{width} {m}' for m, width in widths.items() if width)} features a frame; give "
            "fewer videos, choose a --split of data, or leave out --page."
        )


def write_scores_page(
    target: Path, corpus: Corpus, split: str | None, scores: Scores, recordings: Mapping[str, Path]
) -> None:
    """Writes the page.

    Args:
        target: The file.
        corpus: Read with clocks.
        split: What was scored; None: all.
        scores: With what result.
        recordings: Files of the recordings, by the names that the corpus has for them.

    Raises:
        UsageError: The page cannot be written.
    """
    config = scores.model.config
    gated = has_gates(config)
    several = config.problem_type == "multi_label_classification"
    model = Model(
        name=f"{type(scores.model).__name__.removesuffix('ForSequenceClassification')} from {scores.name}",
        layers=sorted(config.cms_layers) if gated else (),
        depth=config.num_hidden_layers if gated else 0,
        activation=config.gate_activation if gated else "relu",
        classes=scores.classes,
        several=several,
    )
    page = page_of(corpus, _scored(examples_of(corpus, split), scores, several), model, recordings, target)
    try:
        write_page(target, page)
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({os_reason(error)}); choose another --page.") from None


def _scored(examples: list[Example], scores: Scores, several: bool) -> Iterator[Scored]:
    values = scores.logits
    if scores.classes:
        values = values.sigmoid() if several else values.softmax(dim=1)
    for example, row in zip(examples, values.tolist(), strict=True):
        read, gates = word_gates(scores.model, scores.processor, example)
        yield Scored(example, row, read, gates)
