"""Conversion: the round trip is exact, and interruptions lose nothing."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, DataRequest, convert, open_source, read_corpus
from cmsbert_fast.data.source import Source
from tests.data.sources import FORMATS, assert_same, choices, write


@pytest.mark.parametrize("kind", FORMATS)
def test_the_round_trip_is_exact(kind: str, files: Any, tmp_path: Path) -> None:
    path = write(kind, files)
    options = choices(kind, files)
    target = tmp_path / "converted"
    source = open_source(path, **options)
    assert source.format == FORMATS[kind]
    convert.convert(source, target)
    meant = read_corpus(path, **options)
    assert set(meant.splits) == {"train", "valid", "test"}
    assert_same(read_corpus(target), meant)
    assert {p.name for p in target.iterdir()} == {
        "manifest.json",
        "examples.jsonl",
        *(f"{modality}.safetensors" for modality in meant.report.widths),
        *(f"{modality}_words.safetensors" for modality in meant.report.widths if kind == "csd of words"),
    }
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["source"]["sha256"] == convert.source_hash(source.files)
    assert manifest["report"]["counts"] == meant.report.counts
    assert set(manifest["statistics"]) == set(meant.report.widths)
    for modality, statistics in manifest["statistics"].items():
        frames = np.concatenate([getattr(e, modality) for e in meant.splits["train"]]).astype(np.float64)
        assert statistics["frames"] == len(frames)
        np.testing.assert_allclose(statistics["mean"], frames.mean(axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(statistics["std"], frames.std(axis=0), rtol=1e-9, atol=1e-12)


def test_the_round_trip_of_real_mosi(mosi_folder: Path, tmp_path: Path) -> None:
    source = open_source(mosi_folder)
    convert.convert(source, tmp_path / "mosi")
    corpus = read_corpus(mosi_folder)
    assert_same(read_corpus(tmp_path / "mosi"), corpus)
    manifest = json.loads((tmp_path / "mosi" / "manifest.json").read_text())
    frames = np.concatenate([e.acoustic for e in corpus.splits["train"]]).astype(np.float64)
    statistics = manifest["statistics"]["acoustic"]
    np.testing.assert_allclose(statistics["mean"], frames.mean(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(statistics["std"], frames.std(axis=0), rtol=1e-9, atol=1e-12)
    assert statistics["frames"] == len(frames)
    known = read_corpus(tmp_path / "mosi").statistics
    assert known is not None
    np.testing.assert_array_equal(known["acoustic"], [statistics["mean"], statistics["std"]])
    assert read_corpus(tmp_path / "mosi", acoustic="none").statistics == {}
    assert manifest["source"]["sha256"] == convert.source_hash(source.files)


def test_labels_that_are_unknown_and_text_of_any_kind(files: Any, tmp_path: Path) -> None:
    path = files.folder / "table.csv"
    path.write_text('id,text,score\na,"naïve ☃ ""quoted""",\nb,我 x,0.1\n', encoding="utf-8")
    convert.convert(open_source(path, label="score"), tmp_path / "c")
    assert_same(read_corpus(tmp_path / "c"), read_corpus(path, label="score"))


