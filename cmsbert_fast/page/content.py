"""What a page shows, as plain data: numbers and texts, without models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Media(NamedTuple):
    """A recording.

    Attributes:
        name: As it is shown.
        url: Where the page finds it, relative to the page; None where there is no file.
    """

    name: str
    url: str | None = None


class Features(NamedTuple):
    """The features of a modality.

    Attributes:
        columns: Their names.
        units: The unit of each, "" without one.
    """

    columns: Sequence[str]
    units: Sequence[str]


class Frames(NamedTuple):
    """The frames of a modality in a segment.

    Attributes:
        values: Features as the extractor wrote them, (n, d).
        times: The middle of each frame in the recording, in seconds, (n,), ascending; None where it is not known.
        gates: g_ij of Eq. 1 or 2, (layers, words, m) of the first m frames, m <= n; None for a model without gates.
    """

    values: np.ndarray
    times: np.ndarray | None
    gates: np.ndarray | None


@dataclass(frozen=True)
class Segment:
    """A segment of a recording and what the model made of it.

    Attributes:
        id: Its name.
        media: The recording, by number.
        words: Its words.
        scores: The predicted score alone, or the probability of each class.
        span: Start and stop in the recording, in seconds; None where they are not known.
        word_times: Start and stop of each word, (words, 2); None where they are not known.
        frames: By modality.
        read: How many words the model read; a long text is cut.
    """

    id: str
    media: int
    words: Sequence[str]
    scores: Sequence[float]
    span: tuple[float, float] | None
    word_times: np.ndarray | None
    frames: Mapping[str, Frames]
    read: int


@dataclass(frozen=True)
class Page:
    """All that a page shows.

    Attributes:
        title: Of the page.
        model: What scored: a sentence without markup.
        media: The recordings.
        segments: In the order in which they are shown.
        features: By modality.
        layers: The number of each layer with gates, counted from 0, as in the model's configuration.
        depth: How many layers the model has.
        activation: Of the gates: relu, sigmoid or tanh.
        classes: Names of the classes; empty for a score.
        several: Whether several classes may hold at once.
        notes: Sentences that a reader should know.
    """

    title: str
    model: str
    media: Sequence[Media]
    segments: Sequence[Segment]
    features: Mapping[str, Features]
    layers: Sequence[int] = ()
    depth: int = 0
    activation: str = "relu"
    classes: Sequence[str] = ()
    several: bool = False
    notes: Sequence[str] = field(default_factory=list)
