"""IEMOCAP: utterances with emotions, four classes, ten folds; a table, or the pickle of DialogueRNN.

Happy and excited are one class; utterances of other emotions, or without agreement, are left out: 5,531 remain. Ten
folds leave one of the ten speakers out (the other speaker of the same session validates), or are random.

The pickle is a tuple of nine: by dialogue the ids, speakers, labels, vectors of text, of voice and of face, and
sentences of its utterances; then the dialogues of training and of test. It has one frame an utterance, and is often
written by Python 2. The labels 0 to 5 are happy, sad, neutral, angry, excited and frustrated.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data.example import DataError, Example, frames_of
from cmsbert_fast.data.folds import ALL, NAMED, Rotation
from cmsbert_fast.data.pickled import rows_of
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.segment_table import Segment
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.streams.segment_reader import Selection, table_source
from cmsbert_fast.data.text import words_of
from cmsbert_fast.data.untrusted import content

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
_SPLITS = "its own split is train and test; for one to validate, choose --fold 1 to 10 (--folds speaker or random)"
_NUMBERED = ("hap", "sad", "neu", "ang", "exc", "fru")  # the labels of the pickle
_DICTIONARIES, _PARTS = 7, 9  # of the pickle
_IDS, _LABELS, _VOICE, _FACE, _SENTENCES, _TRAIN, _TEST = 0, 2, 4, 5, 6, 7, 8  # their places


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


def recognise_pickle(root: Any) -> bool:
    """Whether a pickle's content is the tuple of DialogueRNN.

    Raises:
        DataError: It is the one of another data set or system.
    """
    if not isinstance(root, tuple | list) or len(root) < _DICTIONARIES or not isinstance(root[0], dict):
        return False
    known = len(root) == _PARTS and all(isinstance(part, dict) for part in root[:_DICTIONARIES])
    if known and all(isinstance(part, list) for part in root[_DICTIONARIES:]):
        return True
    raise DataError(
        f"Write a table (id, split, label, text) with a folder of frames beside it: this is a tuple of {len(root)} "
        "parts by dialogue, as DialogueRNN and its successors pickle MELD and others; only IEMOCAP's of nine parts is "
        "read."
    )


def iemocap_pickle_source(path: Path, root: Sequence[Any], request: DataRequest) -> Source:
    """The utterances of the tuple of DialogueRNN.

    Raises:
        DataError: Its parts do not fit one another.
    """
    request.check_one_label(path.name)
    segments, place = _utterances(path, root)
    chosen, dropped = _select(segments)
    folds = _rotations(chosen)  # the same with and without labels
    if not request.labels:
        chosen, dropped = segments, {}
    groups: dict[str, list[Segment]] = {}
    for segment in chosen:
        groups.setdefault(segment.video, []).append(segment)

    def read(video: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        for segment in groups[video]:
            spoken = words_of(segment.text)
            if not spoken:
                report.drop("it has no text")
                continue
            number = place[segment.id]
            visual, acoustic = (
                frames_of(rows_of(root[part][video][number], f"{segment.id} of {path.name}"), modality, report)
                for part, modality in ((_FACE, "visual"), (_VOICE, "acoustic"))
            )
            label = CLASSES.index(str(segment.label)) if request.labels else None
            yield segment.split, Example(segment.id, spoken, label, visual, acoustic)

    return Source(
        name=path.stem,
        format="IEMOCAP, DialogueRNN's",
        path=path,
        files=[path],
        groups=list(groups),
        read=read,
        notes=[_SPLITS],
        classes=CLASSES if request.labels else None,
        by_video=True,
        rotations=folds,
        dropped=dropped,
    )


def _utterances(path: Path, root: Sequence[Any]) -> tuple[list[Segment], dict[str, int]]:
    """The utterances of the tuple, and the place of each in its dialogue, by id."""
    reading = content.Reading(path)
    split_of = dict.fromkeys(reading.texts_of(root[_TRAIN]), "train") | dict.fromkeys(
        reading.texts_of(root[_TEST]), "test"
    )
    segments: list[Segment] = []
    place: dict[str, int] = {}
    for video in root[_IDS]:
        parts = [content.items_of(root[part][video]) for part in (_IDS, _LABELS, _SENTENCES)]
        sizes = {len(part) for part in parts} | {len(root[part][video]) for part in (_VOICE, _FACE)}
        if len(sizes) != 1:
            raise DataError(f"Repair {path.name}: the parts of {video!r:.60} differ in number of utterances.")
        names, texts = reading.texts_of(parts[0]), reading.texts_of(parts[2])
        for number, (name, value, text) in enumerate(zip(names, parts[1], texts, strict=True)):
            if not _speaker(name) or value not in range(len(_NUMBERED)):
                raise DataError(
                    f"Use IEMOCAP's file: {path.name} has the utterance {name!r:.60} with the label {value!r:.20}, "
                    f"expected an id like Ses01F_impro01_F000 and 0 to {len(_NUMBERED) - 1}."
                )
            if name in place:
                raise DataError(f"Repair {path.name}: the utterance {name!r:.60} occurs twice.")
            place[name] = number
            segments.append(Segment(name, video, split_of.get(video, ALL), None, _NUMBERED[int(value)], text))
    return segments, place
