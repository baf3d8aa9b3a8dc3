"""All columns of the voice, computed block by block: memory does not grow with the length of the sound."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cmsbert_fast.extract.voice import glottal, spectrum
from cmsbert_fast.extract.voice.pitch import find_pitch

VERSION = 1  # of these numbers: counts up with every change of them
STEP = 0.01  # seconds from frame to frame
# Columns and their units. Where a frame is unvoiced, f0 and the glottal measures are 0.
UNITS = {
    "f0": "Hz, 0 where unvoiced",
    "voiced": "1 or 0",
    "periodicity": "normalised autocorrelation, 0 to 1",
    "intensity": "dB of full scale",
    "naq": "ratio",
    "qoq": "ratio of the period",
    "h1_h2": "dB",
    "psp": "ratio",
    "peak_slope": "log10 amplitude per octave",
    **{f"mcep_{k}": "nepers" for k in range(spectrum.CEPSTRUM)},
}
_BLOCK, _CONTEXT = 2000, 50  # frames that are computed together, and more on each side


class Block(NamedTuple):
    """Consecutive frames: times of their starts in seconds (n,), and values (n, columns), in the order of `UNITS`."""

    times: np.ndarray
    values: np.ndarray


def features(samples: np.ndarray, start: float, rate: int) -> Iterator[Block]:
    """The voice of a recording, `STEP` by `STEP`.

    Args:
        samples: int16 (samples,), mono.
        start: Time of the first sample, seconds.
        rate: Samples a second.
    """
    hop = round(STEP * rate)
    frames = len(samples) // hop
    loudest = _loudest(samples, hop)
    for first in range(0, frames, _BLOCK):
        last = min(first + _BLOCK, frames)
        before, after = max(first - _CONTEXT, 0), min(last + _CONTEXT, frames)
        signal = np.asarray(samples[before * hop : after * hop], dtype=np.float64) / 32768
        centres = np.arange(after - before) * hop + hop // 2
        values = _columns(signal, centres, rate, loudest)[first - before : last - before]
        yield Block(start + np.arange(first, last) * STEP, values)


def _loudest(samples: np.ndarray, hop: int) -> float:
    """The amplitude of the loud parts: a hundredth of the frames are louder. A single knock does not count."""
    frames = len(samples) // hop
    peaks = np.zeros(frames, dtype=np.float32)
    for first in range(0, frames, _BLOCK):
        part = np.asarray(samples[first * hop : min(first + _BLOCK, frames) * hop], dtype=np.float32)
        peaks[first : first + _BLOCK] = np.abs(part).reshape(-1, hop).max(axis=1) / 32768
    return float(np.quantile(peaks, 0.99)) if frames else 0.0


def _columns(signal: np.ndarray, centres: np.ndarray, rate: int, loudest: float) -> np.ndarray:
    pitch = find_pitch(signal, centres, rate, max(loudest, 1e-3))  # below that, it is silence
    voiced = pitch.f0 > 0
    voice = np.zeros((len(centres), 4))
    voice[voiced] = np.stack(glottal.measure(signal, centres[voiced], pitch.f0[voiced], rate), axis=1)
    plain = [pitch.f0, voiced, pitch.strength, spectrum.loudness(signal, centres, rate)]
    return np.column_stack(
        [
            *plain,
            voice,
            spectrum.peak_slope(signal, centres, rate),
            spectrum.mel_cepstrum(signal, centres, rate),
        ]
    )
