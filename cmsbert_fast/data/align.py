"""Alignment by time and by word: which frames a segment overlaps, means over words, times of written words.

A frame belongs to an interval if the two overlap. Intervals that only touch do not overlap; the tolerance absorbs the
rounding of time stamps in the files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmsbert_fast.data.text import bare

TOLERANCE = 1e-5  # seconds: far below any frame, above the rounding of decimal and float32 time stamps
MOST_PAIRS = 25_000_000  # of words that are compared: 5,000 with 5,000 take a second and 50 MB
_COLUMNS = 16  # features at a time: bounds the copies of a long video


@dataclass(frozen=True, slots=True)
class Track:
    """Frames of one video: ``features`` (n, d), ``intervals`` (n, 2) in seconds or None where frames have no times."""

    features: np.ndarray
    intervals: np.ndarray | None


def overlapping(intervals: np.ndarray, start: float, stop: float) -> np.ndarray:
    """Indices of the frames that overlap [start, stop], in order of time.

    In a stream with one frame a segment, a frame has exactly the segment's interval. Then it alone is the answer,
    even where the intervals of neighbouring segments overlap.
    """
    same = np.abs(intervals - (start, stop)).max(axis=1) <= TOLERANCE if len(intervals) else np.zeros(0, bool)
    if same.any():
        return np.flatnonzero(same)[:1]
    inside = (intervals[:, 0] < stop - TOLERANCE) & (intervals[:, 1] > start + TOLERANCE)
    found = np.flatnonzero(inside)
    return found[np.argsort(intervals[found, 0], kind="stable")]


def interval_means(features: np.ndarray, intervals: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over each target interval of the frames that overlap it; 0 where there is none.

    Args:
        features: (n, d), any real dtype; summed in float64.
        intervals: (n, 2) start and stop of each frame, in any order.
        targets: (m, 2) start and stop of each word.

    Returns:
        The means, float64 (m, d), and how many frames each is the mean of, int64 (m,).
    """
    means, counts = np.zeros((len(targets), features.shape[1])), np.zeros(len(targets), dtype=np.int64)
    if not len(intervals) or not len(targets):
        return means, counts
    order = np.argsort(intervals[:, 0], kind="stable")
    starts, stops = intervals[order, 0], intervals[order, 1]
    last = np.searchsorted(starts, targets[:, 1] - TOLERANCE, side="left")
    if (np.diff(stops) < 0).any():  # frames within frames: two sorted searches do not bound them
        return _nested_means(features, order, stops, targets[:, 0] + TOLERANCE, last)
    first = np.searchsorted(stops, targets[:, 0] + TOLERANCE, side="right")
    some = np.flatnonzero(last > first)
    if not len(some):
        return means, counts
    # Sums of neighbouring frames only: one running total over the video would lose digits after one large value.
    low, high = int(first[some].min()), int(last[some].max())
    values = np.zeros((high - low + 1, features.shape[1]))
    values[:-1] = features[order[low:high]]
    bounds = np.stack([first[some], last[some]], axis=1).ravel() - low
    counts[some] = (last - first)[some]
    means[some] = np.add.reduceat(values, bounds, axis=0)[::2] / counts[some, None]
    return means, counts


