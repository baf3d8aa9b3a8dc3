"""Segments of a video: cut at the ends of sentences, and at pauses."""

import re
from collections.abc import Sequence
from typing import NamedTuple

PAUSE = 0.6  # seconds between two words that end a segment
_CLOSING = "\"')]}»\u201d\u2019"
_ENDS = (".", "!", "?", "\u2026", "\u3002", "\uff01", "\uff1f")  # also Chinese
_SHORT = (
    "mr. mrs. ms. dr. prof. st. vs. etc. e.g. i.e. jr. sr. inc. ltd. no. vol. approx. dept. fig. gen. gov. sen. rep. "
    "rev. hon. u.s. u.k. a.m. p.m."
)
_ABBREVIATIONS = frozenset(_SHORT.split())
_INITIAL = re.compile(r"[A-Za-z]\.|([A-Za-z]\.){2,}")


class Word(NamedTuple):
    """A word as written; start and stop in seconds of the video."""

    text: str
    start: float
    stop: float


class Segment(NamedTuple):
    """A piece of a video: text, start and stop in seconds; ``words`` is empty where none has times."""

    text: str
    start: float
    stop: float
    words: tuple[Word, ...] = ()


def cut(words: Sequence[Word]) -> list[Segment]:
    """Segments of words with times, in order."""
    segments: list[Segment] = []
    begin = 0
    for k, word in enumerate(words):
        following = words[k + 1] if k + 1 < len(words) else None
        if following is None or following.start - word.stop > PAUSE or ends_sentence(word.text, following.text):
            segments.append(segment_of(words[begin : k + 1]))
            begin = k + 1
    return segments


def segment_of(words: Sequence[Word]) -> Segment:
    """The segment of these words."""
    stop = max(word.stop for word in words)
    return Segment(" ".join(word.text for word in words), words[0].start, stop, tuple(words))


def ends_sentence(word: str, following: str) -> bool:
    """Whether a sentence ends with a word, given the one after it."""
    bare = word.rstrip(_CLOSING)
    if not bare.endswith(_ENDS):
        return False
    if not bare.endswith(".") or bare.endswith(".."):
        return True
    if following[:1].islower():
        return False
    return bare.lower() not in _ABBREVIATIONS and not _INITIAL.fullmatch(bare)
