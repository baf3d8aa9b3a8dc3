"""The whole way: videos in, a folder out that the reader takes, and a named outcome for each."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cmsbert_fast.data import DataError, DataRequest, read_corpus
from cmsbert_fast.data.extraction import recordings
from cmsbert_fast.extract import ExtractOptions, extract, outcomes, run
from cmsbert_fast.extract import video as extract_module
from cmsbert_fast.extract.__main__ import main
from cmsbert_fast.extract.face import measures
from cmsbert_fast.extract.voice import features as voice
from tests.extract.media import RATE, SENTENCES, silence, speak, true_starts, turn_phone, vowel, write_media

GREY, BLACK, WHITE = (np.full((64, 64, 3), level, dtype=np.uint8) for level in (128, 0, 255))
TEXT = " ".join(SENTENCES[:2])


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    """Two sentences with half a second of silence around each: 7 seconds."""
    parts = [part for sentence in SENTENCES[:2] for part in (silence(0.5), speak(sentence).samples)]
    return np.concatenate([*parts, silence(0.5)])


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python whose face tracker is ``tracker.py`` beside this file."""
    here = Path(__file__).parent
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} {here / 'tracker.py'} {here / 'mesh.npy'}\n")
    script.chmod(0o755)
    return script


def clip(path: Path, sound: np.ndarray | None, level: np.ndarray | None = GREY, **how: object) -> Path:
    """A video of one brightness, as long as its sound (or two seconds)."""
    seconds = 2.0 if sound is None else len(sound) / RATE
    pictures = None if level is None else [level] * int(seconds * 25)
    return write_media(path, pictures, sound, **how)  # type: ignore[arg-type]


def texts(folder: Path, **by_name: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in by_name.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def table(path: Path, delimiter: str = "\t") -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE))


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
    said = texts(tmp_path / "said", **{name: TEXT for name in names if name != "untold"})
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


