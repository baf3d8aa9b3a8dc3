"""When each word of a known text is spoken, by pocketsphinx.

The text is a grammar: its words in order, silence between any two. A window of the sound is searched with a grammar
that may end after any word; what lies before its last pause is kept, and the next window starts there. So memory does
not grow with the length of the sound, and time not with its square.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cmsbert_fast.extract.media.process import RATE
from cmsbert_fast.extract.words.pronunciation import pronounce

_FRAME = RATE // 100  # samples of a frame of pocketsphinx
_CENTRE = 0.003  # seconds from the start of a frame to where a boundary between words shows
_BEAMS = (1e-60, 1e-80, 1e-120)  # each tried where the one before loses the path
_WINDOW, _LAST = 30.0, 45.0  # seconds of a window; of the last one
_FASTEST = 7.0  # words a second
_PAUSE = 12  # frames of silence after which a window may be cut
_TAIL = 1.0  # seconds at a window's end where words are not trusted
_SILENT, _LEAD = 0.02, 0.3  # of the loudest: what is silence; seconds of it that are searched before a sound
_EXIT = 0.01  # probability of an end after any word


class Times(NamedTuple):
    """Where the words are.

    Attributes:
        spans: Start and stop of each word in seconds from the first sample; NaN where a word was not found, (n, 2).
        cost: Mean loss of a frame against the best sound at its time, in nepers; text that is not spoken costs much.
    """

    spans: np.ndarray
    cost: float


class Aligner:
    """Aligns words with sound. It is made once: it takes a third of a second and 60 MB."""

    def __init__(self) -> None:
        self._decoders: dict[float, Any] = {}
        self._known: dict[str, list[str]] = {}  # pronunciations of words as written
        self._names: dict[str, str] = {}

    def align(self, samples: np.ndarray, words: Sequence[str], progress: Callable[[float], None]) -> Times:
        """Aligns words with the whole of a sound.

        Args:
            samples: int16 at `RATE`.
            words: As written, punctuation included.
            progress: Is told the seconds done.
        """
        spans = np.full((len(words), 2), np.nan)
        spoken = [k for k, word in enumerate(words) if self._pronunciations(word)]
        loud = _loud(samples)
        at, done, losses = 0, 0, []
        while done < len(spoken):
            at = _next_loud(loud, at)
            if at >= len(samples):
                break
            last = len(samples) - at <= _LAST * RATE
            stop = len(samples) if last else at + int(_WINDOW * RATE)
            ahead = spoken[done : done + int((stop - at) / RATE * _FASTEST) + 10]
            found = self._window(samples[at:stop], [words[k] for k in ahead], last and len(ahead) == len(spoken) - done)
            kept, cut = _trusted(found, stop - at, last)
            for k, piece in zip(ahead, kept, strict=False):
                spans[k] = (at / RATE + piece.first / 100, at / RATE + (piece.last + 1) / 100)
                losses += [piece.loss]
            done += len(kept)
            at = stop if last else at + cut
            progress(at / RATE)
        spans = np.clip(spans + _CENTRE, 0.0, len(samples) / RATE)
        return Times(spans, float(np.median(losses)) if losses else math.nan)

    def within(self, samples: np.ndarray, words: Sequence[str]) -> Times:
        """Aligns words with a short sound that holds them all, such as that of a subtitle."""
        spans = np.full((len(words), 2), np.nan)
        spoken = [k for k, word in enumerate(words) if self._pronunciations(word)]
        found = self._window(samples, [words[k] for k in spoken], whole=True) if spoken else []
        pieces = [piece for piece in found if piece.word]
        if len(pieces) == len(spoken):
            for k, piece in zip(spoken, pieces, strict=True):
                spans[k] = (piece.first / 100, (piece.last + 1) / 100)
        losses = [piece.loss for piece in pieces]
        spans = np.clip(spans + _CENTRE, 0.0, len(samples) / RATE)
        return Times(spans, float(np.median(losses)) if losses else math.nan)

    def _pronunciations(self, word: str) -> list[str]:
        if word not in self._known:
            self._known[word] = pronounce(word, self._decoder(_BEAMS[0]).lookup_word)
        return self._known[word]

    def _decoder(self, beam: float) -> Any:
        if beam not in self._decoders:
            from pocketsphinx import Decoder

            self._decoders[beam] = Decoder(
                lm=None, beam=beam, pbeam=beam, wbeam=beam, bestpath=False, loglevel="FATAL", samprate=RATE
            )
        return self._decoders[beam]

    def _window(self, samples: np.ndarray, words: Sequence[str], whole: bool) -> "list[_Piece]":
        """Words and silences of a window, in order; none where no beam finds a path.

        Args:
            whole: All words are in it; else it may end after any.
        """
        for beam in _BEAMS:
            found = self._search(self._decoder(beam), samples, words, whole)
            if found:
                return found
        return self._search(self._decoder(_BEAMS[-1]), samples, words, False) if whole else []

    def _search(self, decoder: Any, samples: np.ndarray, words: Sequence[str], whole: bool) -> "list[_Piece]":
        if not words or len(samples) < 10 * _FRAME:
            return []
        count = len(words)
        grammar: list[tuple[Any, ...]] = []
        for k, word in enumerate(words):
            grammar += [(k, k + 1, 1.0, self._entry(decoder, word))]
            grammar += [] if whole else [(k, count, _EXIT)]
        decoder.add_fsg("text", decoder.create_fsg("text", 0, count, grammar))
        decoder.activate_search("text")
        decoder.start_utt()
        decoder.process_raw(np.ascontiguousarray(samples, dtype="<i2").tobytes(), no_search=False, full_utt=True)
        decoder.end_utt()
        if decoder.hyp() is None:
            return []
        return [_Piece.of(segment) for segment in decoder.seg() if segment.word != "(NULL)"]

    def _entry(self, decoder: Any, word: str) -> str:
        """The decoder's own name of a word, under which it knows the pronunciations."""
        name = self._names.setdefault(word, f"__{len(self._names)}")  # no word of a text is written like that
        if decoder.lookup_word(name) is None:
            for k, phones in enumerate(self._pronunciations(word)):
                decoder.add_word(name if k == 0 else f"{name}({k + 1})", phones, False)
        return name


