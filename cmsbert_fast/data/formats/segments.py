"""A folder with a table of segments (id, split, start, stop, label, text; tsv or csv) and any number of streams.

The table is the authority on splits, labels and text. Streams (``.csd`` files, or sub-folders of ``.npy`` or ``.csv``
files) are cut per segment, or averaged per word where a word stream is named.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from cmsbert_fast.data.folds import COLUMN, Rotation
from cmsbert_fast.data.labels import class_names
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.segment_table import Segment, doubtful_columns, label_advice, several_columns
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.streams.segment_reader import Selection, table_source


def segments_source(table: Path, segments: list[Segment], request: DataRequest) -> Source:
    """The segments of a table with the streams beside it.

    Raises:
        DataError: Labels are neither all numbers nor all names, or which stream serves what cannot be told.
    """
    classes, several = None, False
    if request.labels:
        labels = [segment.label for segment in segments]
        several = any(isinstance(label, tuple) for label in labels)
        if several:
            classes = tuple(several_columns(request.label or ""))
        else:
            classes = class_names([label for label in labels if not isinstance(label, tuple)], table.name)
    advised = request.labels and request.label is None
    selection = Selection("table of segments", segments, classes, _column_of_folds(segments), several=several)
    source = table_source(table, selection, request)
    source.notes += doubtful_columns(table, request.label, request.labels)
    source.notes += label_advice(table) if advised else []
    return source


def _column_of_folds(segments: Sequence[Segment]) -> dict[str, Rotation]:
    """The folds of a table's own column, where it has enough of them: the next part validates."""
    parts = sorted({segment.fold for segment in segments if segment.fold})
    if len(parts) < 3:
        return {}
    with contextlib.suppress(ValueError):  # "10" comes after "9"
        parts.sort(key=int)
    place = {part: k for k, part in enumerate(parts)}
    valid = [(k + 1) % len(parts) for k in range(len(parts))]
    return {COLUMN: Rotation({s.id: place[s.fold] for s in segments if s.fold}, valid)}
