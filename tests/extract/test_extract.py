"""The whole way: videos in, a folder out that the reader takes, and a named outcome for each."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cmsbert_fast.data import DataError, read_corpus
from cmsbert_fast.extract import ExtractOptions, extract, outcomes, run
from cmsbert_fast.extract import video as extract_module
from cmsbert_fast.extract.__main__ import main
from cmsbert_fast.extract.face import measures
from cmsbert_fast.extract.voice import features as voice
from tests.extract.clips import BLACK, GREY, TEXT, WHITE, clip, table, texts
from tests.extract.media import RATE, SENTENCES, silence, speak, true_starts, turn_phone, vowel, write_media


def test_a_video_becomes_data(tmp_path: Path, spoken: np.ndarray, python: Path) -> None:
    video = clip(tmp_path / "talk.mp4", spoken)
    options = ExtractOptions(transcript=texts(tmp_path / "said", talk=TEXT), face_python=python)
    summary = extract([video], tmp_path / "out", options)
    assert summary.counts == {"extracted": 1}
    assert summary.segments == 2
    assert "1 extracted" in summary.text

    rows = table(tmp_path / "out" / "segments.tsv")
    assert [row["text"] for row in rows] == list(SENTENCES[:2])
    assert [row["id"] for row in rows] == ["talk_0", "talk_1"]
    first = speak(SENTENCES[0]).samples
    truth = np.concatenate([0.5 + true_starts(0), 1.0 + len(first) / RATE + true_starts(1)])
    part = json.loads((tmp_path / "out" / "parts" / "talk.json").read_text())
    starts = [word[1] for segment in part["segments"] for word in segment["words"]]
    assert np.median(np.abs(np.array(starts) - truth)) < 0.03

    corpus = read_corpus(tmp_path / "out", labels=False)
    assert (corpus.visual_size, corpus.acoustic_size) == (len(measures.UNITS), len(voice.UNITS))
    examples = list(corpus.splits["all"])
    assert [" ".join(example.words) for example in examples] == list(SENTENCES[:2])
    for example, row in zip(examples, rows, strict=True):
        seconds = float(row["stop"]) - float(row["start"])
        assert len(example.visual) == pytest.approx(25 * seconds, abs=2)
        assert len(example.acoustic) == pytest.approx(100 * seconds, abs=2)
        assert 0.4 < (example.acoustic[:, 1] == 1).mean() < 1.0  # voiced; silence around the sentence would be less
    by_word = read_corpus(tmp_path / "out", words="words", labels=False)
    assert [len(e.visual) for e in by_word.splits["all"]] == [len(s.split()) for s in SENTENCES[:2]]
    assert "interpolated" not in str(by_word.report)

    manifest = json.loads((tmp_path / "out" / "extraction.json").read_text())
    assert manifest["columns"] == {"visual": list(measures.UNITS), "acoustic": list(voice.UNITS)}
    assert manifest["units"]["acoustic"]["h1_h2"] == "dB"
    assert manifest["fingerprint"] == summary.fingerprint
    assert manifest["videos"]["talk"]["outcome"] == "extracted"
    assert manifest["videos"]["talk"]["duration"] == pytest.approx(len(spoken) / RATE, abs=0.1)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [".lock", "extraction.json", "face", "parts", "segments.tsv", "voice", "words.csd"]
    )


def test_each_hard_case_has_its_outcome(tmp_path: Path, spoken: np.ndarray, python: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    loud = (np.random.default_rng(0).normal(size=3 * RATE) * 1000).astype(np.int16)
    clip(folder / "whole.mp4", spoken)
    clip(folder / "dark.mp4", spoken, BLACK)
    clip(folder / "two.mp4", spoken, WHITE)
    clip(folder / "quiet.mp4", silence(3.0))
    clip(folder / "noise.mp4", loud)
    clip(folder / "voice.wav", spoken, None, codecs=("", "pcm_s16le"))
    clip(folder / "mute.mp4", None)
    clip(folder / "untold.mp4", spoken)
    clip(folder / "empty.mp4", spoken)
    clip(folder / "other.mp4", np.concatenate([speak(s).samples for s in SENTENCES]))
    clip(folder / "short.mp4", speak(SENTENCES[0]).samples)
    cut = clip(folder / "cut.mka", np.tile(spoken, 2), None, codecs=("", "pcm_s16le"))
    cut.write_bytes(cut.read_bytes()[: 2 * len(spoken) + 2000])
    (folder / "broken.mp4").write_bytes(b"\0" * 1000)
    (folder / "notes.docx").write_bytes(b"no media")
    (folder / "notes.srt").write_text("a transcript")
    (folder / "more").mkdir()
    turned_phone = clip(folder / "phone.mp4", spoken)
    turn_phone(turned_phone, 90)
    names = [path.stem for path in folder.iterdir() if path.suffix not in ("", ".docx", ".srt")]
    said = texts(tmp_path / "said", **{name: TEXT for name in names if name != "untold"}, forgotten=TEXT)
    texts(said, empty=" ", short=" ".join([SENTENCES[0], *["and so it went on for ever"] * 9]))
    texts(said, other="Yesterday we went to the market because my brother wanted fresh apples and bread for tea. " * 2)
    summary = extract([folder], tmp_path / "out", ExtractOptions(transcript=said, face_python=python))
    found = {name: result.outcome for name, result in summary.results.items()}
    other = found.pop("other")
    assert other in ("doubtful transcript", "transcript does not fit")
    assert found == {
        "whole": "extracted",
        "phone": "extracted",
        "dark": "no face",
        "two": "several faces",
        "quiet": "no speech",
        "noise": "no speech",
        "voice": "no picture",
        "mute": "no sound",
        "untold": "no transcript",
        "empty": "no transcript",
        "short": "transcript does not fit",
        "cut": "no picture",
        "broken": "unreadable",
    }
    assert "damaged" in summary.results["cut"].conditions
    assert "2 files and folders are not called like media, left out: more/, notes.docx" in summary.text
    assert "1 transcripts have no video of their name here: forgotten.txt" in summary.text
    assert sum(summary.counts.values()) == len(names)
    for name, outcome in found.items():
        assert outcome == "extracted" or f"{name}: {outcome}" in summary.text
    with_segments = {name for name, result in summary.results.items() if result.segments}
    assert with_segments - {"other"} == {"whole", "phone", "dark", "two", "voice", "mute", "cut"}
    faces = {path.stem for path in (tmp_path / "out" / "face").iterdir()}
    assert faces == {"whole", "phone", "two", "quiet", "noise", "mute", "other", "short"}
    corpus = read_corpus(tmp_path / "out", labels=False)
    assert {example.id.rpartition("_")[0] for example in corpus.splits["all"]} == with_segments
    assert run._SHARES.keys() == {"face", "voice", "words"}
    assert not list((tmp_path / "out").glob(".*.sound"))


def test_pictures_without_a_face_are_left_out_and_no_frame_reaches_over_them(
    tmp_path: Path, spoken: np.ndarray, python: Path
) -> None:
    count = int(len(spoken) / RATE * 25)
    levels = [GREY if k < 50 or k >= 100 else BLACK for k in range(count)]
    video = write_media(tmp_path / "a.mp4", levels, spoken)
    summary = extract(
        [video], tmp_path / "out", ExtractOptions(transcript=texts(tmp_path / "t", a=TEXT), face_python=python)
    )
    assert summary.counts == {"extracted": 1}
    rows = table(tmp_path / "out" / "face" / "a.csv", ",")
    starts, stops = (np.array([float(row[name]) for row in rows]) for name in ("start", "stop"))
    assert len(rows) == count - 50
    assert not ((starts > 1.99) & (starts < 3.99)).any()
    assert (stops - starts).max() < 0.09
    assert (stops[:-1] <= starts[1:] + 1e-9).all()
    part = json.loads((tmp_path / "out" / "parts" / "a.json").read_text())
    assert (part["face"]["pictures"], part["face"]["faces"]) == (count, count - 50)


def test_streams_that_start_late_and_variable_rates_stay_in_step(
    tmp_path: Path, spoken: np.ndarray, python: Path
) -> None:
    marks = [0.04 * k + (0.02 if k % 3 else 0.0) + (1.0 if k >= 50 else 0.0) for k in range(190)]
    video = write_media(
        tmp_path / "a.mkv", [GREY] * len(marks), spoken, times=marks, sound_start=1.5, codecs=("mpeg4", "pcm_s16le")
    )
    extract([video], tmp_path / "out", ExtractOptions(transcript=texts(tmp_path / "t", a=TEXT), face_python=python))
    rows = table(tmp_path / "out" / "segments.tsv")
    assert float(rows[0]["start"]) == pytest.approx(1.5 + 0.5 + true_starts(0)[0], abs=0.05)
    voiced = [
        float(row["timestamp"]) for row in table(tmp_path / "out" / "voice" / "a.csv", ",") if row["voiced"] == "1"
    ]
    assert voiced[0] == pytest.approx(2.0 + true_starts(0)[0], abs=0.06)
    rows = table(tmp_path / "out" / "face" / "a.csv", ",")
    starts, stops = (np.array([float(row[name]) for row in rows]) for name in ("start", "stop"))
    assert set(np.round(starts, 2)) <= set(np.round(marks, 2))
    assert (stops - starts).max() < 0.09  # none stands for the second without pictures


@pytest.mark.parametrize(("rate", "layout"), [(8_000, "mono"), (48_000, "stereo")])
def test_pitch_is_that_of_the_sound_whatever_its_rate(tmp_path: Path, rate: int, layout: str) -> None:
    sound = vowel(np.full(2 * rate, 140.0), rate=rate)
    video = write_media(tmp_path / "a.wav", sound=sound, rate=rate, layout=layout, codecs=("", "pcm_s16le"))
    options = ExtractOptions(transcript=texts(tmp_path / "t", a="ah"), align=False, face=False)
    summary = extract([video], tmp_path / "out", options)
    assert summary.counts == {"narrow sound" if rate < RATE else "extracted": 1}
    rows = table(tmp_path / "out" / "voice" / "a.csv", ",")
    f0 = np.array([float(row["f0"]) for row in rows])
    assert len(f0) == 200
    assert f0[5:-5] == pytest.approx(140.0, rel=0.01)


def test_a_text_without_times_is_as_long_as_pictures_that_declare_no_length(tmp_path: Path, python: Path) -> None:
    video = write_media(tmp_path / "a.mjpeg.mkv", [GREY] * 50, None, codecs=("mpeg4", ""))
    options = ExtractOptions(transcript=texts(tmp_path / "t", **{"a.mjpeg": TEXT}), face_python=python)
    probe = extract_module.probe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_module, "probe", lambda path: {**probe(path), "duration": None})
        extract([video], tmp_path / "out", options)
    (row,) = table(tmp_path / "out" / "segments.tsv")
    assert float(row["stop"]) == pytest.approx(49 / 25, abs=0.01)


def test_a_summary_tells_of_words_that_were_not_found() -> None:
    result = outcomes.Result(Path("a.mp4"), outcomes.EXTRACTED, (), "3 of 9 words were not found in the sound", 1, 4.0)
    assert "a: extracted (3 of 9 words" in outcomes.Summary({"a": result}, Path("out"), "0").text


def test_a_changed_extractor_has_another_fingerprint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ExtractOptions(transcript=tmp_path, face=False)
    before = run._about(options, None)["fingerprint"]
    assert run._about(options, None)["fingerprint"] == before
    monkeypatch.setattr(voice, "VERSION", voice.VERSION + 1)
    assert run._about(options, None)["fingerprint"] != before


WRONG = {
    "no words": ({}, "--transcript"),
    "no transcript": ({"transcript": Path("absent.txt")}, "does not exist"),
    "another language": ({"asr": Path("."), "language": "de"}, "--no-align"),
    "another language of a transcript": ({"transcript": Path("."), "language": "de"}, "--no-align"),
    "a language for nobody": ({"transcript": Path("."), "align": False, "language": "de"}, "Leave out --language"),
    "no model": ({"asr": Path("."), "align": False, "face": False}, r"model\.bin"),
    "no face, but its model": ({"transcript": Path("."), "face": False, "face_model": Path("x")}, "--no-face"),
    "no face model": ({"transcript": Path("."), "face_model": Path("absent.task")}, "face_landmarker.task"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said_before_any_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fields, message = WRONG[name]
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object())
    with pytest.raises(DataError, match=message):
        extract([tmp_path], tmp_path / "out", ExtractOptions(**fields))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "extra"), [("av", "extract"), ("pocketsphinx", "extract"), ("faster_whisper", "extract-asr")]
)
def test_a_missing_package_is_named_with_its_command(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    with pytest.raises(DataError, match=rf'pip install "cmsbert-fast\[{extra}\]"'):
        ExtractOptions(asr=tmp_path).check()


def test_the_command(tmp_path: Path, spoken: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    video = clip(tmp_path / "a.wav", spoken, None, codecs=("", "pcm_s16le"))
    (tmp_path / "a.srt").write_text(f"1\n00:00:00,500 --> 00:00:03,400\n{SENTENCES[0]}\n")
    command = [str(video), "-o", str(tmp_path / "out"), "--transcript", str(tmp_path / "a.srt"), "--no-face"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "cannot score them" in said.err.splitlines()[0]  # first of all
    assert "1 extracted" in said.out
    assert [row["start"] for row in table(tmp_path / "out" / "segments.tsv")] == ["0.500"]
    assert main([str(tmp_path / "absent.mp4"), *command[1:]]) == 2
    assert "absent.mp4" in capsys.readouterr().err
    shutil.copy(video, tmp_path / "b.wav")
    assert main([str(video), str(tmp_path / "b.wav"), *command[1:]]) == 2
    assert "--transcript a folder" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    shutil.copy(video, tmp_path / "other" / "a.wav")
    assert main([str(video), str(tmp_path / "other"), *command[1:]]) == 2
    assert "Rename" in capsys.readouterr().err
    (tmp_path / "c.mp4").write_bytes(b"no video")
    assert main([str(tmp_path / "c.mp4"), "-o", str(tmp_path / "none"), *command[3:]]) == 1
    assert "1 unreadable" in capsys.readouterr().out


def test_torch_is_never_loaded_and_scipy_not_for_the_options() -> None:
    code = (
        "import sys, cmsbert_fast.extract.__main__ as m; m.command_parser(); print('scipy.signal' in sys.modules);"
        "m.extraction.extract; print({'torch', 'transformers'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(run.__file__).parents[2])}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "set()"]


def test_a_tracker_that_fails_costs_its_video_only(tmp_path: Path, spoken: np.ndarray) -> None:
    script = tmp_path / "python"
    hello = '{"version": "0", "detector": false}'
    send = f"sys.stdout.buffer.write(struct.pack('<cI', b'V', {len(hello)}) + b'{hello}');"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$(cat {tmp_path}/code)"\n')
    (tmp_path / "code").write_text(f"import struct, sys; {send} sys.stdout.flush(); sys.stdin.buffer.read(100)")
    script.chmod(0o755)
    clip(tmp_path / "a.mp4", spoken[:RATE])
    clip(tmp_path / "b.wav", spoken, None, codecs=("", "pcm_s16le"))
    options = ExtractOptions(transcript=texts(tmp_path / "t", a=TEXT, b=TEXT), align=False, face_python=script)
    summary = extract([tmp_path / "a.mp4", tmp_path / "b.wav"], tmp_path / "out", options)
    assert [result.outcome for result in summary.results.values()] == [outcomes.TRACKER_FAILED, outcomes.NO_PICTURE]
    assert summary.results["b"].segments == 1
    assert not (tmp_path / "out" / "voice" / "a.csv").exists()
