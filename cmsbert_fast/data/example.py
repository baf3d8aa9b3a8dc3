"""An utterance as every reader delivers it, and the corpus it belongs to."""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.text import sentence

Label = float | int | tuple[int, ...]  # a score, the index of a class, or of several labels which are present
SPLITS = ("train", "valid", "test")
MODALITIES = ("visual", "acoustic")  # the modalities that come as frames


class DataError(Exception):
    """The data cannot be used as given. The message is one sentence that says what to do."""

    def __str__(self) -> str:
        return sentence(super().__str__())  # names in it are untrusted


def unreadable(name: str) -> DataError:
    """The error for a file that may not be read."""
    return DataError(f"Make {name} readable for you (chmod u+r): its permissions forbid to read it.")


class Alignment(enum.Enum):
    """To which part of the text a frame of an example belongs, by its number."""

    NONE = "none"  # frames have a clock of their own
    WORDS = "words"  # frame k belongs to word k
    PIECES = "pieces"  # frame k belongs to word piece k of the source's tokenizer, counted without [CLS] and [SEP]


class FrameWords(NamedTuple):
    """The word that each frame belongs to: int32 (N_m,), ascending, -1 at frames between words."""

    visual: np.ndarray
    acoustic: np.ndarray


class Clock(NamedTuple):
    """When an utterance and its parts are in the recording, in seconds.

    Attributes:
        video: The recording.
        span: Start and stop of the utterance; None where they are not known.
        words: Start and stop of each word, float64 (words, 2); None where they are not known.
        visual, acoustic: The same of each frame.
    """

    video: str
    span: tuple[float, float] | None
    words: np.ndarray | None
    visual: np.ndarray | None
    acoustic: np.ndarray | None


class Extraction(NamedTuple):
    """Of which extraction the frames of one modality are (`cmsbert_fast.data.extraction`).

    Attributes:
        fingerprint: Of versions, options and columns; hexadecimal.
        columns: The name of each feature.
        units: The unit of each feature; "" for a number without one.
    """

    fingerprint: str
    columns: tuple[str, ...]
    units: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One utterance, without padding.

    Attributes:
        id: The source's name of the utterance, unique within its corpus.
        words: The words as written in the source, in order.
        label: A sentiment score (float), a class index (int), of several labels 1 or 0 for each (tuple), or None where
            it is unknown (prediction).
        visual: Frames of the face, float32 (N_v, d_v); N_v may be 0.
        acoustic: Frames of the voice, float32 (N_a, d_a); N_a may be 0.
        alignment: What frame k of each modality belongs to. WORDS: N_v, N_a are 0 or the number of words. PIECES: they
            are 0 or the number of word pieces, or less where the source cut a long text.
        frame_words: The word of each frame where words have any number of frames; None where that is not known.
        clock: When all of it is in the recording, where the request asks for it and the source tells; else None.
    """

    id: str
    words: tuple[str, ...]
    label: Label | None
    visual: np.ndarray
    acoustic: np.ndarray
    alignment: Alignment = Alignment.NONE
    frame_words: FrameWords | None = None
    clock: Clock | None = None


class Outline(NamedTuple):
    """An example without its frames; ``visual`` and ``acoustic`` are numbers of frames.

    ``timed``: whether it has ``frame_words``.
    """

    id: str
    words: tuple[str, ...]
    label: Label | None
    alignment: Alignment
    visual: int
    acoustic: int
    timed: bool = False


def outlines(examples: Sequence[Example]) -> Iterable[Outline]:
    """The outlines of a split; converted data know them without reading frames."""
    known = getattr(examples, "outlines", None)
    if known is not None:
        return known()
    return (
        Outline(e.id, e.words, e.label, e.alignment, len(e.visual), len(e.acoustic), e.frame_words is not None)
        for e in examples
    )


def frames_of(values: np.ndarray, modality: str, report: ReadReport) -> np.ndarray:
    """Frames as float32 (N, d), C order, with non-finite values replaced by 0 and counted."""
    with np.errstate(over="ignore", invalid="ignore"):
        frames = np.array(values, dtype=np.float32, order="C", copy=True)
    finite = np.isfinite(frames)
    if not finite.all():
        report.non_finite[modality] = report.non_finite.get(modality, 0) + int(finite.size - np.count_nonzero(finite))
        frames[~finite] = 0.0
    return frames


def with_frames(example: Example, visual: np.ndarray, acoustic: np.ndarray) -> Example:
    """The example with each modality's own frames, or with none of that modality."""
    words = example.frame_words
    if words is not None:
        words = FrameWords(words.visual[: len(visual)], words.acoustic[: len(acoustic)])
    return replace(example, visual=visual, acoustic=acoustic, frame_words=words)


def no_frames(width: int = 0) -> np.ndarray:
    """No frame of ``width`` features."""
    return np.zeros((0, width), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Every example of one source, by split.

    Attributes:
        name: A short name, for logs and results.
        splits: Examples by split; training needs "train", "valid" and "test".
        visual_size: d_v, 0 where the source has no visual modality.
        acoustic_size: d_a, 0 where the source has no acoustic modality.
        classes: Names of the classes; None for regression.
        several: Whether an example may have several of the classes at once, or none.
        standardise: Whether to standardise frames per feature with the statistics of the training split; False where
            the source is already normalised.
        report: What the reader found.
        statistics: Mean and standard deviation of each feature over the frames of the training split, by modality,
            where they are known without reading the frames (converted data); else None.
        extraction: Of which extraction the frames are, by modality; none for those that `cmsbert_fast.extract` did not
            make.
    """

    name: str
    splits: Mapping[str, Sequence[Example]]
    visual_size: int
    acoustic_size: int
    report: ReadReport
    classes: tuple[str, ...] | None = None
    standardise: bool = True
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None
    several: bool = False
    extraction: Mapping[str, Extraction] = field(default_factory=dict)


def examples_of(corpus: Corpus, split: str | None) -> list[Example]:
    """The examples of a split, of all splits without one."""
    return [example for name in (corpus.splits if split is None else [split]) for example in corpus.splits[name]]
