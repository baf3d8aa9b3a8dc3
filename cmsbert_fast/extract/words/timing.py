"""From a transcript to segments with times: what is aligned, and what is done where nothing can be."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cmsbert_fast.data.text import words_of
from cmsbert_fast.extract.media.process import RATE
from cmsbert_fast.extract.media.sound import Sound
from cmsbert_fast.extract.words.align import Aligner
from cmsbert_fast.extract.words.segments import Segment, Word, cut
from cmsbert_fast.extract.words.transcript import Cue

DOUBTFUL = 0.0035  # mean loss of a frame, nepers: people's speech costs 0.001, at 5 dB of noise 0.003, other text 0.004
_AROUND, _AROUND_HEARD = 0.25, 0.5  # seconds that are searched on each side of a subtitle, of recognised text


@dataclass
class Timed:
    """The segments of a video.

    Attributes:
        segments: In order of time.
        words: How many words the transcript has.
        missing: Of these, how many were not found in the sound.
        cost: See `align.Times`; NaN where nothing was aligned.
        left_out: Of those not found, how many are in no segment.
    """

    segments: list[Segment]
    words: int = 0
    missing: int = 0
    cost: float = math.nan
    left_out: int = 0


def untimed(cues: Sequence[Cue], duration: float) -> Timed:
    """Segments without times of words: each cue is one; a plain text is one segment, as long as the video."""
    segments = [Segment(cue.text, *(cue.span or (0.0, duration))) for cue in cues]
    count = sum(len(words_of(cue.text)) for cue in cues)
    return Timed(segments, count)


def timed(cues: Sequence[Cue], sound: Sound, aligner: Aligner, progress: Callable[[float], None]) -> Timed:
    """Segments of a transcript whose words are aligned: subtitles stay as they are, text is cut (`segments.cut`)."""
    if all(cue.span is None for cue in cues):
        return _text(" ".join(cue.text for cue in cues), sound, aligner, progress)
    return _subtitles(cues, sound, aligner, progress, _AROUND)


def _text(text: str, sound: Sound, aligner: Aligner, progress: Callable[[float], None]) -> Timed:
    tokens = words_of(text)
    times = aligner.align(sound.samples, tokens, progress)
    known = np.flatnonzero(np.isfinite(times.spans[:, 0]))
    last = int(known[-1]) + 1 if len(known) else 0  # words after the last that was found have no time at all
    words = placed(tokens[:last], times.spans[:last] + sound.start)
    return Timed(cut(words), len(tokens), len(tokens) - len(known), times.cost, len(tokens) - last)


def _subtitles(
    cues: Sequence[Cue],
    sound: Sound,
    aligner: Aligner,
    progress: Callable[[float], None],
    around: float,
    beyond: float = 0.0,
) -> Timed:
    """One segment a cue.

    Args:
        around: Seconds on each side of a cue that are searched.
        beyond: Seconds on each side in which its words may be found; words that are not found stay within the cue.
    """
    segments, missing, left_out, count, costs = [], 0, 0, 0, []
    for cue in cues:
        start, stop = cue.span or (sound.start, sound.stop)
        tokens = words_of(cue.text)
        if not tokens:
            continue
        count += len(tokens)
        if stop + beyond <= start - beyond:
            missing, left_out = missing + len(tokens), left_out + len(tokens)
            continue
        first = max(round((start - around - sound.start) * RATE), 0)
        last = max(round((stop + around - sound.start) * RATE), first)
        times = aligner.within(sound.samples[first:last], tokens)
        spans = np.clip(times.spans + sound.start + first / RATE, max(start - beyond, 0.0), stop + beyond)
        missing += int(np.isnan(spans[:, 0]).sum())
        costs += [times.cost] if math.isfinite(times.cost) else []
        words = placed(tokens, spans, (start, stop))
        segments.append(Segment(cue.text, start, stop, tuple(words)))
        progress(stop - sound.start)
    return Timed(segments, count, missing, float(np.median(costs)) if costs else math.nan, left_out)


def recognised(cues: Sequence[Cue], sound: Sound, aligner: Aligner, progress: Callable[[float], None]) -> Timed:
    """Segments of recognised text: its words are aligned around the recogniser's own times, then cut like text."""
    words: list[Word] = []
    end = len(sound.samples) / RATE
    within = [Cue(c.text, c.span and (min(c.span[0], end), min(c.span[1], end))) for c in cues]
    whole = _subtitles(cues_on_clock(within, sound), sound, aligner, progress, _AROUND_HEARD, _AROUND_HEARD)
    for segment in whole.segments:
        words += segment.words
    return Timed(cut(_in_order(words)), whole.words, whole.missing, whole.cost, whole.left_out)


def _in_order(words: Sequence[Word]) -> list[Word]:
    """Words of cues whose bounds overlap: none lasts beyond the start of the next, so that no segment does."""
    found: list[Word] = []
    limit = math.inf
    for word in reversed(words):
        limit = min(word.start, limit)
        found.append(Word(word.text, limit, max(min(word.stop, found[-1].start if found else math.inf), limit)))
    return found[::-1]


def cues_on_clock(cues: Sequence[Cue], sound: Sound) -> list[Cue]:
    """Cues whose times start with the sound, on the clock of the file."""
    return [Cue(c.text, None if c.span is None else (c.span[0] + sound.start, c.span[1] + sound.start)) for c in cues]


def placed(tokens: Sequence[str], spans: np.ndarray, within: tuple[float, float] | None = None) -> list[Word]:
    """Words with times; those without share evenly what lies between their neighbours, or the bounds.

    Args:
        spans: Seconds (n, 2), NaN where unknown; in order.
        within: Bounds of the first and the last; without them, both are known.
    """
    if not len(tokens):
        return []
    known = np.isfinite(spans[:, 0])
    low = within[0] if within else float(np.nanmin(spans))
    high = within[1] if within else float(np.nanmax(spans))
    words, k = [], 0
    while k < len(tokens):
        if known[k]:
            words.append(Word(tokens[k], float(spans[k, 0]), float(spans[k, 1])))
            k += 1
            continue
        after = k
        while after < len(tokens) and not known[after]:
            after += 1
        end = float(spans[after, 0]) if after < len(tokens) else high
        begin = words[-1].stop if words else min(low, end)
        end = max(end, begin)
        edges = np.linspace(begin, end, after - k + 1)
        words += [Word(tokens[j], float(edges[j - k]), float(edges[j - k + 1])) for j in range(k, after)]
        k = after
    return words
