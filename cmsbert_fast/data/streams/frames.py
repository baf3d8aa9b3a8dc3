"""The frames of a segment from the streams of both modalities: all of them, or one a word."""

from typing import NamedTuple

import numpy as np

from cmsbert_fast.data.align import words_of_frames
from cmsbert_fast.data.example import MODALITIES, Alignment, Clock, DataError, FrameWords, no_frames
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.streams.assignment import Assignment
from cmsbert_fast.data.streams.cutting import Cutter, Place
from cmsbert_fast.data.untrusted.limits import Budget


class SegmentFrames(NamedTuple):
    """What an `Example` holds from ``visual`` on; the clock is complete."""

    visual: np.ndarray
    acoustic: np.ndarray
    alignment: Alignment
    frame_words: FrameWords | None
    clock: Clock | None = None


class FrameReader:
    """Reads the frames of segments, one video in memory at a time.

    Args:
        streams: Which streams serve which modality.
        budget: Limits what is made of them.
        average: Whether to average the frames of each word, where words have times; else all frames are kept, and which
            word each belongs to.
        clocks: Whether to keep the times of frames.
    """

    def __init__(self, streams: Assignment, budget: Budget, average: bool, clocks: bool = False) -> None:
        self._average, self._clocks = average, clocks
        self._cutters = {m: Cutter(getattr(streams, m), m, budget) for m in MODALITIES}
        self._widths = {m: cutter.width for m, cutter in self._cutters.items()}

    def read(self, place: Place, times: np.ndarray | None, report: ReadReport) -> SegmentFrames:
        """The frames of a segment.

        Args:
            place: Where it is.
            times: Start and stop of its words in the video (words, 2), in seconds; None: not known.
            report: Counts what is altered or missing.

        Raises:
            DataError: A stream has no times, or does not fit the others of its modality.
        """
        frames: dict[str, np.ndarray] = {}
        words = dict.fromkeys(MODALITIES, np.zeros(0, dtype=np.int32))
        heard: dict[str, np.ndarray | None] = dict.fromkeys(MODALITIES)  # times of frames
        for modality, cutter in self._cutters.items():
            found: np.ndarray | None
            if times is not None and self._average:
                found = cutter.average(place, times, report)
                heard[modality] = times
            else:
                track = cutter.cut(place, report)
                found = None if track is None else track.features
                heard[modality] = None if track is None else track.intervals
                if times is not None and track is not None:
                    words[modality] = _words(track.intervals, times, modality, place, report)
            width = self._widths[modality]
            if width and (found is None or not len(found)):
                report.tally(f"examples have no {modality} frame", 1)
            frames[modality] = no_frames(width) if found is None else found
        both = frames["visual"], frames["acoustic"]
        clock = Clock(place.video or place.segment, place.span, times, **heard) if self._clocks else None
        if times is None:
            return SegmentFrames(*both, Alignment.NONE, None, clock)
        if self._average:
            return SegmentFrames(*both, Alignment.WORDS, None, clock)
        return SegmentFrames(*both, Alignment.NONE, FrameWords(**words), clock)

    def forget(self) -> None:
        """Drops the frames of the last video."""
        for cutter in self._cutters.values():
            cutter.forget()

    def finish(self, report: ReadReport) -> None:
        """Checks the whole, once all examples are read.

        Raises:
            DataError: There are streams of a modality, but no example has a frame of them.
        """
        for cutter in self._cutters.values():
            cutter.finish(report)


def _words(
    intervals: np.ndarray | None, times: np.ndarray, modality: str, place: Place, report: ReadReport
) -> np.ndarray:
    """The word of each frame; frames between words are counted."""
    if intervals is None:
        raise DataError(
            f"Give the {modality} frames of {place.segment} times: with --average-words false they belong to words."
        )
    words = words_of_frames(intervals, times)
    outside = int(np.count_nonzero(words < 0))
    report.tally(f"of the {modality} frames lie between words; word-level systems leave them out", outside)
    return words