class _Piece(NamedTuple):
    """A word or, with ``word`` False, a silence; first and last frame, and its loss a frame."""

    word: bool
    first: int
    last: int
    loss: float

    @classmethod
    def of(cls, segment: Any) -> "_Piece":
        frames = segment.end_frame - segment.start_frame + 1
        loss = -math.log(max(segment.ascore, 1e-300)) / frames
        return cls(segment.word[0] not in "<[+", segment.start_frame, segment.end_frame, loss)


def _loud(samples: np.ndarray) -> np.ndarray:
    """Which frames are not silent, against the loudest of the sound."""
    count = len(samples) // _FRAME
    level = np.zeros(count, dtype=np.float32)
    for first in range(0, count, 10_000):
        part = np.asarray(samples[first * _FRAME : min(first + 10_000, count) * _FRAME], dtype=np.float32)
        level[first : first + 10_000] = np.sqrt((part.reshape(-1, _FRAME) ** 2).mean(axis=1))
    return level > max(_SILENT * float(np.quantile(level, 0.99)), 1.0) if count else np.zeros(0, dtype=bool)


def _next_loud(loud: np.ndarray, at: int) -> int:
    """Where to go on from a sample: shortly before the next frame that is not silent.

    In silence alone, the first words of a text would fit somehow.
    """
    frame = at // _FRAME
    ahead = np.flatnonzero(loud[frame:])
    if not len(ahead):
        return len(loud) * _FRAME + _FRAME
    return max(at, (frame + int(ahead[0]) - round(_LEAD * 100)) * _FRAME)


def _trusted(found: list[_Piece], length: int, last: bool) -> tuple[list[_Piece], int]:
    """The words of a window that are kept, and the sample at which the next window starts."""
    words = [piece for piece in found if piece.word]
    if last:
        return words, length
    limit = length // _FRAME - round(_TAIL * 100)
    pauses = [p for p in found if not p.word and p.last - p.first >= _PAUSE and (p.first + p.last) // 2 < limit]
    pauses = [p for p in pauses if words and p.first > words[0].first]
    if pauses:
        cut = (pauses[-1].first + pauses[-1].last) // 2
        return [word for word in words if word.last <= cut], cut * _FRAME
    kept = [word for word in words[:-1] if word.last < limit]
    return kept, kept[-1].last * _FRAME if kept else max(limit // 2, 1) * _FRAME