def test_the_hash_sees_content_and_names(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1")
    b.write_bytes(b"2")
    first = convert.source_hash([a, b])
    assert first == convert.source_hash([b, a])
    b.write_bytes(b"3")
    assert convert.source_hash([a, b]) != first


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_shows_progress_where_somebody_looks(
    terminal: bool, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    convert.convert(open_source(write("csd", files)), tmp_path / "c")
    said = capsys.readouterr().err
    assert ("converting data" in said) == ("3/3" in said) == terminal


def interrupted(source: Source, after: int, seen: list[str]) -> Source:
    """A source that is broken off within a group, and tells which groups were read."""
    original = source.read

    def read(group: str, report: Any) -> Iterator[Any]:
        seen.append(group)
        for number, item in enumerate(original(group, report)):
            if len(seen) > after and number == 1:
                raise KeyboardInterrupt
            yield item

    return replace(source, read=read)


def test_an_interrupted_conversion_continues_to_the_same_result(
    files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_EVERY", 0.0)
    path = files.pickle("mosi.pkl", files.mag(6))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    convert.convert(open_source(path), whole)
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        convert.convert(interrupted(open_source(path), 1, seen), broken)
    assert seen == ["train", "dev"]
    assert not broken.exists()
    with pytest.raises(DataError):
        read_corpus(broken)
    seen.clear()
    convert.convert(interrupted(open_source(path), 99, seen), broken)
    assert seen == ["dev", "test"]  # what was complete is not read again
    for file in ("manifest.json", "examples.jsonl", "visual.safetensors", "acoustic.safetensors"):
        assert (broken / file).read_bytes() == (whole / file).read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_converted_outlasts_a_loss_of_power(
    files: Any, tmp_path: Path, disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_EVERY", 0.0)
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    assert disk.holds(tmp_path / "c")
    assert disk.knows_name(tmp_path / "c")


_KILLED = """
import os, signal, sys
from pathlib import Path
from cmsbert_fast.data import convert, open_source
convert._EVERY = 0.0
source = open_source(sys.argv[1])
read, seen = source.read, []
def dying(group, report):
    seen.append(group)
    for item in read(group, report):
        yield item
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
source.read = dying
convert.convert(source, Path(sys.argv[2]))
"""


def test_a_killed_conversion_continues_to_the_same_result(files: Any, tmp_path: Path) -> None:
    random, edges = files.random, np.arange(201) / 10
    times = np.stack([edges[:-1], edges[1:]], axis=1)
    videos = [f"vid{k}" for k in range(5)]
    words = np.array([[f"w{k}".encode()] for k in range(20)])
    spoken = np.stack([np.arange(20), np.arange(1, 21)], axis=1)
    files.csd("COVAREP", "COVAREP", {v: (random.normal(size=(200, 3)), times) for v in videos})
    files.csd("words", "words", dict.fromkeys(videos, (words, spoken)))
    files.csd("labels", "labels", {v: (np.ones((4, 1)), [[0, 5], [5, 10], [10, 15], [15, 20]]) for v in videos})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    convert.convert(open_source(files.folder), whole)
    result = subprocess.run([sys.executable, "-c", _KILLED, str(files.folder), str(broken)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert not broken.exists()
    seen: list[str] = []
    convert.convert(interrupted(open_source(files.folder), 99, seen), broken)
    assert seen == videos[2:]
    for file in whole.iterdir():
        assert (broken / file.name).read_bytes() == file.read_bytes()


def opened_for(visual: str, path: Path) -> Source:
    """A source as if it had been opened for another visual stream."""
    return replace(open_source(path), request=DataRequest.of(path, visual=visual))


def test_another_or_altered_source_begins_anew(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_EVERY", 0.0)
    path = files.pickle("mosi.pkl", files.mag(4))
    target, seen = tmp_path / "c", []
    for after in (1, 1):
        with pytest.raises(KeyboardInterrupt):
            convert.convert(interrupted(opened_for("x", path), after, seen), target)
    assert seen == ["train", "dev", "dev"]
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        convert.convert(interrupted(opened_for("y", path), 0, seen), target)
    assert seen == ["train"]
    files.pickle("mosi.pkl", files.mag(5))
    convert.convert(open_source(path), target)
    assert_same(read_corpus(target), read_corpus(path))


@pytest.mark.parametrize("kind", ["segments", "csd", "mag"])
def test_folds_and_transcripts_are_inputs_too(
    kind: str, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is edited after an interruption is not mixed with what was read before; the hash tells it."""
    monkeypatch.setattr(convert, "_EVERY", 0.0)
    target, altered = tmp_path / "c", tmp_path / "folds.json"
    names = {"segments": ["a", "b"], "csd": ["a", "b", "c"], "mag": ["vidtrain", "viddev", "vidtest"]}[kind]
    altered.write_text(json.dumps({"train": names}))
    path, hashes = files.folder, []
    if kind == "segments":
        (path / "segments.csv").write_text("id,label\na,1\nb,2\n")
        (path / "transcripts").mkdir()
        for name in names:
            (path / "transcripts" / f"{name}.txt").write_text("so good")
    else:
        path = write(kind, files)
    edits = [(altered, json.dumps({"test": names}))]
    if kind == "segments":
        edits.append((path / "transcripts" / "a.txt", "so bad"))
    for file, content in edits:
        source = open_source(path, folds=altered)
        hashes.append(convert.source_hash(source.files))
        seen: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            convert.convert(breaking(source, 1), target)
        file.write_text(content)
        convert.convert(interrupted(open_source(path, folds=altered), 99, seen), target)
        assert len(seen) == len(source.groups)  # from the beginning
        assert_same(read_corpus(target), read_corpus(path, folds=altered))
        hashes.append(json.loads((target / "manifest.json").read_text())["source"]["sha256"])
        assert hashes[-1] != hashes[-2]
        shutil.rmtree(target)


def breaking(source: Source, after: int) -> Source:
    """A source that is broken off between two groups."""
    original, seen = source.read, []

    def read(group: str, report: Any) -> Iterator[Any]:
        if len(seen) == after:
            raise KeyboardInterrupt
        seen.append(group)
        return original(group, report)

    return replace(source, read=read)


def test_an_existing_target_is_left_alone(files: Any, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="exists"):
        convert.convert(open_source(write("mag", files)), tmp_path / "c")


def test_a_folder_of_the_users_is_left_alone(files: Any, tmp_path: Path) -> None:
    source, partial = open_source(write("mag", files)), tmp_path / "c.partial"
    partial.mkdir()
    for name in ("thesis.txt", "examples.jsonl"):
        (partial / name).write_text("mine")
        with pytest.raises(DataError, match="no conversion wrote"):
            convert.convert(source, tmp_path / "c")
        assert (partial / name).read_text() == "mine"
        assert len(list(partial.iterdir())) == 1
        (partial / name).unlink()
    convert.convert(source, tmp_path / "c")  # an empty one is used


def test_a_users_file_among_those_of_a_broken_off_conversion_is_kept(files: Any, tmp_path: Path) -> None:
    path, seen = write("mag", files), []
    with pytest.raises(KeyboardInterrupt):
        convert.convert(interrupted(open_source(path), 0, seen), tmp_path / "c")
    note = tmp_path / "c.partial" / "note.txt"
    note.write_text("mine")
    with pytest.raises(DataError, match="no conversion wrote"):
        convert.convert(opened_for("other", path), tmp_path / "c")
    note.unlink()
    convert.convert(opened_for("other", path), tmp_path / "c")
    assert_same(read_corpus(tmp_path / "c"), read_corpus(path))


def test_a_place_that_cannot_be_written_is_one_sentence(files: Any, tmp_path: Path) -> None:
    source = open_source(write("mag", files))
    (tmp_path / "c.partial").write_text("a file")
    (tmp_path / "folder").write_text("a file")
    (tmp_path / "d.partial").symlink_to(files.folder)
    for target in ("c", "folder/c", "d"):
        with pytest.raises(DataError, match="Choose another folder"):
            convert.convert(source, tmp_path / target)


def test_two_conversions_do_not_share_a_folder(files: Any, tmp_path: Path) -> None:
    path = write("mag", files)
    outer, read = open_source(path), open_source(path).read

    def reading(group: str, report: Any) -> Iterator[Any]:
        with pytest.raises(DataError, match="another conversion"):
            convert.convert(open_source(path), tmp_path / "c")
        return read(group, report)

    convert.convert(replace(outer, read=reading), tmp_path / "c")
    assert_same(read_corpus(tmp_path / "c"), read_corpus(path))
