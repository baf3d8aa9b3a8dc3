"""Fundamental frequency by normalised autocorrelation, and the best path through its candidates (Boersma 1993).

P. Boersma (1993): Accurate short-term analysis of the fundamental frequency and the harmonics-to-noise ratio of a
sampled sound. Proceedings of the Institute of Phonetic Sciences 17, 97-110. Names and values are those of the paper.
"""

from typing import NamedTuple

import numpy as np

FLOOR, CEILING = 60.0, 500.0  # hertz
_WINDOW = 3 / FLOOR  # seconds: three of the longest periods
_CANDIDATES = 7
_VOICING, _SILENCE = 0.45, 0.03  # thresholds: of periodicity, and of loudness relative to the loudest
_OCTAVE, _JUMP, _CHANGE = 0.02, 0.35, 0.14  # costs: of an octave lower, per octave of a jump, of a change of voicing


class Pitch(NamedTuple):
    """What was found in n frames.

    Attributes:
        f0: Fundamental frequency in hertz, 0 where unvoiced, float64 (n,).
        strength: Height of the autocorrelation's peak at the chosen period, 0 to 1; where unvoiced that of the highest.
    """

    f0: np.ndarray
    strength: np.ndarray


def find_pitch(signal: np.ndarray, centres: np.ndarray, rate: int, loudest: float) -> Pitch:
    """The pitch around each centre.

    Args:
        signal: float64 (samples,); its ends are taken to be silent.
        centres: Samples, int64 (n,).
        rate: Samples a second.
        loudest: The amplitude of the loud parts of the whole recording.
    """
    if not len(centres):
        return Pitch(np.zeros(0), np.zeros(0))
    frequencies, strengths, peak = _candidates(cut(signal, centres, round(_WINDOW * rate)), rate)
    relative = np.minimum(peak / max(loudest, 1e-9), 1.0)
    unvoiced = _VOICING + np.maximum(0.0, 2 - relative * (1 + _VOICING) / _SILENCE)
    merits = strengths - _OCTAVE * np.log2(CEILING / np.maximum(frequencies, 1.0))
    merits = np.where(frequencies > 0, merits, -np.inf)
    path = _best_path(np.column_stack([unvoiced, merits]), np.column_stack([np.zeros(len(frequencies)), frequencies]))
    rows = np.arange(len(path))
    voiced = path > 0
    at = np.maximum(path - 1, 0)
    f0 = np.where(voiced, frequencies[rows, at], 0.0)
    strength = np.where(voiced, strengths[rows, at], strengths.max(axis=1))
    return Pitch(f0, np.clip(strength, 0.0, 1.0))


def cut(signal: np.ndarray, centres: np.ndarray, length: int) -> np.ndarray:
    """A frame of ``length`` samples around each centre, (n, length); beyond the ends is silence."""
    padded = np.concatenate([np.zeros(length), signal, np.zeros(length)])
    return padded[(centres - length // 2 + length)[:, None] + np.arange(length)]


def _candidates(frames: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The highest peaks of each frame's autocorrelation: hertz (0: none) and heights (n, c), and the amplitude."""
    length = frames.shape[1]
    frames = frames - frames.mean(axis=1, keepdims=True)
    peak = np.abs(frames).max(axis=1)
    window = np.hanning(length + 2)[1:-1]
    size = 1 << int(np.ceil(np.log2(1.5 * length)))
    shortest, longest = int(rate / CEILING), int(np.ceil(rate / FLOOR)) + 1
    power = np.abs(np.fft.rfft(frames * window, size)) ** 2
    correlation = np.fft.irfft(power, size)[:, : longest + 2]
    own = np.fft.irfft(np.abs(np.fft.rfft(window, size)) ** 2, size)[: longest + 2]
    correlation = correlation / np.maximum(correlation[:, :1], 1e-12) / (own / own[0])
    left, middle, right = (correlation[:, shortest - 1 + k : longest + k] for k in range(3))
    is_peak = (middle > left) & (middle >= right) & (middle > 0.5 * _VOICING)
    curve = left - 2 * middle + right
    shift = np.where(is_peak, 0.5 * (left - right) / np.where(is_peak, curve, 1.0), 0.0)
    height = np.where(is_peak, middle - 0.25 * (left - right) * shift, 0.0)
    lag = np.arange(shortest, shortest + middle.shape[1]) + shift
    score = np.where(is_peak, height - _OCTAVE * np.log2(lag * CEILING / rate), -1.0)
    order = np.argpartition(-score, _CANDIDATES, axis=1)[:, :_CANDIDATES]
    found = np.take_along_axis(is_peak, order, axis=1)
    hertz = np.where(found, rate / np.take_along_axis(lag, order, axis=1), 0.0)
    strength = np.take_along_axis(height, order, axis=1)
    strength = np.where(strength > 1, 1 / np.maximum(strength, 1e-9), strength)  # as in the paper, for short windows
    return hertz, strength, peak


def _best_path(merits: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """The candidate of each frame on the path of the highest sum (Viterbi); candidate 0 is unvoiced.

    Args:
        merits, frequencies: (n, c); the frequency 0 is unvoiced.
    """
    voiced = frequencies > 0
    octaves = np.log2(np.where(voiced, frequencies, 1.0))
    total, back = merits[0], np.zeros(merits.shape, dtype=np.int64)
    for k in range(1, len(merits)):
        jump = _JUMP * np.abs(octaves[k - 1][:, None] - octaves[k][None])
        both = voiced[k - 1][:, None] & voiced[k][None]
        cost = np.where(both, jump, np.where(voiced[k - 1][:, None] != voiced[k][None], _CHANGE, 0.0))
        sums = total[:, None] - cost
        back[k] = sums.argmax(axis=0)
        total = sums.max(axis=0) + merits[k]
    path = np.zeros(len(merits), dtype=np.int64)
    path[-1] = total.argmax()
    for k in range(len(merits) - 1, 0, -1):
        path[k - 1] = back[k][path[k]]
    return path
