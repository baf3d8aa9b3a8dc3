"""All checks before any work, so that no run fails after hours of others."""

import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cmsbert_fast.data import read_corpus
from cmsbert_fast.data.example import MODALITIES, SPLITS, Alignment, Corpus, Outline, outlines
from cmsbert_fast.data.task import warnings_of
from cmsbert_fast.data.word_vectors import WordVectors
from cmsbert_fast.models.encoding import fits, tokenize
from cmsbert_fast.models.registry import NEEDS, OF_WORDS, VARIANTS
from cmsbert_fast.training import checkpoint, distributed, folders, graphs, resume, saved_runs, unread
from cmsbert_fast.training.backends import chosen_backend
from cmsbert_fast.training.build import Loaded, load
from cmsbert_fast.training.command import Command
from cmsbert_fast.training.config import build_config, reads_vectors
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TrainingSettings
from cmsbert_fast.training.texts import check_texts
from cmsbert_fast.training.trackers import check_trackers
from cmsbert_fast.training.word_vectors import word_vectors

LARGEST_SCORE = 1e6  # a sum of its squares stays far within float32


class Given(NamedTuple):
    """What a run has.

    Attributes:
        corpus: Its data.
        repeat: Whether an utterance's only frame is repeated for its words.
        vectors: Vectors of the words, if any.
    """

    corpus: Corpus
    repeat: bool = False
    vectors: WordVectors | None = None


class Need(NamedTuple):
    """Whether a run meets a need of :data:`NEEDS`, and what to do where it does not."""

    met: Callable[[Given], bool]
    advice: str


def _outlines(corpus: Corpus) -> Iterator[Outline]:
    return (outline for examples in corpus.splits.values() for outline in outlines(examples))


def frames_have_words(corpus: Corpus, repeat: bool) -> bool:
    """Whether it is known which frames belong to which word, or one frame an utterance is repeated.

    An utterance without frames has none whose word is unknown.
    """
    return all(
        outline.alignment is not Alignment.NONE
        or not (outline.visual or outline.acoustic)
        or outline.timed
        or (repeat and max(outline.visual, outline.acoustic) <= 1)
        for outline in _outlines(corpus)
    )


_ALIGN = (
    "name a stream of words with --words, repeat the only frame of each utterance with --repeat-frames true, or train "
    "another --variant"
)
_NEEDS = {
    "frames": Need(
        lambda given: bool(given.corpus.visual_size or given.corpus.acoustic_size),
        "name its streams, or train --variant bert",
    ),
    "word_frames": Need(lambda given: frames_have_words(given.corpus, given.repeat), _ALIGN),
    "frames_of_words": Need(lambda given: frames_have_words(given.corpus, given.repeat), _ALIGN),  # one each will do
    "word_vectors": Need(
        lambda given: given.vectors is not None,
        "train another --variant, or name a file of them (or bert) with --word-vectors",
    ),
    "regression": Need(lambda given: given.corpus.classes is None, "choose another --label or train another --variant"),
}


class Data(NamedTuple):
    """The data of a run.

    Attributes:
        corpus: Splits "train", "valid" and "test" are used.
        fingerprint: Identifies the data (:func:`cmsbert_fast.training.resume.fingerprint`).
        vectors: Vectors of its words, if any were asked for.
    """

    corpus: Corpus
    fingerprint: str
    vectors: WordVectors | None = None


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


