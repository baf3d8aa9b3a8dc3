"""The folder of extracted features over several commands: what is continued, kept, and refused."""

import dataclasses
import os
import shutil
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from cmsbert_fast.data import DataError, DataRequest, read_corpus
from cmsbert_fast.data.extraction import recordings
from cmsbert_fast.extract import ExtractOptions, extract, outcomes, run
from cmsbert_fast.extract import video as extract_module
from cmsbert_fast.extract.folder import Folder
from tests.extract.clips import TEXT, clip, table, texts
from tests.extract.media import RATE, SENTENCES, silence, vowel


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


def test_what_is_left_out_is_told(tmp_path: Path, spoken: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound that lay over other sound, and a damaged part of an earlier command."""
    for name in "ab":
        clip(tmp_path / f"{name}.wav", spoken, None, codecs=("", "pcm_s16le"))
    options = ExtractOptions(transcript=texts(tmp_path / "t", a=TEXT, b=TEXT), align=False, face=False)
    real = extract_module.decode_sound
    monkeypatch.setattr(extract_module, "decode_sound", lambda *given: dataclasses.replace(real(*given), cut=0.5))
    summary = extract([tmp_path / "a.wav"], tmp_path / "out", options)
    assert "a: extracted (0.5 seconds of sound, whose time had sound already, are left out)" in summary.text
    assert summary.unreadable == ()

    part = tmp_path / "out" / "parts" / "a.json"
    part.write_text(part.read_text()[:-9])
    summary = extract([tmp_path / "b.wav"], tmp_path / "out", options)
    assert {row["video"] for row in table(tmp_path / "out" / "segments.tsv")} == {"b"}
    assert (
        "what earlier commands kept cannot be read, and its segments are left out; extract again: a\n" in summary.text
    )
    assert set(recordings(tmp_path / "out")) == {"b"}
    part.write_text('{"file": "a.wav", "segments": [1]}')
    assert extract([tmp_path / "b.wav"], tmp_path / "out", options).unreadable == ("a",)
    summary = extract([tmp_path / "a.wav"], tmp_path / "out", options)
    assert summary.unreadable == ()
    assert {row["video"] for row in table(tmp_path / "out" / "segments.tsv")} == {"a", "b"}


def test_words_too_long_for_their_table_are_cut_between_characters_and_counted(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "0")
    words = [["é" * 150, 0.0, 1.0], ["good", 1.0, 2.0], ["a" + "é" * 100, 2.0, 3.0]]
    folder.keep("b", {"file": "b.wav", "segments": [{"text": "good", "start": 0.0, "stop": 3.0, "words": words}]})
    for _ in range(2):
        folder.finish({})
        assert folder.cut_words == 2
    with h5py.File(tmp_path / "words.csd") as file:
        found = [word.decode() for word in file["words/data/b/features"][:, 0]]
    assert found == ["é" * 100, "good", "a" + "é" * 99]
    summary = outcomes.Summary({}, tmp_path, "0", cut_words=folder.cut_words)
    assert "words too long for the table of words, and cut there: 2" in summary.text
