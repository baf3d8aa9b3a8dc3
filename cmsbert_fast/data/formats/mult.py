"""MulT's pickles, ``mosi_data.pkl`` or ``mosei_data_noalign.pkl``: stacked arrays padded in FRONT, and no words.

The text is GloVe vectors only. A BERT model needs words: they are taken from a table of segments by id, or by video and
time, which is what MulT's ids are.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data.example import Alignment, DataError, Example, frames_of, no_frames
from cmsbert_fast.data.folds import split_name
from cmsbert_fast.data.pickled import splits_of
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.segment_table import Segment, read_segments
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.text import words_of
from cmsbert_fast.data.untrusted import content, limits
from cmsbert_fast.data.untrusted.records import Array

FORMAT = "MulT"
_MODALITY = {"visual": "vision", "acoustic": "audio"}
_CLOSE = 0.05  # seconds by which the times of one segment may differ between files


def recognise(root: Any) -> bool:
    """Whether a pickle's content is MulT's."""
    return (
        isinstance(root, dict)
        and bool(root)
        and all(
            isinstance(part, dict) and {"vision", "audio", "id"} <= part.keys() and "raw_text" not in part
            for part in root.values()
        )
    )


class _Words:
    """Finds the text of an utterance in a table of segments."""

    def __init__(self, table: Path) -> None:
        segments = read_segments(table, labels=False)
        self._by_id = {segment.id: segment for segment in segments}
        self._by_video: dict[str, list[Segment]] = {}
        for segment in segments:
            if segment.span is not None:
                self._by_video.setdefault(segment.video, []).append(segment)

    def find(self, parts: list[str]) -> tuple[str, str] | None:
        """Id and text of the utterance that MulT calls (id,) or (video, start, stop)."""
        if len(parts) == 3:
            try:
                start, stop = float(parts[1]), float(parts[2])
            except ValueError:
                return None
            for segment in self._by_video.get(parts[0], []):
                assert segment.span is not None
                if abs(segment.span[0] - start) < _CLOSE and abs(segment.span[1] - stop) < _CLOSE:
                    return segment.id, segment.text
            return None
        found = self._by_id.get(parts[0])
        return None if found is None else (found.id, found.text)


def mult_source(path: Path, root: Mapping[str, Any], request: DataRequest) -> Source:
    """The examples of a MulT file, with words from the table that is asked for.

    Raises:
        DataError: No table of words is named, or the arrays do not fit one another.
    """
    words, labels = request.words, request.labels
    if words is None or words.lower() == "none":
        raise DataError(
            f"Name a table of words (id, start, stop, text) with --words TABLE: {path.name} is a MulT file, which "
            "holds word vectors but no words, and BERT needs words."
        )
    table = Path(words)
    if not table.is_file():
        raise DataError(f"Name a table of words with --words TABLE: {words} is not a file.")
    request.check_one_label(path.name)
    source = _Words(table)

    def read(split: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        part = _Part(path, split, root[split], labels)
        for number, parts in enumerate(part.ids):
            found = source.find(parts)
            if found is None:
                report.drop(f"{table.name} has no text for its id")
                continue
            spoken = words_of(found[1])
            score = float(part.scores[number])
            if not spoken or (labels and not np.isfinite(score)):
                report.drop("it has no text or no label")
                continue
            frames = part.frames(number, report)
            aligned = part.same_clock and all(len(f) == len(spoken) for f in frames.values())
            alignment = Alignment.WORDS if aligned else Alignment.NONE
            label = score if labels else None
            example = Example(found[0], spoken, label, frames["visual"], frames["acoustic"], alignment)
            yield split_name(split), example

    return Source(
        name=path.stem,
        format=FORMAT,
        path=path,
        files=[path, table],
        groups=splits_of(root, path),
        read=read,
        notes=[f"words from {table.name}"],
    )


class _Part:
    """One split: its arrays, checked against one another.

    Attributes:
        ids: The parts of every id.
        scores: The labels (n,), NaN where they are not wanted.
        same_clock: Whether all modalities have one time axis, a frame a word vector.
    """

    def __init__(self, path: Path, split: str, part: Mapping[str, Any], labels: bool) -> None:
        self._arrays = {modality: content.array_of(part[key]) for modality, key in _MODALITY.items()}
        self.ids = _ids(part["id"], content.Reading(path))
        if labels and "labels" not in part:
            raise DataError(f"Use a MulT file with labels: {split} of {path.name} has none.")
        scores = content.array_of(part["labels"]) if labels else np.full(len(self.ids), np.nan)
        arrays = self._arrays.values()
        sizes = {"labels": len(scores), "id": len(self.ids), **{key: len(a) for key, a in self._arrays.items()}}
        if len(set(sizes.values())) != 1 or any(a.ndim != 3 or a.dtype.kind not in "fiu" for a in arrays):
            raise DataError(f"Repair {path.name}: the arrays of {split} do not fit one another ({sizes}).")
        scores = scores.reshape(len(self.ids), -1)
        if scores.shape[1] != 1 or scores.dtype.kind not in "fiu":
            raise DataError(f"Use a MulT file with one label an example: {path.name} has {scores.shape[1]}.")
        self.scores = scores[:, 0]
        text = part.get("text")
        # Aligned files have one frame a word vector; unaligned ones may pad both modalities to one length as well.
        steps = {array.shape[1] for array in arrays}
        self.same_clock = isinstance(text, Array) and len(text.shape) == 3 and steps == {text.shape[1]}

    def frames(self, number: int, report: ReadReport) -> dict[str, np.ndarray]:
        """The frames of one example, without padding."""
        begins = {modality: _first_row(array[number]) for modality, array in self._arrays.items()}
        if self.same_clock:  # the padding is common to both
            begins = dict.fromkeys(begins, min(begins.values()))
        frames = {m: frames_of(array[number, begins[m] :], m, report) for m, array in self._arrays.items()}
        return {m: f if len(f) else no_frames(f.shape[1]) for m, f in frames.items()}


def _ids(value: Any, reading: content.Reading) -> list[list[str]]:
    """The parts of every id: one, or video, start and stop.

    Raises:
        DataError: An id has more parts, or all are many times larger than the file.
    """
    rows: list[Any]
    wrong = DataError("Use a MulT file whose ids are names, or video, start and stop: these have more parts.")
    if isinstance(value, Array) and math.prod(value.shape[1:]) > 3:
        raise wrong
    if isinstance(value, Array | list | tuple):
        reading.spend(3 * limits.TEXT_SIZE * len(value))
    if isinstance(value, Array) and value.items is None and len(value.shape) > 1:
        rows = value.load().reshape(len(value), -1).tolist()
    elif isinstance(value, Array) and value.items is not None and len(value.shape) == 2:
        width = value.shape[1]
        rows = [value.items[k : k + width] for k in range(0, len(value.items), width)] if width else []
    else:
        rows = [item if isinstance(item, list | tuple) else [item] for item in content.items_of(value)]
    if any(len(row) > 3 for row in rows):
        raise wrong
    flat = iter(content.texts_of([part for row in rows for part in row]))
    return [[next(flat) for _ in row] or [""] for row in rows]


def _first_row(rows: np.ndarray) -> int:
    """The first row that is not all zero; the number of rows where there is none."""
    found = np.flatnonzero((rows != 0).any(axis=1))
    return int(found[0]) if len(found) else len(rows)
