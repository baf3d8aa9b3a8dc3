"""Loudness, mel-cepstrum and peak slope of a frame, voiced or not."""

import numpy as np
from scipy.signal import fftconvolve

from cmsbert_fast.extract.voice.pitch import cut

CEPSTRUM = 25  # coefficients 0 to 24
_WARP = 0.42  # of the frequency axis: close to the mel scale at 16 kHz (Fukada et al. 1992)
_WINDOW, _FFT = 0.025, 512  # seconds, points
_SILENT = 1e-10  # power below full scale that is heard as silence: -100 dB
_SCALES = 7  # wavelets, an octave apart


def _frames(signal: np.ndarray, centres: np.ndarray, rate: int) -> np.ndarray:
    return cut(signal, centres, round(_WINDOW * rate))


def loudness(signal: np.ndarray, centres: np.ndarray, rate: int) -> np.ndarray:
    """Mean power around each centre in dB below full scale, (n,)."""
    return 10 * np.log10((_frames(signal, centres, rate) ** 2).mean(axis=1) + _SILENT)


def mel_cepstrum(signal: np.ndarray, centres: np.ndarray, rate: int) -> np.ndarray:
    """Cepstrum of the log spectrum on a warped frequency axis, (n, CEPSTRUM), nepers; the first is the mean level.

    The warp is that of mel-cepstral analysis (Imai 1983); the fit is direct, not iterated.
    """
    window = np.hanning(round(_WINDOW * rate))
    power = np.abs(np.fft.rfft(_frames(signal, centres, rate) * window, _FFT)) ** 2 / (window**2).sum()
    level = 0.5 * np.log(power + _SILENT)
    bins = _FFT // 2
    warped = np.linspace(0, np.pi, bins + 1)
    plain = warped - 2 * np.arctan2(_WARP * np.sin(warped), 1 + _WARP * np.cos(warped))  # the inverse of the all-pass
    at = np.clip(plain / np.pi * bins, 0, bins)
    low = np.minimum(at.astype(int), bins - 1)
    level = level[:, low] * (1 - (at - low)) + level[:, low + 1] * (at - low)
    return np.fft.irfft(level, _FFT, axis=1)[:, :CEPSTRUM] * np.where(np.arange(CEPSTRUM) > 0, 2.0, 1.0)


def peak_slope(signal: np.ndarray, centres: np.ndarray, rate: int) -> np.ndarray:
    """Slope of the wavelet maxima over octaves, log10 per octave, (n,): the steeper, the breathier.

    J. Kane and C. Gobl (2011): Identifying regions of non-modal phonation using features of the wavelet transform.
    """
    highest = np.zeros((len(centres), _SCALES))
    for k in range(_SCALES):
        scale = 2**k / rate
        time = np.arange(-round(4 * scale * rate), round(4 * scale * rate) + 1) / rate / scale
        wavelet = -np.cos(np.pi * time) * np.exp(-(time**2) / 2) / 2 ** (k / 2)
        part = np.abs(fftconvolve(signal, wavelet, mode="same"))
        highest[:, k] = _frames(part, centres, rate).max(axis=1)
    level = np.log10(highest[:, ::-1] + 1e-6)
    octave = np.arange(_SCALES) - (_SCALES - 1) / 2
    return (level * octave).sum(axis=1) / (octave**2).sum()
