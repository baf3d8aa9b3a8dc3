"""Converted once: exact, lazy, atomic, resumable; and what the commands say."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cmsbert_fast import CMSBertProcessor
from cmsbert_fast.data import Corpus, DataError, convert, open_source, read_corpus
from cmsbert_fast.data.__main__ import main
from cmsbert_fast.data.embedded import embedded_tokenizer
from cmsbert_fast.data.source import Source


def assert_same(found: Corpus, meant: Corpus) -> None:
    assert found.classes == meant.classes
    assert (found.visual_size, found.acoustic_size) == (meant.visual_size, meant.acoustic_size)
    assert found.standardise == meant.standardise
    assert str(found.report) == str(meant.report)
    assert list(found.splits) == list(meant.splits)
    for split, examples in meant.splits.items():
        assert len(found.splits[split]) == len(examples)
        for a, b in zip(found.splits[split], examples, strict=True):
            assert (a.id, a.words, a.label, a.aligned) == (b.id, b.words, b.label, b.aligned)
            assert type(a.label) is type(b.label)
            for modality in ("visual", "acoustic"):
                x, y = getattr(a, modality), getattr(b, modality)
                assert x.dtype == y.dtype == np.float32
                assert x.shape == y.shape
                assert x.tobytes() == y.tobytes()


def write(kind: str, files: Any) -> Path:
    """A source of some format."""
    if kind == "segments":
        files.table(
            [[f"v_{k}", s, k, k + 1, k / 3, "some words"] for k, s in enumerate(["train", "valid", "test", "train"])]
        )
        edges = np.arange(41) / 10
        times = np.stack([edges[:-1], edges[1:]], axis=1)
        files.csd("COVAREP", "COVAREP", {"v": (files.random.normal(size=(40, 5)), times)})
        return files.folder
    if kind == "misa":
        for split, content in files.misa(True).items():
            files.pickle(f"{split}.pkl", content)
        return files.folder
    content = {"mmsa": lambda: files.mmsa(False), "mag": files.mag, "funny": files.funny}[kind]()
    return files.pickle(f"{kind}.pkl", content)


@pytest.mark.parametrize("kind", ["segments", "misa", "mmsa", "mag", "funny"])
def test_the_round_trip_is_exact(kind: str, files: Any, tmp_path: Path) -> None:
    path = write(kind, files)
    target = tmp_path / "converted"
    convert.convert(open_source(path), target)
    assert_same(read_corpus(target), read_corpus(path))
    assert sorted(p.suffix for p in target.iterdir()) in (
        [".json", ".jsonl", ".safetensors"],
        [".json", ".jsonl", ".safetensors", ".safetensors"],
    )


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


def test_frames_stay_on_disk(files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    corpus = read_corpus(tmp_path / "c")
    example = corpus.splits["train"][1]
    assert not example.visual.flags.owndata
    assert not example.visual.flags.writeable
    assert [e.id for e in corpus.splits["train"][1:]] == [e.id for e in list(corpus.splits["train"])[1:]]
    assert corpus.splits["train"][-1].id == list(corpus.splits["train"])[-1].id
    with pytest.raises(IndexError):
        corpus.splits["train"][99]


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


def test_another_or_altered_source_begins_anew(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_EVERY", 0.0)
    path = files.pickle("mosi.pkl", files.mag(4))
    target, seen = tmp_path / "c", []
    for after in (1, 1):
        with pytest.raises(KeyboardInterrupt):
            convert.convert(interrupted(open_source(path), after, seen), target, {"visual": ("x",)})
    assert seen == ["train", "dev", "dev"]
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        convert.convert(interrupted(open_source(path), 0, seen), target, {"visual": ("y",)})
    assert seen == ["train"]
    files.pickle("mosi.pkl", files.mag(5))
    convert.convert(open_source(path), target)
    assert_same(read_corpus(target), read_corpus(path))


def test_an_existing_target_is_left_alone(files: Any, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="exists"):
        convert.convert(open_source(write("mag", files)), tmp_path / "c")


def test_choices_for_converted_data(files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    folds = tmp_path / "folds.json"
    folds.write_text('{"train": ["vidtest"], "test": ["vidtrain[0]"]}')
    corpus = read_corpus(tmp_path / "c", folds=folds, visual="none")
    assert corpus.report.counts == {"train": 3, "test": 1}
    assert (corpus.visual_size, corpus.splits["train"][0].visual.shape) == (0, (0, 0))
    for wrong in ({"words": "x"}, {"label": "x"}, {"visual": "x"}, {"fold": 1}):
        with pytest.raises(DataError):
            read_corpus(tmp_path / "c", **wrong)


@pytest.mark.parametrize("file", ["manifest.json", "examples.jsonl", "visual.safetensors"])
def test_damaged_converted_data(file: str, files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    path = tmp_path / "c" / file
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"", b"[]", data.replace(b'"version": 1', b'"version": 9')):
        if broken == data:
            continue
        path.write_bytes(broken)
        with pytest.raises(DataError, match="Convert"):
            read_corpus(tmp_path / "c")
    path.unlink()
    with pytest.raises(DataError):
        read_corpus(tmp_path / "c")


def half_a_picture(_: Any, path: Path, **__: Any) -> None:
    Path(path).write_bytes(b"half")
    raise OSError("the disk is full")


def test_commands(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("segments", files)
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    for part in ("2 train, 1 valid, 1 test", "acoustic: 5 features, 40 frames", "2.0 words an example", "labels"):
        assert part in said
    assert main(["convert", str(path), str(tmp_path / "c")]) == 0
    picture = tmp_path / "one.png"
    assert main(["inspect", str(tmp_path / "c"), "--picture", str(picture), "--id", "v_2"]) == 0
    assert "drew v_2" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    before = sorted(tmp_path.iterdir())
    picture.write_bytes(b"an older picture")
    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", half_a_picture)
        assert main(["inspect", str(tmp_path / "c"), "--picture", str(picture)]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert picture.read_bytes() == b"an older picture"
    assert sorted(tmp_path.iterdir()) == before  # and nothing else is left
    for wrong in (
        ["inspect", str(tmp_path / "missing")],
        ["inspect", str(path), "--visual", "nothing"],
        ["inspect", str(path), "--picture", str(picture), "--id", "nobody"],
        ["inspect", str(path), "--picture", str(tmp_path / "one.what")],
        ["convert", str(path), str(tmp_path / "c")],
    ):
        code = main(wrong)
        error = capsys.readouterr().err
        assert code == 2
        assert len(error.strip().splitlines()) == 1


def test_training_takes_the_statistics_without_reading_frames(mosi_folder: Path, tmp_path: Path) -> None:
    convert.convert(open_source(mosi_folder), tmp_path / "c")
    corpus = read_corpus(tmp_path / "c")
    assert corpus.statistics is not None
    fitted = CMSBertProcessor(embedded_tokenizer()).fit(corpus.splits["train"])
    known = CMSBertProcessor(embedded_tokenizer()).set_statistics(corpus.statistics)
    assert known.visual_mean is fitted.visual_mean is None
    np.testing.assert_allclose(known.acoustic_mean, fitted.acoustic_mean, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(known.acoustic_std, fitted.acoustic_std, rtol=1e-12, atol=1e-15)


def test_folds_by_video_on_converted_data(files: Any, tmp_path: Path) -> None:
    """As on the source itself: videos, frames and altered values of what the folds name."""
    files.table([["aa", "v1", 1, "so good"], ["bb", "v2", 1, "so bad"]], "id\tvideo\tlabel\ttext")
    (files.folder / "audio").mkdir()
    for name, value in (("aa", 1.0), ("bb", np.nan)):
        np.save(files.folder / "audio" / f"{name}.npy", np.full((5, 2), value))
    folds = tmp_path / "folds.json"
    convert.convert(open_source(files.folder), tmp_path / "c")
    for content in ({"train": ["v1"], "test": ["v2"]}, {"train": ["v1"]}, {"test": ["v2"]}):
        folds.write_text(json.dumps(content))
        found, meant = (read_corpus(path, folds=folds).report for path in (tmp_path / "c", files.folder))
        assert (found.counts, found.frames, found.non_finite) == (meant.counts, meant.frames, meant.non_finite)
        assert found.frames == {"acoustic": 5 * sum(found.counts.values())}
    folds.write_text('{"train": ["nothing"]}')
    with pytest.raises(DataError, match="none of the examples"):
        read_corpus(tmp_path / "c", folds=folds)


def test_converted_data_without_labels(files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("funny", files)), tmp_path / "c")
    corpus = read_corpus(tmp_path / "c", labels=False)
    assert corpus.classes is None
    assert {e.label for e in corpus.splits["train"]} == {None}


MANIFESTS: list[tuple[tuple[str, ...], Any]] = [
    (("report", "widths"), [1]),
    (("report", "widths", "visual"), float("inf")),
    (("report", "widths", "visual"), -4),
    (("report", "widths", "smell"), 4),
    (("report", "counts"), 3),
    (("report", "notes"), [1]),
    (("report", "source"), None),
    (("report", "tallies"), {"x": "y"}),
    (("report", "non_finite"), None),
    (("report", "surprise"), 1),
    (("statistics",), [1]),
    (("statistics", "visual"), 1),
    (("statistics", "visual", "mean"), [1.0]),
    (("statistics", "visual", "mean"), [float("nan")] * 4),
    (("statistics", "visual", "std"), [-1.0] * 4),
    (("statistics", "visual", "std"), ["1"] * 4),
    (("classes",), 3),
    (("classes",), [1]),
    (("name",), None),
    (("standardise",), "yes"),
    (("version",), [1]),
]


@pytest.mark.parametrize(("keys", "value"), MANIFESTS)
def test_a_strangers_manifest(keys: tuple[str, ...], value: Any, files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    manifest = json.loads(path.read_text())
    part = manifest
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="Convert"):
        read_corpus(tmp_path / "c")


LINES = [
    {"words": "hi"},
    {"words": [1, {}]},
    {"label": "x"},
    {"label": True},
    {"label": [1]},
    {"id": [1]},
    {"visual": 1.0},
    {"split": ["train"]},
    {"video": 3},
    {"non_finite": {"visual": "many"}},
]


@pytest.mark.parametrize("line", [*LINES, None, [1], 5])
def test_a_strangers_lines(line: Any, files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    path = tmp_path / "c" / "examples.jsonl"
    entries = [json.loads(text) for text in path.read_text().splitlines()]
    entries[0] = entries[0] | line if isinstance(line, dict) else line
    path.write_text("\n".join(map(json.dumps, entries)) + "\n")
    with pytest.raises(DataError, match="Convert"):
        read_corpus(tmp_path / "c")


def test_a_strangers_numbers_of_frames_and_classes(files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("funny", files)), tmp_path / "c")
    path = tmp_path / "c" / "examples.jsonl"
    entries = [json.loads(text) for text in path.read_text().splitlines()]
    for changes in (({"label": 2}, {}), ({"label": 0.0}, {}), ({"visual": -5}, {"visual": 13})):
        altered = [a | b for a, b in zip(entries, changes, strict=False)] + entries[2:]
        path.write_text("\n".join(map(json.dumps, altered)) + "\n")
        with pytest.raises(DataError, match="Convert"):
            read_corpus(tmp_path / "c")


@pytest.mark.parametrize("kind", ["type", "another"])
def test_a_strangers_tensors(kind: str, files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    path = tmp_path / "c" / "visual.safetensors"
    frames = load_file(path)["frames"]
    others = {"a": np.ones((3, 3), dtype=np.float32)} if kind == "another" else {}
    save_file({"frames": frames.astype(np.float64 if kind == "type" else np.float32), **others}, path)
    with pytest.raises(DataError, match="F32" if kind == "type" else "alone"):
        read_corpus(tmp_path / "c")


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
        convert.convert(open_source(path), tmp_path / "c", {"visual": ("other",)})
    note.unlink()
    convert.convert(open_source(path), tmp_path / "c", {"visual": ("other",)})
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
