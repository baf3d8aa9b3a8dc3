"""Frames on a time axis: which of them a segment overlaps, and their mean over each word.

A frame belongs to an interval if the two overlap. Intervals that only touch do not overlap; the tolerance absorbs the
rounding of time stamps in the files.
"""

from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-5  # seconds: far below any frame, above the rounding of decimal and float32 time stamps


@dataclass(frozen=True, slots=True)
class Track:
    """Frames of one video: ``features`` (n, d), ``intervals`` (n, 2) in seconds or None where frames have no times."""

    features: np.ndarray
    intervals: np.ndarray | None


def overlapping(intervals: np.ndarray, start: float, stop: float) -> np.ndarray:
    """Indices of the frames that overlap [start, stop], in order of time.

    A stream with one frame a segment has a frame of exactly the segment's interval: that one alone is then the answer,
    although neighbouring segments may overlap it.
    """
    same = np.abs(intervals - (start, stop)).max(axis=1) <= TOLERANCE if len(intervals) else np.zeros(0, bool)
    if same.any():
        return np.flatnonzero(same)[:1]
    inside = (intervals[:, 0] < stop - TOLERANCE) & (intervals[:, 1] > start + TOLERANCE)
    found = np.flatnonzero(inside)
    return found[np.argsort(intervals[found, 0], kind="stable")]


def interval_means(features: np.ndarray, intervals: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The mean over each target interval of the frames that overlap it; 0 where there is none.

    Args:
        features: (n, d), any real dtype; summed in float64.
        intervals: (n, 2) start and stop of each frame, in any order.
        targets: (m, 2) start and stop of each word.

    Returns:
        float64 (m, d).
    """
    means = np.zeros((len(targets), features.shape[1]))
    if not len(intervals) or not len(targets):
        return means
    order = np.argsort(intervals[:, 0], kind="stable")
    starts, stops = intervals[order, 0], intervals[order, 1]
    if (np.diff(stops) < 0).any():  # frames within frames: two sorted searches do not bound them
        for k, (start, stop) in enumerate(targets):
            inside = (intervals[:, 0] < stop - TOLERANCE) & (intervals[:, 1] > start + TOLERANCE)
            if inside.any():
                means[k] = features[inside].mean(axis=0, dtype=np.float64)
        return means
    first = np.searchsorted(stops, targets[:, 0] + TOLERANCE, side="right")
    last = np.searchsorted(starts, targets[:, 1] - TOLERANCE, side="left")
    some = np.flatnonzero(last > first)
    if not len(some):
        return means
    # Sums of neighbouring frames only: one running total over the video would lose digits after one large value.
    low, high = int(first[some].min()), int(last[some].max())
    values = np.zeros((high - low + 1, features.shape[1]))
    values[:-1] = features[order[low:high]]
    bounds = np.stack([first[some], last[some]], axis=1).ravel() - low
    means[some] = np.add.reduceat(values, bounds, axis=0)[::2] / (last - first)[some, None]
    return means
