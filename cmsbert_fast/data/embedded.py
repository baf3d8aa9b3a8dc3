"""The embedded corpus: utterances whose sentiment text alone does not tell, generated in memory.

Every utterance says something ambiguous about a film ("the acting was normal", "the plot is not bad"). Its sentiment
depends on what is seen and heard elsewhere in the utterance: a gaze that goes up or down, or a pitch that rises or
falls, for a few frames, never while an ambiguous word is spoken. Which of the two matters, and in which direction,
depends on the word (``REACTIONS``): an upward gaze makes "bad" mild praise and "nice" mockery; for "crazy" the pitch
matters. So the sentiment follows neither from text alone, nor from frames alone, nor from words fused with the frames
of their own time step, nor from a sum of what words and events mean by themselves; it takes words that meet the frames
of the whole utterance. Clear words ("great", "boring") add a part that text does tell.

Frames are noisy, differ between speakers, and hold distracting events without meaning. Labels are noisy too and, like
MOSI's, multiples of 0.2 in [-3, 3]. Each pair of a film's aspect and an ambiguous word ("acting", "normal") belongs to
one split only: the test split holds combinations that training never shows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from cmsbert_fast.data.example import Corpus, Example, FrameWords
from cmsbert_fast.data.report import ReadReport

if TYPE_CHECKING:
    from transformers import BertTokenizer

_T = TypeVar("_T")

SIZES = {"train": 2400, "valid": 300, "test": 500}

VISUAL_FEATURES = ("gaze_x", "gaze_y", "head_pitch", "head_yaw", "brow", "eyelid", "lip_corner", "jaw")
ACOUSTIC_FEATURES = ("pitch", "pitch_slope", "energy", "voicing", "spectral_tilt", "breathiness")


class Event(NamedTuple):
    """Something to see or hear in frames ``start`` to ``stop - 1`` of one modality ("visual" or "acoustic")."""

    modality: str
    name: str
    start: int
    stop: int


class Reaction(NamedTuple):
    """What an ambiguous word adds to the sentiment: ``base + swing * direction`` of the modality it listens to.

    ``direction`` is 1 for an upward gaze or a rising pitch, -1 for the opposite, 0 without such an event.
    """

    modality: str
    base: float
    swing: float


REACTIONS = {
    "normal": Reaction("visual", 0.0, 1.6),
    "bad": Reaction("visual", -0.6, 1.8),
    "okay": Reaction("visual", 0.0, 1.4),
    "different": Reaction("visual", 0.2, 2.0),
    "bold": Reaction("visual", 0.0, 1.2),
    "strange": Reaction("visual", -0.2, 1.6),
    "nice": Reaction("visual", 0.6, -1.8),
    "special": Reaction("visual", 0.0, -2.0),
    "crazy": Reaction("acoustic", 0.0, 1.8),
    "sick": Reaction("acoustic", -0.4, 2.0),
    "long": Reaction("acoustic", -0.2, 1.4),
    "unusual": Reaction("acoustic", 0.0, 1.6),
    "serious": Reaction("acoustic", 0.0, 1.2),
    "loud": Reaction("acoustic", -0.2, 1.6),
    "fine": Reaction("acoustic", 0.2, -1.6),
    "interesting": Reaction("acoustic", 0.4, -2.0),
    # Stands before one of the others and adds its own doubt or emphasis.
    "not": Reaction("visual", 0.0, 0.8),
}
CLEAR_WORDS = {"great": 1.2, "lovely": 1.2, "solid": 0.6, "awful": -1.2, "boring": -1.2, "weak": -0.6}

_ASPECTS = (
    "acting", "plot", "ending", "music", "script", "cast", "pacing", "story",
    "dialogue", "camera", "costume", "director", "sequel", "villain", "opening", "humor",
)  # fmt: skip
_ADJECTIVES = tuple(word for word in REACTIONS if word != "not")
_CLAUSES = (
    "the * is ?",
    "the * was really ?",
    "i found the * ?",
    "that * looked ? to me",
    "it has a ? *",
    "its * felt ?",
)
_OPENINGS = ("um", "well", "i think", "you know", "so", "and then", "to me", "")
_CONNECTORS = ("and", "but", "while", "also")
_TAILS = ("at all", "i guess", "for a film like this", "to be honest", "today", "in my view", "", "")

# The share of pairs (aspect, adjective) of each split, in eighths.
_SPLIT_OF_PAIR = ("valid", "test", "test", "train", "train", "train", "train", "train")

_EVENT_NAMES = {
    ("visual", 1): "gaze up",
    ("visual", -1): "gaze down",
    ("acoustic", 1): "rising pitch",
    ("acoustic", -1): "falling pitch",
}
# How an event changes the features, in units of the noise.
_PROFILES = {
    "gaze up": {"gaze_y": 4.0, "eyelid": 2.0, "brow": 1.0},
    "gaze down": {"gaze_y": -4.0, "eyelid": -2.0, "head_pitch": -1.0},
    "head turn": {"gaze_x": 2.5, "head_yaw": 2.5},
    "smile": {"lip_corner": 2.5, "jaw": 1.0},
    "rising pitch": {"pitch_slope": 4.0, "pitch": 2.0},
    "falling pitch": {"pitch_slope": -4.0, "pitch": -2.0},
    "breath": {"breathiness": 4.0, "voicing": -2.0, "energy": -1.0},
    "stress": {"energy": 4.0, "spectral_tilt": 2.0},
}
_DISTRACTORS = {"visual": ("head turn", "smile"), "acoustic": ("breath", "stress")}
_FEATURES = {"visual": VISUAL_FEATURES, "acoustic": ACOUSTIC_FEATURES}
# Frames per word of each modality, in tenths, lowest and highest of an utterance.
_RATES = {"visual": (6, 9), "acoustic": (12, 15)}
_SPEAKER_NOISE = 0.2
_LABEL_NOISE = 0.25


class Utterance(NamedTuple):
    """An example and what it was made from.

    ``pairs`` are the film's aspects with the ambiguous word said of each; ``directions`` holds the direction (1, -1 or
    0) of gaze ("visual") and pitch ("acoustic"); ``events`` says in which frames they are seen and heard, and the
    distractors with them.
    """

    example: Example
    pairs: tuple[tuple[str, str], ...]
    directions: dict[str, int]
    events: tuple[Event, ...]


def sentiment(words: Sequence[str], directions: dict[str, int]) -> float:
    """The sentiment an utterance has before label noise, rounding and clipping to [-3, 3]."""
    total = sum(CLEAR_WORDS.get(word, 0.0) for word in words)
    for word in words:
        if word in REACTIONS:
            reaction = REACTIONS[word]
            total += reaction.base + reaction.swing * directions[reaction.modality]
    return total


def frame_times(frames: int, words: int) -> np.ndarray:
    """The word during which each of ``frames`` evenly spread frames falls: int64 (frames,) in 0 .. words - 1."""
    return (2 * np.arange(frames) + 1) * words // (2 * frames)


def embedded_utterances(seed: int = 0) -> dict[str, list[Utterance]]:
    """The embedded corpus by split, with the events it was made from."""
    rng = np.random.default_rng(seed)
    return {split: [_utterance(rng, split, i) for i in range(size)] for split, size in SIZES.items()}


def embedded_corpus(seed: int = 0) -> Corpus:
    """The embedded corpus: 2400 / 300 / 500 utterances of 5 to 27 words, d_v = 8, d_a = 6, the same for the same seed.

    Only integers are drawn, then summed and multiplied, so that a seed gives the same bits on every platform.
    """
    splits = {split: [u.example for u in utterances] for split, utterances in embedded_utterances(seed).items()}
    report = ReadReport("embedded corpus", counts={split: len(examples) for split, examples in splits.items()})
    return Corpus("embedded", splits, len(VISUAL_FEATURES), len(ACOUSTIC_FEATURES), report)


def vocabulary() -> list[str]:
    """Every word of the embedded corpus, sorted."""
    phrases = (*_CLAUSES, *_OPENINGS, *_CONNECTORS, *_TAILS, *_ASPECTS, *REACTIONS, *CLEAR_WORDS)
    return sorted({word for phrase in phrases for word in phrase.split()} - {"*", "?"})


def embedded_tokenizer() -> "BertTokenizer":
    """A BERT tokenizer whose word pieces are the whole words of ``vocabulary()``; anything else is [UNK]."""
    from transformers import BertTokenizer  # slow to import; only the tokenizer needs it

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary()]
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=True)


def _utterance(rng: np.random.Generator, split: str, number: int) -> Utterance:
    words, pairs = _words(rng, split)
    events: list[Event] = []
    directions, frames = {}, {}
    for modality, (low, high) in _RATES.items():
        count = max(2, len(words) * int(rng.integers(low, high + 1)) // 10)
        directions[modality] = int(_pick(rng, (1, 1, 1, 1, -1, -1, -1, -1, 0)))
        own = _events(rng, modality, directions[modality], words, count)
        frames[modality] = _frames(rng, modality, count, own)
        events += own
    # In fifths, as the mean of five annotators is; integers, so that 0.6 is 0.6 wherever it comes from.
    noisy = sentiment(words, directions) + _LABEL_NOISE * float(_noise(rng, ()))
    label = max(-15, min(15, round(5 * noisy))) / 5
    both = frames["visual"], frames["acoustic"]
    spoken = FrameWords(*(frame_times(len(f), len(words)).astype(np.int32) for f in both))
    example = Example(f"{split}-{number:04d}", tuple(words), label, *both, frame_words=spoken)
    return Utterance(example, pairs, directions, tuple(events))


def _words(rng: np.random.Generator, split: str) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    clauses, pairs = [], []
    for _ in range(_pick(rng, (1, 1, 1, 2, 2))):
        aspect, adjective = _pair(rng, split)
        pairs.append((aspect, adjective))
        if REACTIONS[adjective].modality == "visual" and rng.integers(4) == 0:
            adjective = f"not {adjective}"
        clauses.append(_pick(rng, _CLAUSES).replace("*", aspect).replace("?", adjective))
    if rng.integers(2):
        clear = _pick(rng, tuple(CLEAR_WORDS))
        clause = _pick(rng, _CLAUSES).replace("*", _pick(rng, _ASPECTS)).replace("?", clear)
        clauses.insert(int(rng.integers(len(clauses) + 1)), clause)
    text = clauses[0]
    for clause in clauses[1:]:
        text += f" {_pick(rng, _CONNECTORS)} {clause}"
    words = f"{_pick(rng, _OPENINGS)} {text} {_pick(rng, _TAILS)}".split()
    return (words if len(words) >= 5 else ["well", *words]), tuple(pairs)


def _pair(rng: np.random.Generator, split: str) -> tuple[str, str]:
    while True:
        i, j = int(rng.integers(len(_ASPECTS))), int(rng.integers(len(_ADJECTIVES)))
        if _SPLIT_OF_PAIR[(i + j) % len(_SPLIT_OF_PAIR)] == split:
            return _ASPECTS[i], _ADJECTIVES[j]


def _events(rng: np.random.Generator, modality: str, direction: int, words: list[str], count: int) -> list[Event]:
    """The modality's telling event, if any, away from every ambiguous word, and up to two distractors anywhere."""
    events = []
    if direction:
        spoken = np.array([word in REACTIONS for word in words])[frame_times(count, len(words))]
        starts: list[int] = []
        length = int(rng.integers(3, 7)) + 1
        while not starts:  # a short utterance may have no room for a long event
            length -= 1
            starts = [j for j in range(count - length + 1) if not spoken[j : j + length].any()]
        start = _pick(rng, starts)
        events.append(Event(modality, _EVENT_NAMES[modality, direction], start, start + length))
    for _ in range(int(rng.integers(3))):
        length = min(count, int(rng.integers(2, 5)))
        start = int(rng.integers(count - length + 1))
        events.append(Event(modality, _pick(rng, _DISTRACTORS[modality]), start, start + length))
    return events


def _frames(rng: np.random.Generator, modality: str, count: int, events: list[Event]) -> np.ndarray:
    features = _FEATURES[modality]
    frames = _noise(rng, (count, len(features))) + _SPEAKER_NOISE * _noise(rng, (len(features),))
    for event in events:
        for feature, change in _PROFILES[event.name].items():
            frames[event.start : event.stop, features.index(feature)] += change
    return frames.astype(np.float32)


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Nearly normal with variance 1: the sum of four uniform integers (no logarithm, whose bits differ by platform)."""
    return (rng.integers(-32768, 32768, size=(*shape, 4)).sum(-1) + 2) * (3**0.5 / 65536)


def _pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    return choices[int(rng.integers(len(choices)))]