def test_the_same_command_continues_and_does_nothing_twice(
    tmp_path: Path, spoken: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = [clip(tmp_path / f"{name}.wav", spoken, None, codecs=("", "pcm_s16le")) for name in "abc"]
    said, out = texts(tmp_path / "t", a=TEXT, b=TEXT, c=TEXT), tmp_path / "out"
    options = ExtractOptions(transcript=said, align=False, face=False)
    real, done = run.extract_video, []

    def stopped(path: Path, name: str, *rest: object) -> object:
        if name == "b":
            raise KeyboardInterrupt
        done.append(name)
        return real(path, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "extract_video", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract(videos, out, options)
    assert {row["video"] for row in table(out / "segments.tsv")} == {"a"}  # what is done is there

    monkeypatch.setattr(run, "extract_video", lambda path, name, *rest: done.append(name) or real(path, name, *rest))
    assert extract(videos, out, options).again == 1
    assert done == ["a", "b", "c"]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert extract(videos[:1], out, options).counts == {"extracted": 1}  # the others stay
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    (said / "b.txt").write_text(SENTENCES[2])
    os.utime(videos[2], ns=(1, 1))
    assert extract(videos, out, options).again == 1
    assert done == ["a", "b", "c", "b", "c"]
    assert [row["text"] for row in table(out / "segments.tsv")][1] == SENTENCES[2]


def test_what_could_not_be_done_is_tried_again(tmp_path: Path, spoken: np.ndarray) -> None:
    video = clip(tmp_path / "a.wav", spoken, None, codecs=("", "pcm_s16le"))
    options = ExtractOptions(transcript=texts(tmp_path / "t"), align=False, face=False)
    assert extract([video], tmp_path / "out", options).counts == {"no transcript": 1}
    assert not (tmp_path / "out" / "voice" / "a.csv").exists()
    texts(tmp_path / "t", a=TEXT)
    assert extract([video], tmp_path / "out", options).counts == {"extracted": 1}
    assert read_corpus(tmp_path / "out", labels=False).splits["all"]


def test_columns_that_a_user_added_stay(tmp_path: Path, spoken: np.ndarray) -> None:
    for name in "ab":
        clip(tmp_path / f"{name}.wav", spoken, None, codecs=("", "pcm_s16le"))
    options = ExtractOptions(transcript=texts(tmp_path / "t", a=TEXT, b=TEXT), align=False, face=False)
    extract([tmp_path / "a.wav"], tmp_path / "out", options)
    path = tmp_path / "out" / "segments.tsv"
    header, line = path.read_text().splitlines()
    path.write_text(f"{header}\tlabel\tsplit\n{line}\t1.5\ttrain\n")
    extract([tmp_path / "b.wav"], tmp_path / "out", options)
    rows = table(path)
    assert [(row["id"], row["label"], row["split"]) for row in rows] == [("a_0", "1.5", "train"), ("b_0", "", "")]


def test_what_a_user_added_stays_with_its_text(tmp_path: Path) -> None:
    sound, said = silence(8.0), tmp_path / "a.srt"
    sound[RATE : 2 * RATE] = vowel(np.full(RATE, 140.0))
    video = clip(tmp_path / "a.wav", sound, None, codecs=("", "pcm_s16le"))
    options = ExtractOptions(transcript=said, align=False, face=False)

    def cues(*found: str) -> None:
        said.write_text("\n".join(f"00:00:0{k},000 --> 00:00:0{k + 1},000\n{cue}\n" for k, cue in enumerate(found)))

    cues("Yes.", "Good, I think.", "Yes.", "Bad.")
    extract([video], tmp_path / "out", options)
    path = tmp_path / "out" / "segments.tsv"
    header, *lines = path.read_text().splitlines()
    marked = [f"{line}\t{label}" for line, label in zip(lines, ("1", "2", "3", "4"), strict=True)]
    marked[1] = marked[1].replace("Good, I think.", '"Good, I think."')  # as a spreadsheet saves it
    path.write_text("\n".join([f"{header}\tlabel", *reversed(marked)]) + "\n")
    cues("Well.", "Yes.", "Good, I think.", "Yes.", "Bad.")
    summary = extract([video], tmp_path / "out", options)
    assert [(row["id"], row["label"]) for row in table(path)] == [
        ("a_0", ""), ("a_1", "1"), ("a_2", "2"), ("a_3", "3"), ("a_4", "4"),
    ]  # fmt: skip
    assert summary.copy is None
    before = path.read_text()
    cues("Well.", "Yes.", "Good, I think.", "Yes.", "Worse.")
    summary = extract([video], tmp_path / "out", options)
    assert [row["label"] for row in table(path)] == ["", "1", "2", "3", ""]
    assert summary.copy is not None
    assert summary.copy.read_text() == before
    assert f"{summary.copy} keeps the former table" in summary.text
    path.write_text(path.read_text().replace("\t1\n", "\n"))
    with pytest.raises(DataError, match=r"line 3 has 5"):
        extract([video], tmp_path / "out", options)


def test_a_text_without_times_is_as_long_as_pictures_that_declare_no_length(tmp_path: Path, python: Path) -> None:
    video = write_media(tmp_path / "a.mjpeg.mkv", [GREY] * 50, None, codecs=("mpeg4", ""))
    options = ExtractOptions(transcript=texts(tmp_path / "t", **{"a.mjpeg": TEXT}), face_python=python)
    probe = extract_module.probe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_module, "probe", lambda path: {**probe(path), "duration": None})
        extract([video], tmp_path / "out", options)
    (row,) = table(tmp_path / "out" / "segments.tsv")
    assert float(row["stop"]) == pytest.approx(49 / 25, abs=0.01)


def test_an_interrupted_face_leaves_no_file(tmp_path: Path, spoken: np.ndarray, python: Path) -> None:
    video = clip(tmp_path / "a.mp4", spoken)
    real, seen, enough = extract_module._row, [], threading.Event()

    def row(*given: object) -> object:
        seen.append(given)
        if len(seen) == 20:
            enough.set()
            time.sleep(0.3)
        return real(*given)  # type: ignore[arg-type]

    def interrupted(*_: object) -> None:
        assert enough.wait(60)
        raise KeyboardInterrupt

    options = ExtractOptions(transcript=texts(tmp_path / "t", a=TEXT), align=False, face_python=python)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_module, "_row", row)
        patch.setattr(extract_module, "_ROWS", 5)
        patch.setattr(extract_module, "decode_sound", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract([video], tmp_path / "out", options)
    assert 20 <= len(seen) < 100
    assert not list((tmp_path / "out").glob("face/*"))


def test_a_summary_tells_of_words_that_were_not_found() -> None:
    result = outcomes.Result(Path("a.mp4"), outcomes.EXTRACTED, (), "3 of 9 words were not found in the sound", 1, 4.0)
    assert "a: extracted (3 of 9 words" in outcomes.Summary({"a": result}, Path("out"), "0").text


def test_other_numbers_do_not_come_into_a_folder(tmp_path: Path, spoken: np.ndarray, python: Path) -> None:
    video = clip(tmp_path / "a.mp4", spoken[: 2 * RATE])
    said = texts(tmp_path / "t", a=TEXT)
    options = ExtractOptions(transcript=said, align=False, face=False)
    one = extract([video], tmp_path / "out", options)
    with pytest.raises(DataError, match="do not compare"):
        extract([video], tmp_path / "out", ExtractOptions(transcript=said, align=False, face_python=python))
    both = extract([video], tmp_path / "both", ExtractOptions(transcript=said, align=False, face_python=python))
    assert both.fingerprint != one.fingerprint
    aligned = extract([video], tmp_path / "other", ExtractOptions(transcript=said, face=False))
    assert aligned.fingerprint == one.fingerprint  # the words are others, the numbers are not


def test_a_changed_extractor_has_another_fingerprint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ExtractOptions(transcript=tmp_path, face=False)
    before = run._about(options, None)["fingerprint"]
    assert run._about(options, None)["fingerprint"] == before
    monkeypatch.setattr(voice, "VERSION", voice.VERSION + 1)
    assert run._about(options, None)["fingerprint"] != before


def test_a_folder_of_the_users_own_is_not_touched(tmp_path: Path, spoken: np.ndarray) -> None:
    video = clip(tmp_path / "a.wav", spoken, None, codecs=("", "pcm_s16le"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "segments.tsv").write_text("id\ttext\n1\tmine\n")
    with pytest.raises(DataError, match="was not extracted"):
        extract([video], tmp_path / "out", ExtractOptions(transcript=texts(tmp_path / "t", a=TEXT), face=False))
    assert (tmp_path / "out" / "segments.tsv").read_text() == "id\ttext\n1\tmine\n"


def test_two_commands_do_not_share_a_folder(tmp_path: Path, spoken: np.ndarray) -> None:
    video = clip(tmp_path / "a.wav", spoken, None, codecs=("", "pcm_s16le"))
    options = ExtractOptions(transcript=texts(tmp_path / "t", a=TEXT), align=False, face=False)
    folder = run.Folder(tmp_path / "out", run._about(options, None)["fingerprint"])
    with folder.locked(), pytest.raises(DataError, match="another command"):
        extract([video], tmp_path / "out", options)


WRONG = {
    "no words": ({}, "--transcript"),
    "no transcript": ({"transcript": Path("absent.txt")}, "does not exist"),
    "another language": ({"asr": Path("."), "language": "de"}, "--no-align"),
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


def test_torch_is_never_loaded() -> None:
    code = (
        "import sys, cmsbert_fast.extract.__main__ as m; m.extract; print({'torch', 'transformers'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(run.__file__).parents[2])}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def test_no_video_is_called_as_a_segment_of_another(tmp_path: Path) -> None:
    one = clip(tmp_path / "talk.wav", silence(0.5), None, codecs=("", "pcm_s16le"))
    other = shutil.copy(one, tmp_path / "talk_1.wav")
    options = ExtractOptions(transcript=texts(tmp_path / "t", talk=TEXT, talk_1=TEXT), align=False, face=False)
    extract([one], tmp_path / "out", options)
    for videos, output in (([one, other], "both"), ([other], "out")):
        with pytest.raises(DataError, match=r"Rename the video talk_1, .* a segment of the video talk has"):
            extract(videos, tmp_path / output, options)
    assert extract([other], tmp_path / "alone", options).counts == {"no speech": 1}


def test_a_name_that_is_no_utf8_becomes_an_id(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.wav")
    clip(tmp_path / "a.wav", silence(0.5), None, codecs=("", "pcm_s16le")).rename(file)
    said = tmp_path / "a.txt"
    said.write_text(TEXT)
    summary = extract([file], tmp_path / "out", ExtractOptions(transcript=said, align=False, face=False))
    assert list(summary.results) == ["caf_"]
    assert recordings(tmp_path / "out")["caf_"].samefile(file)


def test_names_of_videos_become_ids(tmp_path: Path, spoken: np.ndarray) -> None:
    video = clip(tmp_path / "my talk\t1.wav", spoken[: 2 * RATE], None, codecs=("", "pcm_s16le"))
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "my talk\t1.txt").write_text(TEXT)
    options = ExtractOptions(transcript=tmp_path / "t", align=False, face=False)
    summary = extract([video], tmp_path / "out", options)
    assert list(summary.results) == ["my_talk_1"]
    (example,) = read_corpus(DataRequest.of(tmp_path / "out", labels=False)).splits["all"]
    assert example.id == "my_talk_1_0"
    assert len(example.acoustic) == 200


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
