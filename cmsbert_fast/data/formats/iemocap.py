"""IEMOCAP: a table of utterances with emotions, four classes, ten folds.

Happy and excited are one class; utterances of other emotions, or without agreement, are left out: 5,531 remain. Ten
folds leave one of the ten speakers out (the other speaker of the same session validates), or are random.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmsbert_fast.data.folds import NAMED, Rotation
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.segment_table import Segment
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.streams.segment_reader import Selection, table_source

CLASSES = ("angry", "happy", "sad", "neutral")
_EMOTIONS = {
    **dict.fromkeys(("ang", "angry", "anger"), "angry"),
    **dict.fromkeys(("hap", "happy", "happiness", "exc", "excited", "excitement"), "happy"),
    **dict.fromkeys(("sad", "sadness"), "sad"),
    **dict.fromkeys(("neu", "neutral", "neutral state"), "neutral"),
}
_OTHERS = ("fru", "frustrated", "frustration", "sur", "surprise", "surprised", "fea", "fear", "dis", "disgust", "oth",
           "other", "xxx", "unknown", "undecided")  # fmt: skip
FOLDS = 10


def recognise(segments: Sequence[Segment]) -> bool:
    """Whether ids are IEMOCAP's (``Ses01F_impro01_M003``) and labels are its emotions."""
    return all(
        len(name) > 6 and name.startswith("Ses0") and name[4] in "12345" and name[5] in "FM" and _speaker(name)
        for name in (segment.id for segment in segments)
    ) and all(segment.label is None or str(segment.label).lower() in (*_EMOTIONS, *_OTHERS) for segment in segments)


def iemocap_source(table: Path, segments: list[Segment], request: DataRequest) -> Source:
    """The utterances of an IEMOCAP table with the streams beside it; all of them where labels are not wanted.

    Raises:
        DataError: Which stream serves what cannot be told.
    """
    chosen, dropped = _select(segments)
    folds = _rotations(chosen)  # the same with and without labels
    if request.labels:
        selection = Selection("IEMOCAP table", chosen, CLASSES, folds, dropped)
    else:
        selection = Selection("IEMOCAP table", segments, None, folds)
    return table_source(table, selection, request)


def _speaker(name: str) -> str:
    """The speaker of an utterance: session and sex, which is in the last part; ``Ses01F`` names the camera's."""
    last = name.rsplit("_", 1)[-1]
    return name[:5] + last[0] if last[:1] in ("F", "M") else ""


def _select(segments: Sequence[Segment]) -> tuple[list[Segment], dict[str, int]]:
    """The utterances of the four classes, and how many others are left out, by reason."""
    dropped: dict[str, int] = {}
    kept = []
    for segment in segments:
        if segment.label is not None:
            name = str(segment.label).lower()
            if name not in _EMOTIONS:
                reason = f"its emotion is {name}, none of the four classes"
                dropped[reason] = dropped.get(reason, 0) + 1
                continue
            segment.label = _EMOTIONS[name]
        kept.append(segment)
    return kept, dropped


def _rotations(segments: Sequence[Segment]) -> dict[str, Rotation]:
    """The ways in which utterances make ten folds, by name."""
    speakers = [f"Ses0{session}{sex}" for session in range(1, 6) for sex in "FM"]
    order = np.random.default_rng(0).permutation(len(segments))
    by_speaker, by_chance = NAMED
    return {
        # The partner of a speaker is the other one of the session, before or after.
        by_speaker: Rotation({s.id: speakers.index(_speaker(s.id)) for s in segments}, [k ^ 1 for k in range(FOLDS)]),
        by_chance: Rotation(
            {segments[k].id: int(place) % FOLDS for place, k in enumerate(order)},
            [(k + 1) % FOLDS for k in range(FOLDS)],
        ),
    }
