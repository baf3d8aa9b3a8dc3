"""The voice against sounds whose truth is known."""

import numpy as np
import pytest

from cmsbert_fast.extract.voice import features as module
from cmsbert_fast.extract.voice.features import STEP, UNITS, features
from tests.extract.media import RATE, SENTENCES, silence, speak, vowel

COLUMN = {name: k for k, name in enumerate(UNITS)}


def columns(samples: np.ndarray) -> np.ndarray:
    return np.concatenate([block.values for block in features(samples, 0.0, RATE)])


def contour(low: float, high: float, seconds: float = 2.0) -> np.ndarray:
    """A pitch that goes up and down once, in hertz at each sample."""
    time = np.linspace(0, 1, round(seconds * RATE))
    return low * (high / low) ** (0.5 - 0.5 * np.cos(2 * np.pi * time))


@pytest.mark.parametrize(("low", "high"), [(80, 160), (150, 300), (220, 440)])
def test_pitch_of_a_known_contour(low: float, high: float) -> None:
    f0 = contour(low, high)
    sound = np.concatenate([silence(0.5), vowel(f0), silence(0.5)])
    found = columns(sound)[:, COLUMN["f0"]]
    truth = np.concatenate([np.zeros(50), f0[round(STEP * RATE) // 2 :: round(STEP * RATE)], np.zeros(50)])
    assert len(found) == len(truth)
    assert ((found > 0) == (truth > 0)).mean() >= 0.95
    both = (found > 0) & (truth > 0)
    error = np.abs(np.log2(found[both] / truth[both]))
    assert error.max() < 0.5  # an octave is 1
    assert np.median(error) < 0.01


def test_an_octave_of_strong_harmonics_is_no_pitch() -> None:
    """The second harmonic alone carries most of the sound."""
    time = np.arange(RATE) / RATE
    sound = 2000 * np.sin(2 * np.pi * 120 * time) + 12_000 * np.sin(2 * np.pi * 240 * time)
    found = columns(sound.astype(np.int16))[5:-5, COLUMN["f0"]]
    assert np.abs(np.log2(found / 120)).max() < 0.05


def test_noise_and_silence_are_unvoiced() -> None:
    noise = np.random.default_rng(0).normal(size=2 * RATE) * 3000
    assert columns(noise.astype(np.int16))[:, COLUMN["voiced"]].mean() <= 0.05
    quiet = columns(silence(1.0))
    assert np.isfinite(quiet).all()
    assert quiet[:, COLUMN["voiced"]].sum() == 0
    assert list(features(np.zeros(100, dtype=np.int16), 0.0, RATE)) == []  # shorter than a frame


def test_voicing_of_speech_is_that_of_its_phones() -> None:
    spoken = speak(SENTENCES[0])
    found = columns(spoken.samples)[:, COLUMN["voiced"]] > 0
    voiceless = {"pau", "p", "t", "k", "f", "s", "sh", "th", "ch", "hh"}
    doubtful = {"b", "d", "g", "v", "z", "dh", "jh", "zh"}  # their closures may be either
    middles = np.arange(len(found)) * STEP + STEP / 2
    ends = np.array([end for _, end in spoken.phones])
    names = [spoken.phones[min(int(np.searchsorted(ends, t)), len(ends) - 1)][0] for t in middles]
    edge = np.abs(middles[:, None] - ends[None]).min(axis=1) < 0.025
    sure = np.array([name not in doubtful for name in names]) & ~edge
    truth = np.array([name not in voiceless for name in names])
    assert (found == truth)[sure].mean() >= 0.95


def test_glottal_measures_order_phonation() -> None:
    """Pressed, modal and breathy: each measure rises, as in the literature; the parabola only tells breathy apart."""
    f0 = np.full(RATE, 120.0)
    means = []
    for open_quotient in (0.35, 0.6, 0.9):
        found = columns(vowel(f0, open_quotient))[10:-10]
        assert (found[:, COLUMN["voiced"]] == 1).all()
        means.append(found.mean(axis=0))
    for name in ("naq", "qoq", "h1_h2"):
        pressed, modal, breathy = (mean[COLUMN[name]] for mean in means)
        assert pressed < modal < breathy, (name, pressed, modal, breathy)
    assert means[2][COLUMN["psp"]] > 1.5 * max(mean[COLUMN["psp"]] for mean in means[:2])
    assert 0.03 < means[0][COLUMN["naq"]] < means[2][COLUMN["naq"]] < 0.4
    slopes = [mean[COLUMN["peak_slope"]] for mean in means]
    assert slopes[2] < slopes[0]  # breathy voices fall off more steeply


def test_loudness_moves_what_it_should() -> None:
    noise = np.random.default_rng(0).normal(size=RATE) * 100  # no part of the spectrum is silent
    quiet = vowel(np.full(RATE, 150.0)) // 4 + noise.astype(np.int16)
    one, four = columns(quiet), columns(quiet * 4)
    inner = slice(10, -10)
    assert (four - one)[inner, COLUMN["intensity"]] == pytest.approx(12.04, abs=0.05)
    assert (four - one)[inner, COLUMN["mcep_0"]] == pytest.approx(np.log(4), abs=0.01)
    same = [COLUMN[name] for name in ("f0", "naq", "qoq", "h1_h2", "psp", "mcep_1", "mcep_5")]
    assert four[inner][:, same] == pytest.approx(one[inner][:, same], abs=0.02)


def test_the_cepstrum_tells_vowels_apart_and_not_their_pitch() -> None:
    cepstrum = slice(COLUMN["mcep_1"], COLUMN["mcep_1"] + 12)
    low, high = (columns(vowel(np.full(RATE, f0)))[10:-10, cepstrum].mean(axis=0) for f0 in (110.0, 150.0))
    noise = columns((np.random.default_rng(0).normal(size=RATE) * 3000).astype(np.int16))[:, cepstrum].mean(axis=0)
    assert np.linalg.norm(low - high) < 0.5 * np.linalg.norm(low - noise)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = np.concatenate([silence(0.3), vowel(contour(100, 200, 1.5)), silence(0.4), vowel(contour(200, 120, 1.0))])
    whole = columns(sound)
    monkeypatch.setattr(module, "_BLOCK", 70)
    blocks = list(features(sound, 2.5, RATE))
    assert len(blocks) > 3
    times = np.concatenate([block.times for block in blocks])
    assert times == pytest.approx(2.5 + np.arange(len(whole)) * STEP)
    assert np.concatenate([block.values for block in blocks]) == pytest.approx(whole, abs=1e-6)


def test_a_knock_does_not_hide_a_quiet_voice() -> None:
    sound = np.concatenate([vowel(np.full(2 * RATE, 150.0)) // 30, silence(0.1)])
    sound[5:25] = 32_000
    assert columns(sound)[20:190, COLUMN["voiced"]].mean() > 0.95
