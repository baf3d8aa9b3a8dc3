"""The content of a page from examples, scores and gates."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmsbert_fast.data.embedded import ACOUSTIC_FEATURES, VISUAL_FEATURES
from cmsbert_fast.data.example import MODALITIES, Corpus, Example
from cmsbert_fast.page.build import media_url
from cmsbert_fast.page.content import Features, Frames, Media, Page, Segment

_EMBEDDED = {"visual": VISUAL_FEATURES, "acoustic": ACOUSTIC_FEATURES}


class Scored(NamedTuple):
    """What a model made of an example.

    Attributes:
        example: The example, with its clock where there is one.
        scores: The score alone, or the probability of each class.
        read: How many of its words the model read.
        gates: By modality, (layers, words, frames); none for a model without gates.
    """

    example: Example
    scores: Sequence[float]
    read: int
    gates: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Model:
    """What a page says of the model.

    Attributes:
        name: How it is called.
        layers: Those with gates, counted from 0.
        depth: How many it has.
        activation: Of its gates.
        classes: Names of the classes; empty for a score.
        several: Whether several classes may hold at once.
    """

    name: str
    layers: Sequence[int] = ()
    depth: int = 0
    activation: str = "relu"
    classes: Sequence[str] = ()
    several: bool = False


def page_of(
    corpus: Corpus, scored: Iterable[Scored], model: Model, recordings: Mapping[str, Path], target: Path
) -> Page:
    """The content of a page.

    Args:
        corpus: Where the examples are from: names and units of features.
        scored: What to show, in order.
        model: What scored it.
        recordings: Files by the name of the recording.
        target: Where the page will be; links to recordings are relative to it.
    """
    media: dict[str, Media] = {}
    segments = []
    for one in scored:
        clock = one.example.clock
        name = corpus.name if clock is None else clock.video
        if name not in media:
            file = recordings.get(name)
            media[name] = Media(name) if file is None else Media(file.name, media_url(file, target))
        segments.append(_segment(one, list(media).index(name)))
    only = next(iter(media.values())).name if len(media) == 1 else corpus.name
    what = f"{len(segments)} segment{'s' * (len(segments) != 1)}"
    if model.classes:
        what += f", {len(model.classes)} classes"
    return Page(
        title=only,
        model=f"{model.name} \N{MIDDLE DOT} {what}",
        media=list(media.values()),
        segments=segments,
        features={m: _features(corpus, m) for m in MODALITIES if getattr(corpus, f"{m}_size")},
        layers=model.layers,
        depth=model.depth,
        activation=model.activation,
        classes=model.classes,
        several=model.several,
        notes=_notes(segments, model),
    )


def _segment(one: Scored, media: int) -> Segment:
    example, clock = one.example, one.example.clock
    frames = {}
    for modality in MODALITIES:
        values = getattr(example, modality)
        if not len(values):
            continue
        intervals = None if clock is None else getattr(clock, modality)
        times = None if intervals is None else intervals.mean(axis=1)
        frames[modality] = Frames(values, times, one.gates.get(modality))
    return Segment(
        id=example.id,
        media=media,
        words=example.words,
        scores=one.scores,
        span=None if clock is None else clock.span,
        word_times=None if clock is None else clock.words,
        frames=frames,
        read=one.read,
    )


def _features(corpus: Corpus, modality: str) -> Features:
    size = getattr(corpus, f"{modality}_size")
    known = corpus.extraction.get(modality)
    if known is not None and len(known.columns) == size:
        return Features(known.columns, known.units)
    named = corpus.report.features.get(modality, ())
    if len(named) == size:
        return Features(named, [""] * size)
    names = _EMBEDDED[modality] if corpus.name == "embedded" and len(_EMBEDDED[modality]) == size else None
    return Features(names or [f"feature {k + 1}" for k in range(size)], [""] * size)


def _notes(segments: Sequence[Segment], model: Model) -> list[str]:
    notes = []
    if not model.layers:
        notes.append("This model has no gates: the page shows words, scores and features.")
    cut = sum(segment.read < len(segment.words) for segment in segments)
    if cut:
        notes.append(f"The text of {cut} segments is longer than the model reads; words that it did not read are grey.")
    return notes
