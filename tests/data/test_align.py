"""Alignment equals its definition: the mean of the frames that overlap the word."""

import functools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmsbert_fast.data.align import (
    TOLERANCE,
    common_subsequence,
    interval_means,
    overlapping,
    word_times,
    words_of_frames,
)


def by_definition(features: np.ndarray, intervals: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """For each word a loop over all frames."""
    means = np.zeros((len(targets), features.shape[1]))
    for w, (start, stop) in enumerate(targets):
        inside = [
            f for f, (a, b) in zip(features, intervals, strict=True) if a < stop - TOLERANCE and b > start + TOLERANCE
        ]
        if inside:
            means[w] = np.mean(np.array(inside, dtype=np.float64), axis=0)
    return means


@pytest.mark.parametrize("kind", ["back to back", "gaps", "overlapping", "nested", "shuffled", "same start"])
@pytest.mark.parametrize("seed", range(5))
def test_word_averages_equal_the_definition(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 200))
    starts = np.sort(random.uniform(0, 10, n))
    if kind == "back to back":
        starts = np.arange(n) * 0.01
        stops = starts + 0.01
    elif kind == "gaps":
        stops = starts + np.diff(np.append(starts, 11)) * 0.5
    elif kind == "same start":
        starts = np.repeat(starts[: (n + 1) // 2], 2)[:n]
        stops = starts + random.uniform(0.01, 1, n)
    elif kind == "nested":
        stops = starts + random.uniform(0.01, 5, n)
    else:
        stops = starts + 0.5
    intervals = np.stack([starts, stops], axis=1)
    if kind == "shuffled":
        intervals = intervals[random.permutation(n)]
    features = random.normal(size=(n, 3)).astype(np.float32)
    edges = np.sort(random.uniform(-1, 12, 31))
    targets = np.concatenate([np.stack([edges[:-1], edges[1:]], axis=1), [[3, 3.0], [-5, -4], [0, 100]]])
    expected = by_definition(features, intervals, targets)
    means, counts = interval_means(features, intervals, targets)
    np.testing.assert_allclose(means, expected, rtol=1e-12, atol=1e-12)
    inside = (intervals[:, 0] < targets[:, 1:] - TOLERANCE) & (intervals[:, 1] > targets[:, :1] + TOLERANCE)
    np.testing.assert_array_equal(counts, inside.sum(axis=1))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 3), st.floats(-1e6, 1e6)), max_size=20),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 3)), max_size=6),
)
def test_any_frames_and_words(frames: list[tuple[float, float, float]], words: list[tuple[float, float]]) -> None:
    intervals = np.array([(a, a + d) for a, d, _ in frames]).reshape(-1, 2)
    features = np.array([[x] for *_, x in frames], dtype=np.float32).reshape(-1, 1)
    targets = np.array([(a, a + d) for a, d in words]).reshape(-1, 2)
    expected = by_definition(features, intervals, targets)
    np.testing.assert_allclose(interval_means(features, intervals, targets)[0], expected, rtol=1e-9, atol=1e-9)


def test_one_enormous_frame_spoils_no_other_word() -> None:
    features = np.full((100, 1), 0.125, dtype=np.float32)
    features[3] = 1e30
    edges = np.arange(101) * 0.1
    intervals = np.stack([edges[:-1], edges[1:]], axis=1)
    for stop in (0.4, 0.1):  # the second time that one frame is out of order
        intervals[3, 1] = stop
        means, _ = interval_means(features, intervals, np.array([[5.0, 6.0], [9.0, 10.0]]))
        np.testing.assert_array_equal(means, 0.125)


def test_one_stop_out_of_order_costs_little() -> None:
    n, m = 100_000, 20_000
    starts, words = np.arange(n) * 0.01, np.arange(m) * 0.05
    intervals, targets = np.stack([starts, starts + 0.01], 1), np.stack([words, words + 0.05], 1)
    intervals[0, 1] = 1e9  # one frame that never ends overlaps every word
    features = np.ones((n, 2), dtype=np.float32)
    begin = time.process_time()
    means, counts = interval_means(features, intervals, targets)
    assert time.process_time() - begin < 3  # 20,000 looks at 100,000 frames take ten times as long
    np.testing.assert_array_equal(means, 1)
    np.testing.assert_array_equal(counts, np.where(words == 0, 5, 6))


def test_touching_frames_do_not_overlap() -> None:
    intervals = np.array([[0, 1], [1, 2], [2, 3.0]])
    assert overlapping(intervals, 1, 2).tolist() == [1]
    assert overlapping(intervals, 0.5, 2.5).tolist() == [0, 1, 2]
    assert overlapping(intervals, 5, 6).tolist() == []
    assert overlapping(np.zeros((0, 2)), 5, 6).tolist() == []
    features = np.array([[1], [10], [100.0]])
    for rounding in (0, 1e-7, -1e-7):  # time stamps of other files are rounded otherwise
        targets = np.array([[1 + rounding, 2 - rounding], [1 - rounding, 2 + rounding]])
        np.testing.assert_array_equal(interval_means(features, intervals, targets)[0], [[10], [10]])