def words_of_frames(intervals: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The word during which the middle of each frame falls, or -1 between words.

    Of words that overlap, the one that began last has the frame.

    Args:
        intervals: (n, 2) start and stop of each frame, in order.
        times: (m, 2) start and stop of each word, in order.

    Returns:
        int32 (n,), ascending but for the -1.
    """
    if not len(times) or not len(intervals):
        return np.full(len(intervals), -1, dtype=np.int32)
    middles = np.maximum.accumulate(intervals.mean(axis=1))
    starts, stops = np.maximum.accumulate(times, axis=0).T
    words = np.searchsorted(starts, middles, side="right") - 1
    within = (words >= 0) & (middles < stops[words])
    return np.where(within, words, -1).astype(np.int32)


def _nested_means(
    features: np.ndarray, order: np.ndarray, stops: np.ndarray, after: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and number of the frames before ``last`` (in order of starts) that stop later than ``after``.

    A merge-sort tree, O((n + m) log n) however the frames nest: the first ``last`` frames fall into blocks whose sizes
    are powers of two, and in a block sorted by stops the wanted frames are the end. Only they are added up.
    """
    n, m = len(stops), len(after)
    by_stop = np.argsort(stops, kind="stable")
    size = 1 << int(n).bit_length()
    rank = np.zeros(size, dtype=np.int64)  # 0: no frame
    rank[by_stop] = np.arange(1, n + 1)
    least = np.searchsorted(stops[by_stop], after, side="right") + 1  # the lowest rank that stops later
    source = np.zeros(size, dtype=np.int64)
    source[:n] = order
    sums, counts = np.zeros((m, features.shape[1])), np.zeros(m, dtype=np.int64)
    width = 1
    while width <= n:
        words = np.flatnonzero(last & width)
        if len(words):
            block = last[words] // (2 * width) * 2
            blocks = np.arange(size) // width
            sorted_ = np.lexsort((rank, blocks))
            keys = blocks * (n + 2) + rank[sorted_]
            begin = np.searchsorted(keys, block * (n + 2) + least[words], side="left")
            end = (block + 1) * width
            some = begin < end
            words, begin = words[some], begin[some]
            counts[words] += end[some] - begin
            for column in range(0, features.shape[1], _COLUMNS):
                columns = slice(column, column + _COLUMNS)
                values = features[source[sorted_], columns].astype(np.float64)
                tails = values.reshape(-1, width, values.shape[1])[:, ::-1].cumsum(axis=1)[:, ::-1]
                sums[words, columns] += tails.reshape(values.shape)[begin]
        width *= 2
    return sums / np.maximum(counts, 1)[:, None], counts


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Indices into both sequences of a longest common subsequence: as many equal words as can be paired in order.

    Of several that are as long, the one whose pairs lie next to the pairs that follow them. Time and memory are
    proportional to ``len(one) * len(other)``, which should be at most `MOST_PAIRS`.
    """
    number = {word: k for k, word in enumerate({*one, *other})}
    first, second = (np.array([number[word] for word in words], dtype=np.int64) for words in (one, other))
    longest = np.zeros((len(one) + 1, len(other) + 1), dtype=np.int16)  # of what remains from there on
    for i in reversed(range(len(one))):
        best = np.maximum(longest[i + 1, :-1], longest[i + 1, 1:] + (first[i] == second))
        longest[i, :-1] = np.maximum.accumulate(best[::-1])[::-1]
    pairs = np.zeros((int(longest[0, 0]), 2), dtype=np.int64)
    i = j = found = 0
    while found < len(pairs):
        if first[i] == second[j]:
            pairs[found] = i, j
            i, j, found = i + 1, j + 1, found + 1
        elif longest[i + 1, j] >= longest[i, j + 1]:
            i += 1
        else:
            j += 1
    for k in reversed(range(len(pairs) - 1)):  # the first "he" of "he, he was" may be far from its "was"
        i, j = pairs[k + 1] - 1
        if first[i] == second[j]:
            pairs[k] = i, j
    return pairs[:, 0], pairs[:, 1]


def word_times(
    words: Sequence[str], heard: Sequence[str], times: np.ndarray, span: tuple[float, float]
) -> tuple[np.ndarray, int]:
    """When the words of a transcript are spoken, from the words heard in its segment.

    As many equal words as possible, whatever their case and punctuation, are paired in order. Words without a partner
    share the time between their neighbours evenly.

    Args:
        words: The transcript.
        heard: The words heard.
        times: (m, 2) start and stop of each word heard, in seconds.
        span: Start and stop of the segment.

    Returns:
        Start and stop of each word of the transcript (n, 2), and how many words had no partner.
    """
    result = np.full((len(words), 2), np.nan)
    written, spoken = common_subsequence([bare(word) for word in words], [bare(word) for word in heard])
    result[written] = times[spoken]
    missing = np.isnan(result[:, 0])
    k = 0
    while k < len(words):
        if not missing[k]:
            k += 1
            continue
        end = k
        while end < len(words) and missing[end]:
            end += 1
        left = result[k - 1, 1] if k else span[0]
        right = max(left, result[end, 0] if end < len(words) else span[1])
        marks = np.linspace(left, right, end - k + 1)
        result[k:end] = np.stack([marks[:-1], marks[1:]], axis=1)
        k = end
    return result, int(missing.sum())
