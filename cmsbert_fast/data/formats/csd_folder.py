"""A folder of ``.csd`` files as the CMU-MultimodalSDK downloads them: labels, words, and streams of frames.

A segment is an interval of the label stream; its words and, averaged per word, its frames are cut by time. In sets that
the SDK aligned, the entries are segments already (``video[3]``). For prediction there may be no label stream: then
every entry of the word stream is one utterance.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmsbert_fast.data.align import Track
from cmsbert_fast.data.example import DataError, Example, Label
from cmsbert_fast.data.folds import ALL, NO_FOLD, folds_of, video_of
from cmsbert_fast.data.labels import MOSEI_LABELS, LabelChoice, choice_of
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.streams.assignment import Assignment
from cmsbert_fast.data.streams.cutting import Place, words_within
from cmsbert_fast.data.streams.frames import FrameReader
from cmsbert_fast.data.text import whole
from cmsbert_fast.data.untrusted.limits import ROW, Budget

_ENTRY = re.compile(r".+\[\d+\]", re.DOTALL)  # an entry of an aligned set is one segment


def recognise(folder: Path) -> bool:
    """Whether a folder holds ``.csd`` files."""
    return folder.is_dir() and any(folder.glob("*.csd"))


def csd_folder_source(folder: Path, request: DataRequest) -> Source:
    """A set of ``.csd`` streams; frames are averaged per word.

    Without labels wanted a label stream only says where segments lie, and need not be there.

    Raises:
        DataError: There is no stream of words or labels, or names alone do not decide.
    """
    reader = _Reader(folder, request)
    return Source(
        name=folder.resolve().name,
        format="CMU-MultimodalSDK streams",
        path=folder,
        files=reader.files,
        groups=list(reader.groups),
        read=reader.read,
        notes=reader.notes,
        classes=reader.choice.classes if request.labels else None,
        several=reader.choice.several and request.labels,
        budget=reader.budget,
        by_video=True,
    )


class _Entry(NamedTuple):
    """The words of an entry of the word stream, and whether the entry is one segment."""

    key: str
    video: str
    entire: bool
    words: list[str]
    times: np.ndarray


class _Reader:
    """Reads the entries of one video after the other."""

    def __init__(self, folder: Path, request: DataRequest) -> None:
        choice = _choice(folder, request.label)
        chosen = request.visual, request.acoustic, request.words, choice.stream
        assignment = Assignment(folder, *chosen, request.columns)
        if assignment.words is None:
            raise DataError(f"Name the stream of words with --words NAME: {folder.name} has none that is called so.")
        self._words, self._cut_by = assignment.words, assignment.labels
        self._labels = request.labels
        self.choice = LabelChoice(choice.stream, choice.columns or MOSEI_LABELS[:1])
        if self._labels and self._cut_by is None:
            raise DataError(
                f"Add the label stream (.csd), or a table segments.tsv (id, split, start, stop, label, text), to "
                f"{folder.name}."
            )
        self._folds = folds_of(request)
        self.files = assignment.files
        self.notes: list[str] = []
        assignment.describe(self.notes)
        if self._folds is None:
            self.notes.append(
                "no folds were given: all examples are in one split; give the standard folds with --folds FILE"
            )
        self.budget = Budget.of_streams(self.files)
        self._frames = FrameReader(assignment, self.budget, request.average_words, request.clocks)
        # Segments of one video are read together: a stream may hold its frames in one entry.
        self.groups: dict[str, list[str]] = {}
        for key in self._keys():
            self.groups.setdefault(video_of(key) if _ENTRY.fullmatch(key) else key, []).append(key)
        self._last = next(reversed(self.groups), None)

    def _keys(self) -> list[str]:
        """The entries that hold segments; those that do not are noted."""
        words, cut_by = self._words, self._cut_by
        if cut_by is None:
            self.notes.append(
                f"no label stream: every entry of {words.name} is one utterance; to cut it, add a table segments.tsv "
                "(id, start, stop, text)"
            )
            return list(words)
        more = [key for key in words if key not in cut_by]
        segments = [key for key in more if _ENTRY.fullmatch(key)]
        if videos := len(more) - len(segments):
            self.notes.append(
                f"{videos} entries of {words.name} are left out: no segment of theirs is in {cut_by.name}"
            )
        return [*cut_by, *segments]

    def read(self, video: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        """The examples of a video, with their splits."""
        for key in self.groups[video]:
            yield from self._examples(key, report)
        self._frames.forget()
        if video == self._last:
            self._frames.finish(report)

    def _examples(self, key: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        streams = [s for s in (self._words, self._cut_by) if s is not None and key in s]
        # Segments may overlap: what is made of a video can grow with the product of its words and labels.
        self.budget.spend(ROW * sum(stream.rows(key) for stream in streams))
        is_segment = _ENTRY.fullmatch(key) is not None
        scores = self._cut_by.read(key) if self._cut_by is not None and key in self._cut_by else None
        if scores is not None and not len(scores.features):
            if not is_segment:
                return  # a video without segments
            scores = None
        entire = is_segment or scores is None
        video = video_of(key) if is_segment else key
        count = 1 if scores is None else len(scores.features)
        names = [whole(key) if entire else whole(f"{key}[{number}]") for number in range(count)]
        splits = [ALL if self._folds is None else self._folds.split_of(name, video) for name in names]
        if not self._wanted(key, splits, scores, report):
            return
        entry = _Entry(key, video, entire, *self._words.read_words(key))
        intervals, values = self._segments(entry, scores, count)
        report.tally_twice([(start, stop) for start, stop in intervals.tolist()])
        for name, split, value, (start, stop) in zip(names, splits, values, intervals, strict=True):
            if split is None:
                continue
            example = self._example(name, entry, (float(start), float(stop)), value, report)
            if example is not None:
                self.budget.see(example)
                yield split, example

    def _wanted(self, key: str, splits: Sequence[str | None], scores: Track | None, report: ReadReport) -> bool:
        """Whether any segment of an entry can become an example; what cannot is counted."""
        unknown = splits.count(None)
        if unknown:
            report.drop(NO_FOLD, unknown)
            if unknown == len(splits):
                return False
        if key not in self._words:
            report.drop(f"its video is not in {self._words.name}", len(splits) - unknown)
            return False
        if self._labels and scores is None and self._cut_by is not None:
            report.drop(f"it has no label in {self._cut_by.name}")
            return False
        return True

    def _segments(self, entry: _Entry, scores: Track | None, count: int) -> tuple[np.ndarray, Sequence[Label | None]]:
        """Start and stop (count, 2) of the segments of an entry, and their labels, None where unknown."""
        values: list[Label | None] = [None] * count
        if scores is None or self._cut_by is None:
            times = entry.times
            return np.array([[times.min(initial=np.inf), times.max(initial=-np.inf)]]), values
        assert scores.intervals is not None
        if _ENTRY.fullmatch(entry.key) and count != 1:
            raise DataError(f"Repair {self._cut_by.name}: {entry.key} is one segment but has {count} labels.")
        if self._labels:
            where = f"{entry.key} of {self._cut_by.name}"
            values = [self.choice.labels_of(row, where) for row in scores.features]
        return scores.intervals, values

    def _example(
        self, name: str, entry: _Entry, span: tuple[float, float], label: Label | None, report: ReadReport
    ) -> Example | None:
        if entry.entire:
            spoken, times = entry.words, entry.times
        else:
            self.budget.spend(len(entry.words) // 8)  # all are searched, whether or not any is found
            spoken, times = words_within(entry.words, entry.times, *span)
        if not spoken:
            report.drop("no word is spoken in it")
            return None
        if self._labels and label is None:
            report.drop("its label is not a number")
            return None
        frames = self._frames.read(Place(entry.key, entry.video, span), times, report)
        return Example(name, tuple(spoken), label, *frames)


def _choice(folder: Path, label: str | None) -> LabelChoice:
    """What a label names; a stream of exactly that name comes before a column of another."""
    if label is not None and (folder / f"{label}.csd").is_file():
        return LabelChoice(label)
    return choice_of(label)
