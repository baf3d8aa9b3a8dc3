"""Words are found where flite says that it spoke them."""

import numpy as np
import pytest

from cmsbert_fast.extract.media.sound import Sound
from cmsbert_fast.extract.words import align as module
from cmsbert_fast.extract.words import timing
from cmsbert_fast.extract.words.align import Aligner
from cmsbert_fast.extract.words.segments import PAUSE
from cmsbert_fast.extract.words.transcript import Cue
from tests.extract.media import RATE, SENTENCES, silence, speak, true_starts

VOICES = ("slt", "rms")
OTHER = "Yesterday we went to the market because my brother wanted fresh apples and some bread for tea."


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    return Aligner()


def nothing(seconds: float) -> None:
    """No progress."""


def story(gap: float = 0.8) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """All sentences by all voices: samples, true starts of the words, words."""
    parts, starts, words, at = [], [], [], 0.0
    for voice in VOICES:
        for k, sentence in enumerate(SENTENCES):
            samples = np.concatenate([speak(sentence, voice).samples, silence(gap)])
            parts.append(samples)
            starts.append(at + true_starts(k, voice))
            words += sentence.split()
            at += len(samples) / RATE
    return np.concatenate(parts), np.concatenate(starts), words


def errors(spans: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.abs(spans[:, 0] - truth)


def test_words_start_where_they_are_spoken(aligner: Aligner) -> None:
    samples, truth, words = story()
    found = aligner.align(samples, words, nothing)
    error = errors(found.spans, truth)
    assert np.median(error) < 0.03
    assert error.max() < 0.25
    assert found.cost < timing.DOUBTFUL / 2
    assert (found.spans[:, 1] > found.spans[:, 0]).all()
    assert (np.diff(found.spans[:, 0]) > 0).all()


def test_long_sound_is_aligned_in_windows(aligner: Aligner, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, truth, words = story(gap=0.3)
    monkeypatch.setattr(module, "_WINDOW", 5.0)
    monkeypatch.setattr(module, "_LAST", 6.0)
    searched = []
    search = Aligner._search
    monkeypatch.setattr(
        Aligner,
        "_search",
        lambda self, decoder, part, *rest: searched.append(len(part)) or search(self, decoder, part, *rest),
    )
    done: list[float] = []
    found = aligner.align(samples, words, done.append)
    error = errors(found.spans, truth)
    assert np.median(error) < 0.03
    assert error.max() < 0.3
    assert max(searched) <= 6.0 * RATE  # never the whole
    assert done == sorted(done)
    assert done[-1] == pytest.approx(len(samples) / RATE)


def test_silence_before_and_in_between_is_passed(aligner: Aligner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 5.0)
    monkeypatch.setattr(module, "_LAST", 6.0)
    parts = [silence(12), speak(SENTENCES[1]).samples, silence(14), speak(SENTENCES[2]).samples, silence(7)]
    found = aligner.align(np.concatenate(parts), [*SENTENCES[1].split(), *SENTENCES[2].split()], nothing)
    truth = np.concatenate([12 + true_starts(1), 26 + len(speak(SENTENCES[1]).samples) / RATE + true_starts(2)])
    assert np.median(errors(found.spans, truth)) < 0.03
    assert errors(found.spans, truth).max() < 0.3


def test_words_that_no_dictionary_has(aligner: Aligner) -> None:
    text = "The zorgly Kubrick's well-known DVD cost $25 in 1995, and 3rd-rate blogs \u2014 loved \u201cit\u201d."
    spoken = speak(
        "The zorgly Kubrick's well-known D V D cost twenty five dollars in nineteen ninety five, "
        "and third rate blogs loved it."
    )
    words = text.split()
    found = aligner.align(spoken.samples, words, nothing)
    missing = [word for word, span in zip(words, found.spans, strict=True) if np.isnan(span[0])]
    assert missing == ["\u2014"]
    assert found.cost < timing.DOUBTFUL


def test_another_text_is_noticed(aligner: Aligner) -> None:
    samples = np.concatenate([speak(sentence).samples for sentence in SENTENCES])
    other = timing.timed([Cue(OTHER, None)], Sound(samples, 0.0, 0, 0.0), aligner, nothing)
    assert other.cost > timing.DOUBTFUL or other.missing > other.words / 2


def test_words_after_the_end_are_missing(aligner: Aligner) -> None:
    spoken = speak(SENTENCES[1]).samples
    cut = spoken[: int(1.3 * RATE)]  # "Nobody laughed about"
    found = aligner.align(cut, SENTENCES[1].split(), nothing)
    known = np.isfinite(found.spans[:, 0])
    assert known[:2].all()
    assert not known[5:].any()
    result = timing.timed([Cue(SENTENCES[1], None)], Sound(cut, 0.0, 0, 0.0), aligner, nothing)
    assert result.missing == (~known).sum()
    assert result.segments[-1].text.split() == SENTENCES[1].split()[: known.sum()]


def test_text_is_cut_at_sentences_on_the_files_clock(aligner: Aligner) -> None:
    samples, truth, _ = story(gap=0.2)  # no pause is long enough to cut
    text = " ".join(SENTENCES * len(VOICES))
    result = timing.timed([Cue(text, None)], Sound(samples, 3.0, 0, 0.0), aligner, nothing)
    assert [segment.text for segment in result.segments] == list(SENTENCES * len(VOICES))
    starts = [word.start for segment in result.segments for word in segment.words]
    assert np.median(np.abs(np.array(starts) - 3.0 - truth)) < 0.03
    assert all(s.start == s.words[0].start and s.stop == s.words[-1].stop for s in result.segments)


def test_text_without_points_is_cut_at_pauses(aligner: Aligner) -> None:
    samples = np.concatenate([speak(SENTENCES[1]).samples, silence(PAUSE), speak(SENTENCES[2]).samples])
    text = f"{SENTENCES[1]} {SENTENCES[2]}".replace(".", "").lower()
    result = timing.timed([Cue(text, None)], Sound(samples, 0.0, 0, 0.0), aligner, nothing)
    assert [len(segment.words) for segment in result.segments] == [8, 10]


def test_subtitles_stay_and_their_words_are_found(aligner: Aligner) -> None:
    samples, truth, _ = story(gap=0.8)
    length = len(speak(SENTENCES[0]).samples) / RATE + 0.8
    cues = [Cue(SENTENCES[0], (2.0, 2.0 + length)), Cue(SENTENCES[1], (2.0 + length, 5.0 + length))]
    result = timing.timed(cues, Sound(samples, 2.0, 0, 0.0), aligner, nothing)
    assert [(s.text, s.start, s.stop) for s in result.segments] == [(c.text, *c.span) for c in cues]
    starts = np.array([word.start for segment in result.segments for word in segment.words])
    assert np.median(np.abs(starts - 2.0 - truth[: len(starts)])) < 0.03
    assert result.missing == 0


def test_words_of_a_subtitle_at_the_wrong_time_are_spread_and_counted(aligner: Aligner) -> None:
    cues = [Cue(SENTENCES[0], (0.0, 1.0))]
    result = timing.timed(cues, Sound(silence(3.0), 0.0, 0, 0.0), aligner, nothing)
    words = result.segments[0].words
    assert result.missing == len(words) or result.cost > timing.DOUBTFUL
    assert words[0].start >= 0
    assert words[-1].stop <= 1.0


def test_recognised_text_gets_the_times_of_its_words(aligner: Aligner) -> None:
    samples, truth, words = story(gap=0.8)
    cues, at = [], 0.0
    for voice in VOICES:
        for k, sentence in enumerate(SENTENCES):
            length = len(speak(sentence, voice).samples) / RATE
            cues.append(Cue(sentence, (at + 0.15 * (k % 2), at + length - 0.1)))  # as rough as a recogniser's
            at += length + 0.8
    result = timing.recognised(cues, Sound(samples, 1.0, 0, 0.0), aligner, nothing)
    starts = np.array([word.start for segment in result.segments for word in segment.words])
    assert len(starts) == len(words)
    assert np.median(np.abs(starts - 1.0 - truth)) < 0.03


def test_recognised_words_lie_within_the_sound(aligner: Aligner) -> None:
    noise = (np.random.default_rng(0).normal(size=RATE) * 50).astype(np.int16)
    cues = [Cue("quite another text that nobody says here at all", (0.0, 1.0))]
    (segment,) = timing.recognised(cues, Sound(noise, 2.0, 0, 0.0), aligner, nothing).segments
    assert segment.start >= 2.0
    assert segment.stop <= 3.0


def test_a_subtitle_without_length_is_counted(aligner: Aligner) -> None:
    cues = [Cue("it was good", (0.5, 0.5)), Cue("not bad", (9.0, 9.5))]
    found = timing.timed(cues, Sound(np.zeros(RATE, np.int16), 0.0, 0, 0.0), aligner, nothing)
    assert (found.words, found.missing, len(found.segments)) == (5, 5, 1)


def test_the_names_of_the_aligner_are_no_words(aligner: Aligner) -> None:
    aligner._entry(aligner._decoder(1e-60), "zebra")
    (name,) = [name for word, name in aligner._names.items() if word == "zebra"]
    assert not any(name == f"w{k}" for k in range(9999))
    assert aligner._decoder(1e-60).lookup_word("w0") is None
