"""Transcripts, pronunciations and segments: all that needs no sound."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cmsbert_fast.data import DataError
from cmsbert_fast.extract.media.process import RATE
from cmsbert_fast.extract.media.sound import Sound
from cmsbert_fast.extract.video import Account, _judge
from cmsbert_fast.extract.words import timing
from cmsbert_fast.extract.words.align import Times
from cmsbert_fast.extract.words.pronunciation import number_words, pronounce
from cmsbert_fast.extract.words.recognise import check_model, pieces
from cmsbert_fast.extract.words.segments import Word, cut
from cmsbert_fast.extract.words.timing import placed, untimed
from cmsbert_fast.extract.words.transcript import Cue, find_transcript, read_transcript

SRT = """1
00:00:01,500 --> 00:00:03,000
<i>Well,</i> that was
{\\an8}really good.

2
01:00:00,000 --> 01:00:02,250
Tom &amp; Jerry
"""
VTT = """WEBVTT - made by hand

NOTE nothing to see

cue-1
00:01.500 --> 00:03.000 align:start
<v Ann>Well, that was
really good.

01:00:00.000 --> 01:00:02.250
Tom &amp; Jerry
"""
WANTED = (Cue("Well, that was really good.", (1.5, 3.0)), Cue("Tom & Jerry", (3600.0, 3602.25)))


@pytest.mark.parametrize(("name", "text"), [("a.srt", SRT), ("a.vtt", VTT), ("b.srt", SRT.replace("\n", "\r\n"))])
def test_subtitles(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_transcript(tmp_path / name).cues == WANTED


def test_plain_text_is_one_cue_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("It was\tgood.\n\nNot 00:01 --> bad.\x07\n")
    assert read_transcript(tmp_path / "a.txt").cues == (Cue("It was good. Not 00:01 --> bad.?", None),)
    (tmp_path / "b.txt").write_text(" \n")
    assert read_transcript(tmp_path / "b.txt").cues == ()
    (tmp_path / "c.txt").write_text(SRT)
    with pytest.raises(DataError, match=r"Call c\.txt \.srt or \.vtt"):
        read_transcript(tmp_path / "c.txt")
    assert read_transcript(tmp_path / "a.txt").digest != read_transcript(tmp_path / "b.txt").digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfeh\0i\0", "UTF-8"),
        (b"1\n00:00:01 --> 00:00:02\nhi\n", "line 2"),
        (b"1\n00:00:03,000 --> 00:00:02,000\nhi\n", "before it starts"),
        (b"1\n00:00:01,000 --> 00:00:02,000\nhi\nyou\n\n2\n00:00:04 --> 00:00:05\nhi\n", "line 7"),
        (b"1\n00:00:01,000 --> 00:00:02,000\nhi\n2\n00:00:02,000 --> 00:00:05,000\nhi\n", "before line 5"),
    ],
)
def test_what_is_wrong_with_subtitles_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.srt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_transcript(tmp_path / "a.srt")


def test_the_transcript_of_a_video_is_found(tmp_path: Path) -> None:
    for name in ("a.txt", "b.vtt", "b.srt"):
        (tmp_path / name).write_text("x")
    assert find_transcript(tmp_path, "a") == tmp_path / "a.txt"
    assert find_transcript(tmp_path, "c") is None
    assert find_transcript(tmp_path / "b.srt", "other") == tmp_path / "b.srt"
    (tmp_path / "b.sbv").write_text("x")
    with pytest.raises(DataError, match=r"b\.sbv is none"):
        find_transcript(tmp_path / "b.sbv", "other")
    with pytest.raises(DataError, match=r"b\.srt, b\.vtt"):
        find_transcript(tmp_path, "b")


KNOWN = {"movie": "M UW V IY", "known": "N OW N", "well": "W EH L", "dog": "D AO G", "like": "L AY K"}


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("movie", "M UW V IY"),
        ("\u201cMovie,\u201d", "M UW V IY"),
        ("well-known", "W EH L N OW N"),
        ("dog\u2019s", "D AO G Z"),
        ("liked", "L AY K D"),
        ("DVD", "D IY V IY D IY"),
        ("zin", "Z IH N"),
        ("phake", "F EY K EH"),
        ("chish", "CH IH SH"),
        ("caf\u00e9", "K EY F"),
    ],
)
def test_pronunciations(word: str, phones: str) -> None:
    found = pronounce(word, KNOWN.get)
    assert found[0].split()[: len(phones.split())][:3] == phones.split()[:3]


@pytest.mark.parametrize("word", ["\u2014", "...", "\u4e2d\u6587", "!?"])
def test_what_cannot_be_pronounced(word: str) -> None:
    assert pronounce(word, KNOWN.get) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("0", ["zero"]),
        ("25", ["twenty five"]),
        ("100", ["one hundred"]),
        ("1,250", ["one thousand two hundred fifty"]),
        ("1995", ["one thousand nine hundred ninety five", "nineteen ninety five"]),
        ("3rd", ["third"]),
        ("20th", ["twentieth"]),
        ("2.5", ["two point five"]),
        ("3000000", ["three million"]),
        ("1" * 13, [" ".join(["one"] * 13)]),
    ],
)
def test_numbers_are_spelled_out(number: str, words: list[str]) -> None:
    assert number_words(number) == words


def spoken(*parts: str | float) -> list[Word]:
    """Words of a third of a second; a number is a pause."""
    words, at = [], 0.0
    for part in parts:
        if isinstance(part, float):
            at += part
            continue
        for text in part.split():
            words.append(Word(text, at, at + 0.3))
            at += 0.3
    return words


@pytest.mark.parametrize(
    ("parts", "texts"),
    [
        (("It is good. It is bad!",), ["It is good.", "It is bad!"]),
        (("It is", 0.5, "good"), ["It is good"]),
        (("It is", 0.7, "good"), ["It is", "good"]),
        (('He said "no." Then',), ['He said "no."', "Then"]),
        (("Mr. Smith and J. R. R. Tolkien met Dr. No. Fine",), ["Mr. Smith and J. R. R. Tolkien met Dr. No. Fine"]),
        (("e.g. this, approx. that... and more",), ["e.g. this, approx. that...", "and more"]),
        (("It cost 2.50 dollars. ok",), ["It cost 2.50 dollars. ok"]),
        (("\u597d\u3002 \u4e0d",), ["\u597d\u3002", "\u4e0d"]),
    ],
)
def test_segments_end_with_sentences_and_at_pauses(parts: tuple[str | float, ...], texts: list[str]) -> None:
    segments = cut(spoken(*parts))
    assert [segment.text for segment in segments] == texts
    assert [word for segment in segments for word in segment.words] == spoken(*parts)


def test_words_without_times_share_what_is_left() -> None:
    nan = float("nan")
    spans = np.array([[nan, nan], [1.0, 1.5], [nan, nan], [nan, nan], [2.5, 3.0], [nan, nan]])
    words = placed(list("abcdef"), spans, (0.0, 4.0))
    assert [(w.start, w.stop) for w in words] == [(0, 1), (1, 1.5), (1.5, 2), (2, 2.5), (2.5, 3), (3, 4)]
    assert placed([], np.zeros((0, 2))) == []
    early = placed(list("ab"), np.array([[nan, nan], [0.5, 0.9]]), (1.0, 2.0))
    assert [(w.start, w.stop) for w in early] == [(0.5, 0.5), (0.5, 0.9)]  # in order, though found before the bounds


class Deaf:
    """An aligner that finds the words of one cue and none of the other."""

    def within(self, samples: np.ndarray, words: Sequence[str]) -> Times:
        spans = np.full((len(words), 2), np.nan)
        if words[0] == "found":
            spans[:] = np.linspace(0.1, 1.2, len(words))[:, None] + [0.0, 0.05]
        return Times(spans, 0.001)

    def align(self, samples: np.ndarray, words: Sequence[str], progress: object) -> Times:
        return Times(np.array([[0.2, 0.4]] + [[np.nan, np.nan]] * (len(words) - 1)), 0.001)


def test_words_that_were_not_found_stay_within_their_own_cue() -> None:
    """What is searched for words reaches into the neighbours; no segment may."""
    sound = Sound(np.zeros(4 * RATE, np.int16), 0.0, 0, 0.0)
    cues = [Cue("never heard at all!", (0.0, 2.0)), Cue("found near here!", (2.0, 3.0))]
    found = timing.recognised(cues, sound, Deaf(), lambda seconds: None)
    assert [(s.start, s.stop) for s in found.segments] == [(0.0, 1.6), (1.6, pytest.approx(2.75))]
    far = timing.recognised([cues[0], Cue("found late!", (9.0, 9.5))], sound, Deaf(), lambda seconds: None)
    assert far.segments[0].stop == 2.0  # not 2.5, as far as it was searched
    assert (found.words, found.missing, found.left_out) == (7, 4, 0)


def test_words_that_are_in_no_segment_are_counted() -> None:
    sound = Sound(np.zeros(RATE, np.int16), 0.0, 0, 0.0)
    found = timing.timed([Cue("one two three", None)], sound, Deaf(), lambda seconds: None)
    assert [segment.text for segment in found.segments] == ["one"]
    assert (found.words, found.missing, found.left_out) == (3, 2, 2)
    account = Account()
    _judge(found, account)
    assert account.detail.startswith(
        "2 of 3 words were not found in the sound, and 2 of them, which have no time at all"
    )


def test_without_alignment_a_text_is_one_segment() -> None:
    found = untimed([Cue("It is good. Very.", None)], 7.5)
    assert [(s.text, s.start, s.stop, s.words) for s in found.segments] == [("It is good. Very.", 0.0, 7.5, ())]
    found = untimed(WANTED, 7.5)
    assert [(s.start, s.stop) for s in found.segments] == [(1.5, 3.0), (3600.0, 3602.25)]


def test_long_sounds_are_recognised_in_pieces_cut_where_it_is_quiet() -> None:
    samples = np.full(600 * RATE, 1000, dtype=np.int16)
    samples[225 * RATE : 225 * RATE + RATE // 2] = 0
    found = pieces(samples)
    assert found[0][0] == 0
    assert 225 * RATE <= found[0][1] <= 225.5 * RATE
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    assert found[-1][1] == len(samples)
    assert max(end - begin for begin, end in found) <= 270 * RATE
    assert pieces(samples[:0]) == []


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.bin"):
        check_model(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"one")
    one = check_model(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"two")
    assert check_model(tmp_path) != one