def test_a_stream_with_a_frame_for_each_segment_gives_that_frame_alone() -> None:
    # Opinion segments of CMU-MOSI overlap their neighbours.
    intervals = np.array([[75.2, 83.7], [83.45, 87.9]])
    assert overlapping(intervals, 83.45, 87.9).tolist() == [1]
    assert overlapping(intervals, 75.2, 83.7).tolist() == [0]


def test_words_without_partner_share_the_gap() -> None:
    times = np.array([[1, 2], [2, 3], [6, 7.0]])
    found, missing = word_times(["A", "b", "x", "y", "c"], ["a", "B", "c"], times, (0, 10))
    assert missing == 2
    np.testing.assert_allclose(found, [[1, 2], [2, 3], [3, 4.5], [4.5, 6], [6, 7]])
    found, missing = word_times(["q"], [], np.zeros((0, 2)), (4, 5))
    np.testing.assert_allclose(found, [[4, 5]])


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
def test_as_many_words_as_can_be_are_paired_in_order(one: list[str], other: list[str]) -> None:
    first, second = common_subsequence(one, other)
    assert [one[k] for k in first] == [other[k] for k in second]
    assert (np.diff(first) > 0).all()
    assert (np.diff(second) > 0).all()

    @functools.cache
    def longest(i: int, j: int) -> int:  # by its definition
        if min(i, j) == 0:
            return 0
        return max(longest(i - 1, j), longest(i, j - 1), longest(i - 1, j - 1) + (one[i - 1] == other[j - 1]))

    assert len(first) == longest(len(one), len(other))


def test_pairing_words_takes_bounded_time() -> None:
    words = ["a", "b"] * 1500  # all of them fit nearly all others
    first, _ = common_subsequence(words, ["b", "b", "a"] * 1000)
    assert len(first) == 2499  # b, b, a from b, a, b, a and b, a from b, a, half and half, but for the first a


@pytest.mark.parametrize(
    ("one", "other", "pairs"),
    [
        ("he was", "he wasn't he was", [(0, 2), (1, 3)]),
        ("it get it gets", "it gets", [(2, 0), (3, 1)]),
        ("a b c d", "a b x b c y d", [(0, 0), (1, 3), (2, 4), (3, 6)]),
    ],
)
def test_words_that_are_said_again_are_paired_next_to_what_follows(
    one: str, other: str, pairs: list[tuple[int, int]]
) -> None:
    assert np.stack(common_subsequence(one.split(), other.split()), axis=1).tolist() == [list(pair) for pair in pairs]


def test_a_frame_belongs_to_the_word_in_which_its_middle_falls() -> None:
    words = np.array([[0.0, 1.0], [1.0, 1.5], [2.0, 3.0]])
    frames = np.array(
        [[-1.0, 0.0], [0.0, 0.4], [0.8, 1.1], [0.9, 1.3], [1.25, 1.75], [1.9, 2.1], [2.8, 3.1], [2.9, 3.2]]
    )
    found = words_of_frames(frames, words)
    assert found.dtype == np.int32
    assert found.tolist() == [-1, 0, 0, 1, -1, 2, 2, -1]  # a word begins with its start and ends before its stop
    assert words_of_frames(frames, words[:0]).tolist() == [-1] * 8
    assert words_of_frames(frames[:0], words).tolist() == []


def test_frames_of_words_that_overlap_stay_in_order() -> None:
    """The last word that has begun has the frame: also after a word within a word."""
    words = np.array([[0.0, 9.0], [2.0, 3.0], [2.5, 2.5], [8.0, 10.0]])
    frames = np.stack([np.arange(11.0), np.arange(11.0) + 1], axis=1)
    assert words_of_frames(frames, words).tolist() == [0, 0, 2, 2, 2, 2, 2, 2, 3, 3, -1]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_words_of_frames_ascend_whatever_the_times(data: st.DataObject) -> None:
    times = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), max_size=12)
    frames, words = (
        np.array([[a, a + n] for a, n in sorted(data.draw(times))], dtype=float).reshape(-1, 2) for _ in range(2)
    )
    found = words_of_frames(frames, words)
    known = found[found >= 0]
    assert (np.diff(known) >= 0).all()
    assert (known < len(words)).all()


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        ("movie.", "movie"),
        ("\u201cDon\u2019t,", "DON'T"),
        ("(Wow!)", "wow"),
        ("STRASSE", "straße"),
        ("--", "--"),
        ("ﬁne", "fine"),
    ],
)
def test_words_match_whatever_their_punctuation_and_case(written: str, heard: str) -> None:
    found, missing = word_times([written, "x"], ["x", heard, "x"], np.array([[0, 1], [2, 3], [3, 4.0]]), (0, 9))
    assert missing == 0
    np.testing.assert_array_equal(found, [[2, 3], [3, 4]])


@pytest.mark.parametrize(("written", "heard"), [("--", "..."), ("it", "is"), ("क", "का"), ("3.5", "3.6")])
def test_other_words_do_not_match(written: str, heard: str) -> None:
    assert word_times([written], [heard], np.array([[0, 1.0]]), (0, 9))[1] == 1
