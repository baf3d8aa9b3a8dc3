"""All checks before any work, so that no run fails after hours of others."""

import math
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cmsbert_fast.data import read_corpus
from cmsbert_fast.data.example import SPLITS, Alignment, Corpus, outlines
from cmsbert_fast.models.registry import NEEDS, VARIANTS
from cmsbert_fast.training import checkpoint, distributed, folders, resume
from cmsbert_fast.training.backends import chosen_backend
from cmsbert_fast.training.build import Loaded, load
from cmsbert_fast.training.command import Command
from cmsbert_fast.training.config import build_config
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TrainingSettings

LARGEST_SCORE = 1e6  # a sum of its squares stays far within float32


class Need(NamedTuple):
    """Whether data meet a need of :data:`NEEDS`, and what to do where they do not."""

    met: Callable[[Corpus], bool]
    advice: str


def _aligned(corpus: Corpus) -> bool:
    return all(
        outline.alignment is Alignment.WORDS for examples in corpus.splits.values() for outline in outlines(examples)
    )


_ALIGN = "name a stream of words with --words, or train another --variant"
_NEEDS = {
    "frames": Need(
        lambda corpus: bool(corpus.visual_size or corpus.acoustic_size), "name its streams, or train --variant bert"
    ),
    "word_frames": Need(_aligned, _ALIGN),
    "frames_of_words": Need(_aligned, _ALIGN),  # a single frame will do
    "word_vectors": Need(lambda corpus: False, "train another --variant"),  # no source has them yet
    "regression": Need(lambda corpus: corpus.classes is None, "choose another --label or train another --variant"),
}


class Data(NamedTuple):
    """The data of a run.

    Attributes:
        corpus: Splits "train", "valid" and "test" are used.
        fingerprint: Identifies the data (:func:`cmsbert_fast.training.resume.fingerprint`).
    """

    corpus: Corpus
    fingerprint: str


class Checked(NamedTuple):
    """Results of the checks, for the runs to use.

    Attributes:
        data: By fold.
        loaded: Model and tokenizer of the first run.
        root: Folder of the command.
        resume: Whether runs continue from their checkpoints.
    """

    data: dict[int | None, Data]
    loaded: Loaded | None
    root: Path
    resume: bool


def check_command(command: Command, ranks: Ranks, say: Callable[..., None]) -> Checked:
    """Reads the data of every run, checks all runs, and creates their folders.

    Args:
        command: What to do.
        ranks: This process.
        say: Prints reports of the data.

    Raises:
        UsageError, DataError: A run would fail. The message says what to do.
    """
    data, loaded = _check_runs(command.runs, ranks, say)
    name = data[command.runs[0].fold].corpus.name
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    resuming = command.resume or restarted
    root = distributed.from_main(
        lambda: folders.output_folder(command.output, name, resume=command.resume, restarted=restarted), ranks
    )
    if resuming:
        for settings in command.runs:
            folder, examples = root / folders.run_name(settings), data[settings.fold].fingerprint
            distributed.from_main(partial(resume.check_resumable, settings, examples, folder), ranks)
    # All of them now: a folder that cannot be created must not waste the runs before it.
    for settings in command.runs:
        distributed.from_main(partial(folders.make_folder, root / folders.run_name(settings)), ranks)
    return Checked(data, loaded, root, resuming)


def _check_runs(
    runs: Sequence[TrainingSettings], ranks: Ranks, say: Callable[..., None]
) -> tuple[dict[int | None, Data], Loaded | None]:
    """The data of all runs, and the model and tokenizer of the first."""
    data: dict[int | None, Data] = {}
    loaded: Loaded | None = None
    checked = set()
    for settings in runs:
        if settings.fold not in data:
            corpus = read_corpus(settings.request())
            say(corpus.report)
            check_data(corpus)
            data[settings.fold] = Data(corpus, resume.fingerprint(corpus))
        # Runs that share both would load the same model.
        if (settings.variant, settings.fold) not in checked:
            found = check(settings, data[settings.fold].corpus, ranks)
            loaded = loaded or found
            checked.add((settings.variant, settings.fold))
            del found
    return data, loaded


def check_data(corpus: Corpus) -> None:
    """Finds what would make training on a corpus fail.

    Raises:
        UsageError: With what to do about it.
    """
    for split in SPLITS:
        examples = corpus.splits.get(split, ())
        if len(examples) < 2:
            raise UsageError(
                f"{corpus.name} has {len(examples)} examples in its {split} split, but training needs at least 2 in "
                f"each of {', '.join(SPLITS)}; assign more examples to it."
            )
        unlabelled = next((outline.id for outline in outlines(examples) if outline.label is None), None)
        if unlabelled is not None:
            raise UsageError(f"Example {unlabelled!r} of the {split} split has no label; give it one or leave it out.")
        huge = next((o for o in outlines(examples) if o.label is not None and not abs(o.label) <= LARGEST_SCORE), None)
        if huge is not None:
            raise UsageError(
                f"Example {huge.id!r} of the {split} split has the label {huge.label:g}; correct it, or scale all "
                f"labels to within ±{LARGEST_SCORE:g}."
            )


def check_needs(variant: str, corpus: Corpus, more: Collection[str] = ()) -> None:
    """Finds what a variant cannot do without and the data do not hold.

    Args:
        variant: Its name.
        corpus: The data.
        more: Needs that follow from its configuration.

    Raises:
        UsageError: With what to do about it.
    """
    needs = VARIANTS[variant].needs.union(more)
    for name, what in NEEDS.items():
        if name in needs and not _NEEDS[name].met(corpus):
            raise UsageError(f"{corpus.name} has no {what}, which {variant} needs; {_NEEDS[name].advice}.")


def check(settings: TrainingSettings, corpus: Corpus, ranks: Ranks) -> Loaded:
    """Finds what would make a run on a corpus fail, such as a checkpoint that does not fit.

    Returns:
        Model and tokenizer, as the run would load them.

    Raises:
        UsageError: With what to do about it.
    """
    count = len(corpus.splits["train"])
    smallest = count // math.ceil(count / settings.batch_size)
    if smallest < ranks.world_size:
        raise UsageError(
            f"The smallest batch has {smallest} examples for {ranks.world_size} ranks; use fewer ranks or a "
            "larger --batch-size."
        )
    check_needs(settings.variant, corpus)
    config = build_config(settings, corpus)
    check_needs(settings.variant, corpus, {"word_vectors"} if getattr(config, "text", None) == "vectors" else ())
    chosen_backend(settings, ranks.device, config)
    checkpoint.seed_everything(settings.seed)
    return load(settings, config)
