"""Examples of a table of segments, cut out of the streams beside it: what all corpora with such a table share."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cmsbert_fast.data.align import MOST_PAIRS, word_times
from cmsbert_fast.data.example import MODALITIES, DataError, Example
from cmsbert_fast.data.extraction import FILE, extraction_of
from cmsbert_fast.data.folds import NO_FOLD, Rotation, choose, read_folds
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.segment_table import Segment
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.streams.assignment import Assignment
from cmsbert_fast.data.streams.csd import CsdStream
from cmsbert_fast.data.streams.cutting import Place, words_within
from cmsbert_fast.data.streams.frames import FrameReader
from cmsbert_fast.data.text import words_of
from cmsbert_fast.data.untrusted.limits import ROW, Budget

# What costs a byte of the budget: words of a video that are searched for a segment, pairs of words that are compared.
_LOOK, _COMPARE = 8, 1000


@dataclass(frozen=True)
class Selection:
    """What a corpus takes from a table.

    Attributes:
        format: Its name, for the report.
        segments: The segments, in the order of the table.
        classes: Names of the classes that labels name; None for scores.
        rotations: Its own folds by name, the default first.
        dropped: Segments that are left out already, by reason.
        several: Whether a segment may have several of the classes at once.
    """

    format: str
    segments: list[Segment]
    classes: tuple[str, ...] | None
    rotations: Mapping[str, Rotation]
    dropped: Mapping[str, int] = field(default_factory=dict)
    several: bool = False


def table_source(table: Path, selection: Selection, request: DataRequest, folder: Path | None = None) -> Source:
    """The segments of a table with the streams beside it.

    Args:
        table: The file of the segments.
        selection: What is taken from it.
        request: What to read.
        folder: Where the streams are; None: beside the table.

    Raises:
        DataError: Which stream serves what cannot be told, or the folds asked for are not there.
    """
    folder = folder or table.parent
    reader = _Reader(table, selection, request, folder)
    from_file = request.folds is not None and choose(selection.rotations, request.folds) is None
    return Source(
        name=folder.resolve().name,
        format=selection.format,
        path=folder,
        files=reader.files,
        groups=list(reader.groups),
        read=reader.read,
        notes=reader.notes,
        classes=selection.classes,
        several=selection.several,
        budget=reader.budget,
        by_video=True,
        rotations={} if from_file else selection.rotations,  # of what a file names, which may be less than all
        extraction=reader.extraction,
        dropped=selection.dropped,
    )


class _Reader:
    """Reads the segments of one video after the other."""

    def __init__(self, table: Path, selection: Selection, request: DataRequest, folder: Path) -> None:
        self._table, self._labels = table, request.labels
        self._split_of = _splitter(table, selection.rotations, request)
        # The table holds labels and text: label streams are not needed, and words only where they are named or their
        # times are wanted.
        words, columns = request.words or (None if request.clocks else "none"), request.columns
        assignment = Assignment(folder, request.visual, request.acoustic, words, "none", columns)
        self.notes: list[str] = []
        assignment.describe(self.notes)
        self._words, self._aligns = assignment.words, request.words is not None
        if self._words is None and not request.average_words:
            raise DataError(
                "Name a stream of words with --words NAME, or leave out --average-words: no words have times."
            )
        self._class = {name: k for k, name in enumerate(selection.classes or ())}
        self.groups: dict[str, list[Segment]] = {}
        for segment in selection.segments:
            self.groups.setdefault(segment.video, []).append(segment)
        self._last = next(reversed(self.groups), None)
        transcripts = (segment.transcript for segment in selection.segments if segment.transcript)
        self.files = list(dict.fromkeys([table, *transcripts, *assignment.files]))
        self.budget = Budget.of_streams(self.files)
        self._frames = FrameReader(assignment, self.budget, request.average_words, request.clocks)
        streams = {modality: getattr(assignment, modality) for modality in MODALITIES}
        self.extraction = extraction_of(folder, streams)  # after their widths were looked up, which reads their names
        if self.extraction:
            self.files.append(folder / FILE)
            prints = sorted({one.fingerprint[:12] for one in self.extraction.values()})
            self.notes.append(f"extracted from video: {', '.join(self.extraction)} (fingerprint {', '.join(prints)})")
        self._heard: tuple[list[str], np.ndarray] | None = None  # words and times of the video that is read

    def read(self, video: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        """The examples of a video, with their splits."""
        self._heard = None
        report.tally_twice([segment.span for segment in self.groups[video] if segment.span is not None])
        for segment in self.groups[video]:
            split = self._split_of(segment)
            if split is None:
                report.drop(NO_FOLD)
                continue
            example = self._example(video, segment, report)
            if example is not None:
                self.budget.see(example)
                yield split, example
        self._frames.forget()
        if video == self._last:
            self._frames.finish(report)

    def _example(self, video: str, segment: Segment, report: ReadReport) -> Example | None:
        spoken = words_of(segment.text)
        if not spoken:
            report.drop("it has no text")
            return None
        times = None
        if self._words is not None:
            times = self._word_times(self._words, video, segment, spoken, report)
            if times is None and self._aligns:
                report.drop(f"its video is not in {self._words.name}")
                return None
        # An id without a number is its own video; its files hold nothing else, unless the table names the video.
        alone = segment.id == video and len(self.groups[video]) == 1 and not segment.has_video
        place = Place(segment.id, None if alone else video, segment.span)
        frames = self._frames.read(place, times if self._aligns else None, report)
        if frames.clock is not None:
            frames = frames._replace(clock=frames.clock._replace(words=times))
        label = segment.label if self._labels else None
        value = self._class[label] if isinstance(label, str) else label
        return Example(segment.id, spoken, value, *frames)

    def _word_times(
        self, words: CsdStream, video: str, segment: Segment, spoken: tuple[str, ...], report: ReadReport
    ) -> np.ndarray | None:
        """When each word of a segment is spoken (n, 2); None where the stream does not tell."""
        if segment.span is None and self._aligns:
            raise DataError(f"Give {self._table.name} columns start and stop: words are cut by time.")
        if segment.span is None or video not in words:
            return None
        if self._heard is None:
            self.budget.spend(ROW * words.rows(video))
            self._heard = words.read_words(video)
        heard, spans = words_within(*self._heard, *segment.span)
        if len(spoken) * len(heard) > MOST_PAIRS:
            raise DataError(
                f"Cut {segment.id!r} into shorter segments: it has {len(spoken)} words, to be found among "
                f"{len(heard)} of {words.name}."
            )
        # Any number of segments may search all words of a video.
        self.budget.spend(len(self._heard[0]) // _LOOK + len(spoken) * len(heard) // _COMPARE)
        times, missing = word_times(spoken, heard, spans, segment.span)
        report.tally("words are not in the word stream; their times were interpolated", missing)
        return times


def _splitter(table: Path, rotations: Mapping[str, Rotation], request: DataRequest) -> Callable[[Segment], str | None]:
    """How segments are split: by a file of folds, by folds of the table's own, or by its own splits."""
    if request.folds is None and request.fold is None:
        return lambda segment: segment.split
    chosen = choose(rotations, request.folds)
    if chosen is not None:
        return rotations[chosen].splitter(request.fold)
    if request.folds is not None:
        return read_folds(request.folds, request.fold).splitter
    raise DataError(f"Add a column fold with three folds or more to {table.name}, or leave out --fold.")
