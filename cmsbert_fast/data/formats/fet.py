"""MMSA-FET's features of single clips: a pickle of a dictionary with ``audio``, ``vision`` and ``text`` of one clip.

The arrays are (frames, d); with an aligner there is a frame for each token of the text, zeros at [CLS] and [SEP]. There
are no words: they, the label and the split come from a table, by the name of the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data.example import Alignment, DataError, Example, frames_of, no_frames
from cmsbert_fast.data.labels import class_names
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.segment_table import Segment, read_segments
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.text import words_of
from cmsbert_fast.data.untrusted import content, pickles
from cmsbert_fast.data.untrusted.limits import Budget, limit_of
from cmsbert_fast.data.untrusted.records import Array

FORMAT = "MMSA-FET, single clips"
_MODALITY = {"visual": ("vision", "video"), "acoustic": ("audio",)}
_KEYS = {"audio", "vision", "video", "text", "text_bert"}


def recognise(root: Any) -> bool:
    """Whether a pickle's content is the features of one clip."""
    if not isinstance(root, dict) or not root or not root.keys() <= _KEYS:
        return False
    return all(isinstance(value, Array) and len(value.shape) == 2 for value in root.values()) and len(
        root.keys() & {"audio", "vision", "video"}
    ) in (1, 2)


def fet_source(path: Path, clips: Sequence[Path], request: DataRequest) -> Source:
    """The clips of a file or folder, with words from the table that is asked for.

    Raises:
        DataError: No table of words is named, or a clip is not in it.
    """
    if request.words is None or request.words.lower() == "none":
        raise DataError(
            f"Name a table (id, text; split and label for training) with --words TABLE, its ids the names of the "
            f"files: {path.name} holds MMSA-FET's features of single clips, which have no words, and BERT needs words."
        )
    table = Path(request.words)
    if not table.is_file():
        raise DataError(f"Name a table of words with --words TABLE: {request.words} is not a file.")
    rows = read_segments(table, request.label, request.labels)
    by_id = {row.id: row for row in rows}
    if len(clips) == len(rows) == 1:
        by_id = {clips[0].stem: rows[0]}
    found = {clip.name: by_id[clip.stem] for clip in clips if clip.stem in by_id}
    unknown = [clip.name for clip in clips if clip.name not in found]
    more = ", ..." * (len(unknown) > 5)
    if not found:
        raise DataError(f"Call clips by ids of {table.name}: {clips[0].name} is none of its {len(rows)} ids.")
    labels = [None if isinstance(row.label, tuple) else row.label for row in found.values()]
    classes = class_names(labels, table.name) if request.labels else None
    by_name = {clip.name: clip for clip in clips}

    def read(name: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        example = _example(by_name[name], found[name], classes, request.labels, report)
        if example is not None:
            yield found[name].split, example

    return Source(
        name=path.stem,
        format=FORMAT,
        path=path,
        files=[table, *(by_name[name] for name in found)],
        groups=list(found),
        read=read,
        notes=[
            f"words from {table.name}",
            *([f"{len(unknown)} clips are not in {table.name}: {', '.join(unknown[:5])}{more}"] if unknown else []),
        ],
        classes=classes,
        budget=Budget(sum(map(limit_of, by_name.values()))),
    )


def _example(
    clip: Path, row: Segment, classes: tuple[str, ...] | None, labels: bool, report: ReadReport
) -> Example | None:
    """The example of a clip; None where it has no text."""
    root = pickles.load(clip)
    if not recognise(root):
        raise DataError(f"Put MMSA-FET's file of a clip in place of {clip.name}: it is built differently.")
    spoken = words_of(row.text)
    if not spoken:
        report.drop("it has no text")
        return None
    frames = {modality: _frames(root, names, modality, report) for modality, names in _MODALITY.items()}
    steps = {len(rows) for rows in frames.values() if len(rows)}
    tokens = root.get("text")
    alignment = Alignment.NONE
    if isinstance(tokens, Array) and steps == {tokens.shape[0]}:
        frames = {modality: rows[1:-1] for modality, rows in frames.items()}
        exact = all(len(rows) in (0, len(spoken)) for rows in frames.values())
        alignment = Alignment.WORDS if exact else Alignment.PIECES
        report.tally("clips are aligned, a frame a word piece", 1)
    label = row.label if labels else None
    if isinstance(label, str):
        label = (classes or ()).index(label)
    return Example(row.id, spoken, label, frames["visual"], frames["acoustic"], alignment)


def _frames(root: Mapping[str, Any], names: tuple[str, ...], modality: str, report: ReadReport) -> np.ndarray:
    values = [content.array_of(root[name]) for name in names if name in root]
    if not values:
        return no_frames()
    if values[0].dtype.kind not in "fiu":
        raise DataError(f"Extract the clip again: its {modality} frames are no numbers.")
    return frames_of(values[0], modality, report)