def check_command(command: Command, ranks: Ranks, say: Callable[..., None], locks: ExitStack) -> Checked:
    """Reads the data of every run, checks all runs, and creates and locks their folders.

    Args:
        command: What to do.
        ranks: This process.
        say: Prints reports of the data.
        locks: Holds the locks of all runs, on rank 0.

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
        folder = root / folders.run_name(settings)
        distributed.from_main(partial(folders.take_folder, folder, locks, fresh=not resuming), ranks)
        distributed.from_main(partial(saved_runs.save_settings, settings, folder, fresh=not resuming), ranks)
    return Checked(data, loaded, root, resuming)


def _check_runs(
    runs: Sequence[TrainingSettings], ranks: Ranks, say: Callable[..., None]
) -> tuple[dict[int | None, Data], Loaded | None]:
    """The data of all runs, and the model and tokenizer of the first."""
    data: dict[int | None, Data] = {}
    loaded: Loaded | None = None
    checked: set[tuple[str, int | None]] = set()
    vectors_are_read = False
    for settings in runs:
        if settings.fold not in data:
            data[settings.fold] = read_data(settings, say)
        # Runs that share both would load the same model.
        if (settings.variant, settings.fold) not in checked:
            corpus, _, vectors = data[settings.fold]
            found = check(settings, corpus, ranks, vectors)
            vectors_are_read = vectors_are_read or reads_vectors(found[0].config)
            check_pieces(settings, corpus, found[1], say)
            for sentence in unread.of_run(settings, corpus, found[0]):
                say(f"warning: {sentence}", file=sys.stderr)
            if all(fold != settings.fold for _, fold in checked):  # the tokenizer is that of all runs
                for sentence in check_texts(corpus, found[1], settings.max_length, SPLITS):
                    corpus.report.note(sentence)
                    say(f"  {sentence}")
            loaded = loaded or found
            checked.add((settings.variant, settings.fold))
            del found
    if runs[0].word_vectors is not None and not vectors_are_read:
        raise UsageError("Leave out --word-vectors: no --variant of this command reads word vectors.")
    for sentence in unread.of_no_run(runs):
        say(f"warning: {sentence}", file=sys.stderr)
    return data, loaded


def read_data(settings: TrainingSettings, say: Callable[..., None]) -> Data:
    """Reads and checks the data of a run, and prints their report.

    Raises:
        UsageError, DataError: They cannot be read, or training on them would fail.
    """
    corpus = read_corpus(settings.request())
    if settings.repeat_frames:
        _check_repeat(corpus)
    vectors = word_vectors(settings, corpus)
    say(corpus.report)
    check_data(corpus)
    for sentence in [*_idle_splits(corpus), *warnings_of(corpus, settings.task)]:
        say(f"warning: {sentence}", file=sys.stderr)
    return Data(corpus, resume.fingerprint(corpus), vectors)


def _idle_splits(corpus: Corpus) -> list[str]:
    """A sentence for each split that a run does not read."""
    others = {name: len(examples) for name, examples in corpus.splits.items() if name not in SPLITS}
    return [
        f"the {count} examples of the split {name!r:.80} are not used: training reads {', '.join(SPLITS)}."
        for name, count in others.items()
    ]


def _check_repeat(corpus: Corpus) -> None:
    """Finds utterances with more frames than the one to repeat; notes in the report what is done.

    Raises:
        UsageError: There are such.
    """
    for modality in MODALITIES:
        most = max((getattr(outline, modality) for outline in _outlines(corpus)), default=0)
        if most > 1:
            raise UsageError(
                f"Leave out --repeat-frames: {corpus.name} has up to {most} {modality} frames an utterance, not one."
            )
        if most:
            corpus.report.note(
                f"word-level systems read the one {modality} frame of an utterance for each of its words"
            )


def check_pieces(settings: TrainingSettings, corpus: Corpus, tokenizer: Any, say: Callable[..., None]) -> None:
    """Counts the utterances whose frames belong to other word pieces than the tokenizer's, and says what follows.

    Raises:
        UsageError: It is most of them: the source's tokenizer is another.
    """
    if not VARIANTS[settings.variant].needs & OF_WORDS:
        return
    sentence = unread_pieces(corpus, tokenizer, settings.max_length)
    if sentence:
        say(f"  {sentence}; {settings.variant} reads none of theirs")


def unread_pieces(corpus: Corpus, tokenizer: Any, max_length: int) -> str | None:
    """A sentence about the utterances whose frames belong to other word pieces; a system of words reads none of them.

    Raises:
        UsageError: As :func:`check_pieces`.
    """
    known = [outline for outline in _outlines(corpus) if outline.alignment is Alignment.PIECES]
    wrong = 0
    for outline in known:
        pieces = tokenize(tokenizer, outline.words, max_length)
        wrong += not all(fits(count, pieces) for count in (outline.visual, outline.acoustic) if count)
    if 2 * wrong > len(known):
        raise UsageError(
            f"{wrong} of {len(known)} utterances of {corpus.name} have frames of other word pieces than this model's; "
            "give a model with the tokenizer that the data were aligned with, or one that needs no frames of words."
        )
    return f"{wrong} of {len(known)} utterances have frames of other word pieces than this model's" if wrong else None


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
        if all(outline.label is None for outline in outlines(examples)):
            raise UsageError(
                f"No example of the {split} split of {corpus.name} has a label; name their column or stream with "
                "--label NAME, or add them."
            )
        unlabelled = next((outline.id for outline in outlines(examples) if outline.label is None), None)
        if unlabelled is not None:
            raise UsageError(f"Example {unlabelled!r} of the {split} split has no label; give it one or leave it out.")
        for outline in outlines(examples):
            label = outline.label
            if label is not None and not isinstance(label, tuple) and not abs(label) <= LARGEST_SCORE:
                raise UsageError(
                    f"Example {outline.id!r} of the {split} split has the label {label:g}; correct it, or scale all "
                    f"labels to within ±{LARGEST_SCORE:g}."
                )
    if corpus.classes is not None and len(corpus.classes) < 2:
        raise UsageError(
            f"All examples of {corpus.name} are of the class {corpus.classes[0]!r}: there is nothing to tell apart; "
            "choose another --label."
        )


def check_needs(variant: str, given: Given, more: Collection[str] = ()) -> None:
    """Finds what a variant cannot do without and a run does not have.

    Args:
        variant: Its name.
        given: What the run has.
        more: Needs that follow from its configuration.

    Raises:
        UsageError: With what to do about it.
    """
    needs = VARIANTS[variant].needs.union(more)
    for name, what in NEEDS.items():
        if name in needs and not _NEEDS[name].met(given):
            raise UsageError(f"{given.corpus.name} has no {what}, which {variant} needs; {_NEEDS[name].advice}.")


def check(settings: TrainingSettings, corpus: Corpus, ranks: Ranks, vectors: WordVectors | None = None) -> Loaded:
    """Finds what would make a run on a corpus fail, such as a checkpoint that does not fit.

    Returns:
        Model and tokenizer, as the run would load them.

    Raises:
        UsageError: With what to do about it.
    """
    check_trackers(settings.track)
    count = len(corpus.splits["train"])
    smallest = count // math.ceil(count / settings.batch_size)
    if smallest < ranks.world_size:
        raise UsageError(
            f"The smallest batch has {smallest} examples for {ranks.world_size} ranks; use fewer ranks or a "
            "larger --batch-size."
        )
    given = Given(corpus, settings.repeat_frames, vectors)
    check_needs(settings.variant, given)
    config = build_config(settings, corpus, vectors)
    check_needs(settings.variant, given, {"word_vectors"} if reads_vectors(config) else ())
    chosen_backend(settings, ranks.device, config)
    if settings.cuda_graphs and (reason := graphs.why_not(settings, ranks)) is not None:
        raise UsageError(f"--cuda-graphs does not work here: {reason}; leave it out.")
    checkpoint.seed_everything(settings.seed)
    return load(settings, config)
