"""Streams cut per segment or averaged per word."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cmsbert_fast.data.align import TOLERANCE, Track, interval_means, overlapping
from cmsbert_fast.data.example import DataError, frames_of
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.streams.assignment import Stream
from cmsbert_fast.data.streams.feature_files import FileStream
from cmsbert_fast.data.untrusted.limits import Budget

_LOOK = 16  # frames that are searched for a segment cost a byte of the budget


class Place(NamedTuple):
    """Where the frames of a segment are.

    Attributes:
        segment: Its id.
        video: Its video; None where the segment is a recording by itself, whose files hold nothing else.
        span: Start and stop in the video, in seconds.
    """

    segment: str
    video: str | None
    span: tuple[float, float] | None


class Cutter:
    """Cuts the streams of one modality per segment or averages them per word, one video in memory at a time.

    Several streams of a modality are joined along the features: per word, or on the frames of the first of them.
    """

    def __init__(self, streams: Iterable[Stream], modality: str, budget: Budget) -> None:
        self._streams = list(streams)
        self._modality = modality
        self._budget = budget
        self._held: dict[int, tuple[str, Track]] = {}
        self._widths: dict[int, int] = {}

    def _track(self, number: int, key: str, report: ReadReport) -> Track:
        held = self._held.get(number)
        if held is None or held[0] != key:
            stream = self._streams[number]
            track = stream.read(key)
            width = self._width(number)
            if not len(track.features):
                track = Track(np.zeros((0, width)), track.intervals)
            if track.features.shape[1] != width:
                raise DataError(
                    f"Repair {stream.name}: {key} has {track.features.shape[1]} features, others have {width}."
                )
            self._tell(stream, key, report)
            # Non-finite values are replaced and counted once for the whole video, before averaging.
            clean = frames_of(track.features, self._modality, report)
            held = (key, Track(clean, track.intervals))
            self._held[number] = held
        # Any number of segments may each overlap the whole video.
        self._budget.spend(len(held[1].features) // _LOOK)
        return held[1]

    def _tell(self, stream: Stream, key: str, report: ReadReport) -> None:
        """Notes what was found in a file: names of features, columns that are none, frames without a face."""
        if stream.columns:
            report.columns[stream.name] = list(stream.columns)
            if all(one.columns for one in self._streams):
                report.features[self._modality] = [name for one in self._streams for name in one.columns]
        if not isinstance(stream, FileStream):
            return
        if stream.left_out:
            report.note(f"{stream.name}: no features are the columns {', '.join(sorted(stream.left_out))}")
        report.tally(
            f"of the {self._modality} frames of {stream.name} have no face (success 0); their values are kept",
            stream.lost.get(key, 0),
        )

    def _find(self, number: int, place: Place, report: ReadReport) -> tuple[Track, bool] | None:
        """The track that holds a segment, on the video's clock, and whether it holds nothing else."""
        segment, video, span = place
        stream = self._streams[number]
        if not self._width(number):
            return None
        if segment in stream and segment != video and (video is not None or isinstance(stream, FileStream)):
            track = self._track(number, segment, report)
            # The times of a segment's own file begin with the segment; those of a .csd are the video's throughout.
            if isinstance(stream, FileStream) and track.intervals is not None and span is not None:
                track = Track(track.features, track.intervals + span[0])
            return track, True
        key = video or segment
        return (self._track(number, key, report), span is None and segment == key) if key in stream else None

    def _frames(self, number: int, place: Place, report: ReadReport) -> Track | None:
        segment, video, span = place
        found = self._find(number, place, report)
        if found is None:
            return None
        track, own = found
        if own:
            return track
        if track.intervals is None:
            raise DataError(
                f"Give the frames of {self._streams[number].name} times (a timestamp column, or the rate as "
                f"{self._streams[number].name}@HZ): the file of {video or segment} holds a whole video."
            )
        if span is None:
            raise DataError(
                f"Give the table columns start and stop: frames of {video or segment} must be cut per segment."
            )
        inside = overlapping(track.intervals, *span)
        return Track(track.features[inside], track.intervals[inside])

    def cut(self, place: Place, report: ReadReport) -> Track | None:
        """The frames of a segment, float32 (n, d), with their times; None where no stream knows it or its video.

        ``report`` counts what is altered or missing.
        """
        tracks = [self._frames(k, place, report) for k in range(len(self._streams))]
        if not tracks or tracks[0] is None:
            return None
        if len(tracks) == 1:
            return Track(np.ascontiguousarray(tracks[0].features), tracks[0].intervals)
        parts = [tracks[0].features]
        for name, track in zip([stream.name for stream in self._streams[1:]], tracks[1:], strict=True):
            if track is None:
                return None
            if track.intervals is None or tracks[0].intervals is None:
                if len(track.features) != len(parts[0]):
                    raise DataError(
                        f"Give the frames of {place.segment} times, or as many frames in every {self._modality} stream."
                    )
                parts.append(track.features)
            else:
                means, counts = interval_means(track.features, track.intervals, tracks[0].intervals)
                parts.append(means.astype(np.float32))
                report.tally(
                    f"frames of {self._streams[0].name} have none of {name} at their time; its features are 0 there",
                    int((counts == 0).sum()),
                )
        return Track(np.ascontiguousarray(np.concatenate(parts, axis=1)), tracks[0].intervals)

    def average(self, place: Place, times: np.ndarray, report: ReadReport) -> np.ndarray | None:
        """One frame a word, float32 (words, d): the mean of the frames that overlap it, 0 where there is none.

        Args: as `cut`; ``times`` (words, 2) are seconds in the video. Words without a frame are counted.
        """
        parts: list[np.ndarray] = []
        bare = np.zeros(len(times), dtype=bool)
        self._budget.reserve(8 * len(times) * self.width)
        for number in range(len(self._streams)):
            found = self._find(number, place, report)
            if found is None:
                return None
            track, own = found
            if track.intervals is None:
                raise DataError(f"Give the frames of {self._streams[number].name} times: they are averaged per word.")
            rows = _rows_of(track.intervals, times) if own else None
            if rows is not None:
                parts.append(track.features[rows])
                continue
            means, counts = interval_means(track.features, track.intervals, times)
            parts.append(means.astype(np.float32))
            bare |= counts == 0
        if not parts:
            return None
        report.tally(self._bare, int(bare.sum()))
        return np.concatenate(parts, axis=1)

    @property
    def _bare(self) -> str:
        return f"words have no {self._modality} frame; theirs are zeros"

    def finish(self, report: ReadReport) -> None:
        """Checks the whole, once all examples are read.

        Raises:
            DataError: There are streams, but no example has a frame of them.
        """
        if not self._streams or not report.counts:
            return
        if report.frames.get(self._modality, 0) == report.tallies.get(self._bare, 0):
            names = ", ".join(stream.name for stream in self._streams)
            raise DataError(
                f"Name the files or entries of {names} by ids or videos of the table and give both the same clock, or "
                f"leave the stream out with --{self._modality} none: no example has a frame of it."
            )

    def forget(self) -> None:
        """Drops the frames of the last video."""
        self._held.clear()

    @property
    def width(self) -> int:
        """Features of a frame, all streams of the modality together."""
        return sum(map(self._width, range(len(self._streams))))

    def _width(self, number: int) -> int:
        """Features of a frame of one stream, from the first entry that has frames."""
        if number not in self._widths:
            stream = self._streams[number]
            tracks = (stream.read(key) for key in stream)
            self._widths[number] = next((t.features.shape[1] for t in tracks if len(t.features)), 0)
        return self._widths[number]


def _rows_of(intervals: np.ndarray, times: np.ndarray) -> list[int] | None:
    """The frames whose intervals are those of the words, in order; None where a word has no such frame.

    Such frames are averages already (the SDK aligned them). Averaging again would mix words whose rounded times
    overlap, and lose words without duration.
    """
    if not len(times) or len(intervals) < len(times):
        return None
    rows: list[int] = []
    at = 0
    stamps = intervals.tolist()
    for start, stop in times.tolist():
        while at < len(stamps) and max(abs(stamps[at][0] - start), abs(stamps[at][1] - stop)) > TOLERANCE:
            at += 1
        if at == len(stamps):
            return None
        rows.append(at)
        at += 1
    return rows


def words_within(words: list[str], times: np.ndarray, start: float, stop: float) -> tuple[list[str], np.ndarray]:
    """The words that overlap [start, stop] by more than a millisecond, with their intervals."""
    margin = max(TOLERANCE, 1e-3)  # word stamps are rounded to milliseconds; neighbours would slip in
    inside = np.flatnonzero((times[:, 0] < stop - margin) & (times[:, 1] > start + margin))
    return [words[k] for k in inside], times[inside]
