"""The glottal flow by inverse filtering, and what its pulses and spectrum measure.

Iterative adaptive inverse filtering (IAIF): P. Alku (1992), Glottal wave analysis with pitch synchronous iterative
adaptive inverse filtering. Speech Communication 11, 109-118. Orders are COVAREP's.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter

from cmsbert_fast.extract.voice.pitch import FLOOR

_WINDOW = 0.04  # seconds
_LEAK = 0.99
_FFT = 2048
_PARABOLA = 0.01  # mean squared error, relative to the variance of the spectrum, up to which the parabola grows


class Glottal(NamedTuple):
    """Measures of n voiced frames, float64 (n,) each.

    Attributes:
        naq: Normalised amplitude quotient (Alku, Backstrom and Vilkman 2002): low where the voice is pressed.
        qoq: Quasi-open quotient: the part of a period in which the flow is above half of its pulse.
        h1_h2: Level of the first harmonic of the flow's derivative above the second, dB.
        psp: Parabolic spectral parameter (Alku, Strik and Vilkman 1997): the fall of the flow's spectrum. It is high
            for breathy voices; pressed and modal ones it does not tell apart, because the estimated flow ripples.
    """

    naq: np.ndarray
    qoq: np.ndarray
    h1_h2: np.ndarray
    psp: np.ndarray


def measure(signal: np.ndarray, centres: np.ndarray, f0: np.ndarray, rate: int) -> Glottal:
    """Measures the voice around each centre.

    Args:
        signal: float64 (samples,).
        centres: Samples, int64 (n,).
        f0: Fundamental frequency at each centre, hertz, above 0.
        rate: Samples a second.
    """
    if not len(centres):
        return Glottal(*np.zeros((4, 0)))
    flow, derivative = inverse_filter(signal, centres, rate)
    naq, qoq, psp = np.zeros((3, len(centres)))
    for k, frequency in enumerate(f0):
        naq[k], qoq[k], psp[k] = _pulse(flow[k], derivative[k], rate / frequency)
    return Glottal(naq, qoq, _harmonics(derivative, f0, rate), psp)


def inverse_filter(signal: np.ndarray, centres: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Glottal flow and its derivative around each centre, (n, window) each, by IAIF."""
    tract, glottis = 2 * round(rate / 2000) + 4, 2 * round(rate / 4000)
    length = round(_WINDOW * rate)
    before = tract  # real samples before the window: filters start without a transient
    whole = before + length
    padded = np.concatenate([np.zeros(whole), signal, np.zeros(whole)])
    frames = padded[(centres - length // 2 - before + whole)[:, None] + np.arange(whole)]
    frames = frames - frames.mean(axis=1, keepdims=True)
    lean = _fir(_predictor(frames[:, before:], 1), frames)  # without the glottis' share, roughly
    first = _integrated(_fir(_predictor(lean[:, before:], tract), frames))
    pulses = _predictor(first[:, before:], glottis)
    voice = _integrated(_fir(pulses, frames))
    derivative = _fir(_predictor(voice[:, before:], tract), frames)[:, before:]
    return _integrated(derivative), derivative


def _predictor(frames: np.ndarray, order: int) -> np.ndarray:
    """Coefficients of linear prediction by the autocorrelation method, (n, order + 1), the first 1 (Levinson)."""
    windowed = frames * np.hanning(frames.shape[1])
    size = 1 << int(np.ceil(np.log2(frames.shape[1] + order + 1)))
    r = np.fft.irfft(np.abs(np.fft.rfft(windowed, size)) ** 2, size)[:, : order + 1]
    r[:, 0] = r[:, 0] * (1 + 1e-9) + 1e-12
    a = np.zeros((len(frames), order + 1))
    a[:, 0], error = 1.0, r[:, 0].copy()
    for k in range(1, order + 1):
        reflection = -(a[:, :k] * r[:, k:0:-1]).sum(axis=1) / error
        a[:, 1 : k + 1] += reflection[:, None] * a[:, k - 1 :: -1][:, :k]
        error = np.maximum(error * (1 - reflection**2), 1e-15)
    return a


def _fir(coefficients: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Each frame through its own filter, (n, samples)."""
    out = coefficients[:, :1] * frames
    for k in range(1, coefficients.shape[1]):
        out[:, k:] += coefficients[:, k : k + 1] * frames[:, :-k]
    return out


def _integrated(frames: np.ndarray) -> np.ndarray:
    return lfilter([1.0], [1.0, -_LEAK], frames, axis=1)


def _pulse(flow: np.ndarray, derivative: np.ndarray, period: float) -> tuple[float, float, float]:
    """NAQ, QOQ and PSP of the period around the middle: from one closure of the glottis to the next."""
    length = round(period)
    middle = len(flow) // 2
    begin = max(middle - length, 0)
    closure = begin + int(derivative[begin : begin + length].argmin())
    piece, slope = flow[closure : closure + length + 1], derivative[closure : closure + length + 1]
    if len(piece) < length // 2:
        return 0.0, 0.0, 0.0
    line = np.linspace(piece[0], piece[-1], len(piece))
    piece = piece - line  # the leaky integral drifts within a period
    low, high = piece.min(), piece.max()
    steepest = -min(slope.min(), derivative[closure])
    if steepest <= 0 or high <= low:
        return 0.0, 0.0, 0.0
    naq = (high - low) / (steepest * len(piece))
    qoq = float((piece > (low + high) / 2).sum() / len(piece))
    return float(naq), qoq, _parabola(piece - np.quantile(piece, 0.1)) / _rectangle(len(piece))


def _parabola(pulse: np.ndarray) -> float:
    """The quadratic coefficient of the parabola that fits the low end of a pulse's spectrum, dB per bin squared."""
    spectrum = np.abs(np.fft.rfft(pulse, _FFT))
    level = 20 * np.log10(np.maximum(spectrum, 1e-12))
    level = level - level.max()
    y = level[: 10 * _FFT // len(pulse)]
    k2 = np.arange(len(y), dtype=float) ** 2
    counts = np.arange(1, len(y) + 1)
    # Sums over the first bins, for parabolas of every range at once.
    square = np.cumsum(k2**2) - np.cumsum(k2) ** 2 / counts
    product = np.cumsum(k2 * y) - np.cumsum(k2) * np.cumsum(y) / counts
    variance = np.maximum(np.cumsum(y**2) - np.cumsum(y) ** 2 / counts, 1e-9)
    slopes = product[2:] / square[2:]
    fits = 1 - slopes * product[2:] / variance[2:] <= _PARABOLA
    wrong = np.flatnonzero(~fits[1:])
    return float(slopes[wrong[0] if len(wrong) else -1])


@functools.cache
def _rectangle(length: int) -> float:
    """`_parabola` of a constant flow: the steepest that a period of this length can have."""
    return min(_parabola(np.ones(length)), -1e-9)


def _harmonics(derivative: np.ndarray, f0: np.ndarray, rate: int) -> np.ndarray:
    """H1 - H2 in dB: the highest levels within a quarter of the fundamental around it and its double."""
    window = np.hanning(derivative.shape[1])
    size = 2 * _FFT
    level = 20 * np.log10(np.abs(np.fft.rfft(derivative * window, size)) + 1e-12)
    hertz = np.fft.rfftfreq(size, 1 / rate)
    near = [np.where(np.abs(hertz - n * f0[:, None]) < 0.25 * f0[:, None], level, -np.inf).max(axis=1) for n in (1, 2)]
    return near[0] - near[1]


assert 2 / FLOOR < _WINDOW  # every frame holds the period around its middle
