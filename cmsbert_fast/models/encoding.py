"""An example as numbers: word pieces, standardised frames, and which frames belong to which piece and word."""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cmsbert_fast.data.example import MODALITIES, Alignment, Example, FrameWords, Label


class FrameLevel(enum.Enum):
    """The frames of an utterance that a system reads."""

    UTTERANCE = "utterance"  # all
    PIECES = "pieces"  # at most one a word piece: ``token_frames`` says which
    WORDS = "words"  # one a word, the mean of its frames and 0 where it has none; none for an utterance without frames
    OF_WORDS = "of words"  # any number a word: ``word_frames`` says how many


class Pieces(NamedTuple):
    """The word pieces of an utterance, without [CLS] and [SEP].

    Attributes:
        ids: Those that are kept.
        words: The word of each.
        total: How many there were before the text was cut.
        room: How many there may be.
    """

    ids: list[int]
    words: list[int]
    total: int
    room: int

    @property
    def word_count(self) -> int:
        """How many words are kept, W."""
        return self.words[-1] + 1 if self.words else 0


def tokenize(tokenizer: Any, words: Sequence[str], max_length: int) -> Pieces:
    """The word pieces of an utterance, cut at a word boundary to ``max_length``, [CLS] and [SEP] included.

    A first word that is longer alone is cut too: its beginning stays.
    """
    room = max_length - 2
    if not words:
        return Pieces([], [], 0, room)
    encoding = tokenizer(list(words), is_split_into_words=True, add_special_tokens=False)
    pieces, of_words = encoding["input_ids"], encoding.word_ids()
    total = len(pieces)
    if total > room:
        cut = of_words.index(of_words[room]) or room
        pieces, of_words = pieces[:cut], of_words[:cut]
    return Pieces(pieces, of_words, total, room)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example, ready for collation.

    Attributes:
        id: Id of the example.
        input_ids: Word pieces, [CLS] and [SEP] included.
        visual, acoustic: Standardised frames, float32 (N_m, d_m).
        label: Label of the example.
        words: Its words, without those that were cut.
        token_words: The word of each word piece, int64 (N,), -1 for [CLS] and [SEP].
        token_frames: By modality, the frame of each word piece, int64 (N,), -1 = none; None where a piece may have
            several or they are not known.
        word_frames: By modality, how many frames each word has, int64 (W,), in order and nothing between; None unless
            the level is OF_WORDS.
    """

    id: str
    input_ids: list[int]
    visual: np.ndarray
    acoustic: np.ndarray
    label: Label | None
    words: tuple[str, ...]
    token_words: np.ndarray
    token_frames: Mapping[str, np.ndarray] | None
    word_frames: Mapping[str, np.ndarray] | None


class _Frames(NamedTuple):
    """The frames of one modality at some level, and the frame of each piece (without [CLS] and [SEP])."""

    values: np.ndarray
    of_pieces: np.ndarray | None = None
    counts: np.ndarray | None = None


def encode(
    example: Example,
    pieces: Pieces,
    standardise: Callable[[str, np.ndarray], np.ndarray],
    special: tuple[int, int],
    level: FrameLevel,
    repeat: bool,
) -> Encoded:
    """Puts an example together.

    Args:
        example: The example.
        pieces: Its word pieces.
        standardise: Standardises the frames of a modality.
        special: Ids of [CLS] and [SEP].
        level: Which frames are needed.
        repeat: Whether an utterance's only frame belongs to each of its words.

    Raises:
        ValueError: The level needs frames of words, and the example does not tell them.
    """
    found = {}
    for name in MODALITIES:
        frames, known = standardise(name, getattr(example, name)), _known(example, name, pieces, repeat)
        found[name] = (
            _whole(frames, known) if level is FrameLevel.UTTERANCE else _of_words(frames, known, pieces, level)
        )
    of_pieces = {name: _between(own.of_pieces) for name, own in found.items() if own.of_pieces is not None}
    counts = {name: own.counts for name, own in found.items() if own.counts is not None}
    return Encoded(
        example.id,
        [special[0], *pieces.ids, special[1]],
        found["visual"].values,
        found["acoustic"].values,
        example.label,
        example.words[: pieces.word_count],
        _between(np.array(pieces.words, dtype=np.int64)),
        of_pieces if len(of_pieces) == len(found) else None,
        counts if len(counts) == len(found) else None,
    )


def fits(frames: int, pieces: Pieces) -> bool:
    """Whether so many frames, one a word piece, can belong to these pieces.

    A source may have cut a long text, but not before the cut made here.
    """
    return frames == pieces.total or pieces.room <= frames < pieces.total


def frame_words(
    given: Mapping[str, Sequence[np.ndarray] | None],
    frames: Mapping[str, Sequence[np.ndarray]],
    utterances: Sequence[Sequence[str]],
) -> list[FrameWords]:
    """``Example.frame_words`` of some utterances, as a user gives them.

    Args:
        given: By modality, the word of each frame, an integer array an utterance; None for one without frames.
        frames: By modality, the frames of each utterance.
        utterances: The words of each.

    Raises:
        ValueError: They do not fit together; the message says what to give.
    """
    found: dict[str, list[np.ndarray]] = {}
    for name, arrays in frames.items():
        values = given[name]
        if values is None and any(map(len, arrays)):
            raise ValueError(f"{name} has frames; give {name}_words, the word of each.")
        own = [np.asarray(one) for one in values] if values is not None else [np.zeros(0, np.int32)] * len(arrays)
        if len(own) != len(arrays):
            raise ValueError(f"{name}_words has {len(own)} utterances but words has {len(arrays)}; give one each.")
        for one, rows, words in zip(own, arrays, utterances, strict=True):
            if one.shape != (len(rows),) or not np.issubdtype(one.dtype, np.integer):
                raise ValueError(
                    f"{name}_words is {one.dtype} of shape {one.shape} for {len(rows)} frames; give an integer each."
                )
            inside = one[one >= 0]
            if (np.diff(inside) < 0).any() or (inside >= len(words)).any():
                raise ValueError(
                    f"{name}_words must ascend from 0 and stay below the number of words, {len(words)}; -1 is for "
                    "frames between words."
                )
        found[name] = [one.astype(np.int32) for one in own]
    return [FrameWords(v, a) for v, a in zip(found["visual"], found["acoustic"], strict=True)]


class _Known(NamedTuple):
    """Which frames are kept (a slice or indices), the word of each, and the frame of each piece if it is one."""

    kept: slice | np.ndarray
    words: np.ndarray
    of_pieces: np.ndarray | None


def _known(example: Example, name: str, pieces: Pieces, repeat: bool) -> _Known | str:
    """Which frames belong to the words that are kept; the id of the example where it is not known."""
    count, words = len(getattr(example, name)), pieces.word_count
    of_words = np.array(pieces.words, dtype=np.int64)
    if not count or (example.alignment is Alignment.PIECES and not fits(count, pieces)):
        return _Known(slice(0), np.zeros(0, dtype=np.int64), np.full(len(of_words), -1))
    if example.alignment is Alignment.WORDS:
        return _Known(slice(words), np.arange(words), of_words)
    if example.alignment is Alignment.PIECES:
        return _Known(slice(len(of_words)), of_words, np.arange(len(of_words)))
    if example.frame_words is not None:
        own = getattr(example.frame_words, name)
        kept = np.flatnonzero((own >= 0) & (own < words))
        return _Known(kept, own[kept].astype(np.int64), None)
    if repeat and count == 1:
        return _Known(np.zeros(words, dtype=np.int64), np.arange(words), of_words)
    return example.id


def _whole(frames: np.ndarray, known: _Known | str) -> _Frames:
    """All frames; those with no clock of their own are cut with the text."""
    if isinstance(known, str) or known.of_pieces is None or not isinstance(known.kept, slice):
        return _Frames(frames)
    if not len(known.words):  # none is to be cut: there are none, they do not fit the pieces, or there is no piece
        return _Frames(frames, None if len(frames) else known.of_pieces)
    return _Frames(frames[known.kept], known.of_pieces)


def _of_words(frames: np.ndarray, known: _Known | str, pieces: Pieces, level: FrameLevel) -> _Frames:
    """The frames that belong to words."""
    words = pieces.word_count
    if isinstance(known, str):
        raise ValueError(f"The frames of {known!r} do not belong to words; align them, or use another system.")
    counts = np.bincount(known.words, minlength=words)
    if level is FrameLevel.OF_WORDS:
        return _Frames(np.ascontiguousarray(frames[known.kept]), counts=counts)
    if level is FrameLevel.PIECES and known.of_pieces is not None:
        return _Frames(frames[known.kept], known.of_pieces)
    if not len(frames[known.kept]):
        return _Frames(frames[:0], np.full(len(pieces.words), -1))
    means = _means(frames[known.kept], counts)
    if level is FrameLevel.WORDS:
        return _Frames(means)
    of_pieces = np.array(pieces.words, dtype=np.int64)
    return _Frames(means, np.where(counts[of_pieces] > 0, of_pieces, -1))


def _means(frames: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of each word's frames, float32 (W, d); 0 for a word without frames. Sums in float64."""
    means = np.zeros((len(counts), frames.shape[1]))
    some = np.flatnonzero(counts)
    if len(some):
        starts = (np.cumsum(counts) - counts)[some]
        means[some] = np.add.reduceat(frames.astype(np.float64), starts, axis=0) / counts[some, None]
    return means.astype(np.float32)


def _between(rows: np.ndarray) -> np.ndarray:
    """Of the pieces of an utterance, with -1 for [CLS] and [SEP]."""
    return np.pad(rows.astype(np.int64), 1, constant_values=-1)
