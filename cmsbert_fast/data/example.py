"""An utterance as every reader delivers it, and the corpus it belongs to."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

SPLITS = ("train", "valid", "test")
MODALITIES = ("visual", "acoustic")  # those that come as frames


_HALVES = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def whole(text: str) -> str:
    """Text in which halves of characters (lone surrogates), which no file and no tokenizer takes, are replaced."""
    return text if text.isascii() else _HALVES.sub("\N{REPLACEMENT CHARACTER}", text)


def printable(text: str) -> str:
    """Text without what a terminal obeys or cannot show; tabs and ends of lines stay."""
    return _CONTROLS.sub("?", text)


class DataError(Exception):
    """The data cannot be used as given. The message is one sentence that says what to do."""

    def __str__(self) -> str:
        return printable(super().__str__())  # names in it are a stranger's


@dataclass(frozen=True, slots=True)
class Example:
    """One utterance, without padding.

    Attributes:
        id: The source's name of the utterance, unique within its corpus.
        words: The words as written in the source, in order.
        label: A sentiment score (float), a class index (int), or None where it is unknown (prediction).
        visual: Frames of the face, float32 (N_v, d_v); N_v may be 0.
        acoustic: Frames of the voice, float32 (N_a, d_a); N_a may be 0.
        aligned: Whether frame k of each modality belongs to word k (then N_v, N_a are 0 or the number of words).
    """

    id: str
    words: tuple[str, ...]
    label: float | int | None
    visual: np.ndarray
    acoustic: np.ndarray
    aligned: bool = False


class Outline(NamedTuple):
    """An example without its frames: ``visual`` and ``acoustic`` are their numbers."""

    id: str
    words: tuple[str, ...]
    label: float | int | None
    aligned: bool
    visual: int
    acoustic: int


def outlines(examples: Sequence[Example]) -> Iterable[Outline]:
    """The outlines of a split, without looking at its frames where the split knows how many there are."""
    known = getattr(examples, "outlines", None)
    if known is not None:
        return known()
    return (Outline(e.id, e.words, e.label, e.aligned, len(e.visual), len(e.acoustic)) for e in examples)


@dataclass(slots=True)
class ReadReport:
    """What a reader found, for the user to see: nothing is skipped or altered without being counted here.

    Attributes:
        source: Where the data came from and in which format.
        counts: Examples by split.
        widths: Features of one frame by modality, for the modalities that exist.
        frames: Frames in all by modality.
        tallies: Other numbers worth a sentence.
        non_finite: Values that were -inf, inf or NaN and became 0, by modality.
        dropped: Examples that were left out, by reason.
        notes: Everything else worth knowing, a sentence each.
    """

    source: str
    counts: dict[str, int] = field(default_factory=dict)
    non_finite: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count an example that is left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def tally(self, what: str, count: int) -> None:
        """Add to a number that is worth a sentence."""
        if count:
            self.tallies[what] = self.tallies.get(what, 0) + count

    def note(self, sentence: str) -> None:
        """Say something once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def __str__(self) -> str:
        lines = [f"{self.source}: " + ", ".join(f"{n} {split}" for split, n in self.counts.items())]
        total = max(1, sum(self.counts.values()))
        for modality, width in self.widths.items():
            frames = self.frames.get(modality, 0)
            lines.append(f"  {modality}: {width} features, {frames} frames ({frames / total:.1f} an example)")
        lines += [
            f"  {modality}: {n} values were not finite and became 0" for modality, n in self.non_finite.items() if n
        ]
        lines += [f"  dropped {n}: {reason}" for reason, n in self.dropped.items() if n]
        lines += [f"  {n} {what}" for what, n in self.tallies.items()]
        lines += [f"  {note}" for note in self.notes]
        return printable("\n".join(lines))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Every example of one source, by split.

    Attributes:
        name: A short name, for logs and results.
        splits: Examples by split; "train", "valid" and "test" where training is meant.
        visual_size: d_v, 0 where the source has no visual modality.
        acoustic_size: d_a, 0 where the source has no acoustic modality.
        classes: Names of the classes; None for regression.
        standardise: Whether frames should be standardised per feature with training-set statistics (False where
            the source is normalised already).
        report: What the reader found.
        statistics: Mean and standard deviation of each feature over the frames of the training split, by modality,
            where they are known without reading the frames (converted data); else None.
    """

    name: str
    splits: Mapping[str, Sequence[Example]]
    visual_size: int
    acoustic_size: int
    report: ReadReport
    classes: tuple[str, ...] | None = None
    standardise: bool = True
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None
