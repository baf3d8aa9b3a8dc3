"""Converted once: exact, lazy, atomic, resumable; and what the commands say."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cmsbert_fast import CMSBertProcessor
from cmsbert_fast.data import Corpus, DataError, DataRequest, convert, open_source, read_corpus
from cmsbert_fast.data.__main__ import main
from cmsbert_fast.data.embedded import embedded_tokenizer
from cmsbert_fast.data.example import outlines
from cmsbert_fast.data.folds import NO_FOLD
from cmsbert_fast.data.formats import converted
from cmsbert_fast.data.source import Source
from cmsbert_fast.training import trainer as loop


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
    edges = np.arange(41) / 10
    times = np.stack([edges[:-1], edges[1:]], axis=1)
    if kind == "segments":
        files.table(
            [[f"v_{k}", s, k, k + 1, k / 3, "some words"] for k, s in enumerate(["train", "valid", "test", "train"])]
        )
        files.csd("COVAREP", "COVAREP", {"v": (files.random.normal(size=(40, 5)), times)})
        return files.folder
    if kind == "iemocap":
        emotions = ["ang", "hap", "exc", "sad", "neu", "fru"]
        rows = [[f"Ses0{1 + k % 5}F_impro01_{'FM'[k // 5 % 2]}{k:03d}", emotions[k % 6], "so ☃"] for k in range(30)]
        files.table(rows, "id\temotion\ttext")
        (files.folder / "audio").mkdir()
        for name, _, _ in rows[1:]:  # one has no frames
            np.save(files.folder / "audio" / f"{name}.npy", files.random.normal(size=(files.random.integers(1, 9), 3)))
        return files.folder
    if kind == "csd":
        spoken = np.array([[f"w{k}".encode()] for k in range(4)]), [[0, 1], [1, 2], [2, 3], [3, 4]]
        videos = ("a", "b", "c")
        files.csd("TimestampedWords", "words", dict.fromkeys(videos, spoken))
        files.csd("Labels", "All Labels", {v: (files.random.normal(size=(2, 1)), [[0, 2], [2, 4]]) for v in videos})
        files.csd("FACET", "FACET 4.2", {v: (files.random.normal(size=(40, 4)), times) for v in videos})
        sound = {v: (np.where(np.arange(80).reshape(40, 2) == 7, -np.inf, 0.1), times) for v in videos[:2]}
        files.csd("COVAREP", "COVAREP", sound)  # with values that are not finite, and one video less
        return files.folder
    if kind in ("misa", "mmim"):
        for split, content in files.misa(kind == "mmim").items():
            files.pickle(f"{split}.pkl", content)
        return files.folder
    content = {
        "mmsa": lambda: files.mmsa(False),
        "mmsa aligned": lambda: files.mmsa(True),
        "mag": files.mag,
        "mult": files.mult,
        "mult unaligned": lambda: files.mult(False),
        "funny": files.funny,
    }[kind]()
    return files.pickle(f"{kind}.pkl", content)


def choices(kind: str, files: Any) -> dict[str, Any]:
    """With what a source is opened beside its path: words for MulT, folds for a .csd set, the fold of IEMOCAP."""
    if kind.startswith("mult"):
        table = files.folder.parent / "words.tsv"
        rows = [f"vid{v}_{k}\t{2.0 * k}\t{2.0 * k + 1.5}\thello there" for v in range(3) for k in range(2)]
        table.write_text("\n".join(["id\tstart\tstop\ttext", *rows]), encoding="utf-8")
        return {"words": str(table)}
    if kind == "csd":
        folds = files.folder.parent / "folds.json"
        folds.write_text('{"train": ["a"], "valid": ["b"], "test": ["c"]}')
        return {"folds": folds}
    return {"folds": "speaker", "fold": 3} if kind == "iemocap" else {}


# What every reader says that it reads, so that none is left out below.
FORMATS = {
    "segments": "table of segments",
    "iemocap": "IEMOCAP table",
    "csd": "CMU-MultimodalSDK streams",
    "mmsa": "MMSA, unaligned",
    "mmsa aligned": "MMSA, aligned",
    "mag": "MAG-BERT",
    "misa": "MISA",
    "mmim": "MISA",
    "mult": "MulT",
    "mult unaligned": "MulT",
    "funny": "UR-FUNNY",
}


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


def test_a_start_of_training_reads_no_more_frames_than_it_must(
    files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels and the rest of an outline come from the index; the fingerprint is that of the source all the same."""
    path = write("mag", files)
    convert.convert(open_source(path), tmp_path / "c")
    monkeypatch.setattr(loop, "FINGERPRINT_BYTES", 300)
    for left_out in ({}, {"visual": "none"}, {"acoustic": "none"}):
        meant, found = read_corpus(path, **left_out), read_corpus(tmp_path / "c", **left_out)
        for split, examples in meant.splits.items():
            assert list(outlines(found.splits[split])) == list(outlines(examples))
        assert loop.fingerprint(found) == loop.fingerprint(meant)
    read: list[int] = []
    original = converted.Mapped.__getitem__
    monkeypatch.setattr(converted.Mapped, "__getitem__", lambda self, k: read.append(k) or original(self, k))
    found = read_corpus(tmp_path / "c")
    loop.check_data(found)
    assert read == []
    loop.fingerprint(found)
    assert read == [0, 1, 2]  # one a split: of 27 words of 36 bytes, every fourth example of the nine


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_shows_progress_where_somebody_looks(
    terminal: bool, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    convert.convert(open_source(write("csd", files)), tmp_path / "c")
    said = capsys.readouterr().err
    assert ("converting data: 100%" in said) == ("3/3" in said) == terminal


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
        ["inspect", str(path), "--id", "v_2"],
        ["inspect", str(path), "--picture", str(tmp_path / "one.what")],
        ["convert", str(path), str(tmp_path / "c")],
    ):
        code = main(wrong)
        error = capsys.readouterr().err
        assert code == 2
        assert len(error.strip().splitlines()) == 1


def test_pictures_of_ids_and_words_that_look_like_formulas_or_are_long(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "one.png"
    assert main(["inspect", str(files.pickle("mmsa.pkl", files.mmsa(True))), "--picture", str(picture)]) == 0
    assert "drew vidtrain$_$0" in capsys.readouterr().out
    words = ["$5_", "\\frac$", "z" * 5000] * 300
    rows = np.ones((len(words), 2))
    path = files.pickle("mag.pkl", {"train": [((words, rows, rows), 0.5, "x$_$" * 1000)]})
    assert main(["inspect", str(path), "--picture", str(picture)]) == 0
    assert len(picture.read_bytes()) < 1_000_000


def test_training_takes_the_statistics_without_reading_frames(mosi_folder: Path, tmp_path: Path) -> None:
    convert.convert(open_source(mosi_folder), tmp_path / "c")
    corpus = read_corpus(tmp_path / "c")
    assert corpus.statistics is not None
    fitted = CMSBertProcessor(embedded_tokenizer()).fit(corpus.splits["train"])
    known = CMSBertProcessor(embedded_tokenizer()).set_statistics(corpus.statistics)
    assert known.visual_mean is fitted.visual_mean is None
    assert known.acoustic_mean == fitted.acoustic_mean
    assert known.acoustic_std == fitted.acoustic_std


def test_folds_by_video_on_converted_data(files: Any, tmp_path: Path) -> None:
    """As on the source itself: videos, frames, altered values and other counts of what the folds name."""
    rows = [["aa", "v1", 1, "so good"], ["bb", "v2", 1, "so bad"], ["cc", "v1", 1, "so"], ["dd", "v2", 1, "no"]]
    files.table([*rows, ["ee", "v2", 1, "yes"]], "id\tvideo\tlabel\ttext")
    (files.folder / "audio").mkdir()
    for name, value in (("aa", 1.0), ("bb", np.nan)):
        np.save(files.folder / "audio" / f"{name}.npy", np.full((5, 2), value))
    folds = tmp_path / "folds.json"
    convert.convert(open_source(files.folder), tmp_path / "c")
    for content in ({"train": ["v1"], "test": ["v2"]}, {"train": ["v1"]}, {"test": ["v2"]}):
        folds.write_text(json.dumps(content))
        found, meant = (read_corpus(path, folds=folds).report for path in (tmp_path / "c", files.folder))
        assert (found.counts, found.frames, found.non_finite) == (meant.counts, meant.frames, meant.non_finite)
        assert found.frames == {"acoustic": 5 * len(content)}
        assert found.tallies == meant.tallies
        assert sum(found.tallies.values()) == ("train" in content) + 2 * ("test" in content)  # cc, dd, ee have no frame
    folds.write_text('{"train": ["nothing"]}')
    with pytest.raises(DataError, match="none of the examples"):
        read_corpus(tmp_path / "c", folds=folds)
    assert read_corpus(tmp_path / "c", acoustic="none").report.tallies == {}


@pytest.mark.parametrize("converted_with", [{}, {"fold": 3}, {"folds": "random", "fold": 2}])
def test_iemocaps_folds_on_converted_data(converted_with: dict[str, Any], files: Any, tmp_path: Path) -> None:
    """Every fold is the source's, in its order, whichever was chosen in conversion."""
    emotions = ["ang", "hap", "exc", "sad", "neu", "fru"]
    rows = [
        # Dialogues are interleaved, and one line in seven has no text: lines are neither in the table's order nor all.
        [f"Ses0{1 + k % 5}F_x_{'FM'[k // 5 % 2]}{k}", f"d{k % 4}", emotions[k * 5 // 3 % 6], "so" if k % 7 else ""]
        for k in range(40)
    ]
    files.table(rows, "id\tvideo\temotion\ttext")
    (files.folder / "audio").mkdir()
    for k, (name, *_) in enumerate(rows):
        np.save(files.folder / "audio" / f"{name}.npy", np.full((1 + k % 3, 2), np.nan if k == 8 else k))
    convert.convert(open_source(files.folder, **converted_with), tmp_path / "c")
    assert_same(read_corpus(tmp_path / "c"), read_corpus(files.folder, **converted_with))
    for folds in (None, "speaker", "random"):
        for fold in range(1, 11):
            meant = read_corpus(files.folder, folds=folds, fold=fold)
            found = read_corpus(tmp_path / "c", folds=folds, fold=fold)
            assert_same(found, meant)
            assert found.statistics is None  # those that are stored are of another training split
    for wrong in ({"fold": 0}, {"fold": 11}, {"folds": "random"}):
        with pytest.raises(DataError, match="fold from 1 to 10"):
            read_corpus(tmp_path / "c", **wrong)


@pytest.mark.parametrize("converted_with", [{}, {"fold": 2}])
def test_a_column_of_folds_on_converted_data(converted_with: dict[str, Any], files: Any, tmp_path: Path) -> None:
    rows = [[f"v{k % 3}_{k}", ["train", "test"][k % 2], ["9", "10", "2", "2", ""][k % 5], k, "so"] for k in range(15)]
    files.table(rows, "id\tsplit\tfold\tlabel\ttext")
    convert.convert(open_source(files.folder, **converted_with), tmp_path / "c")
    for fold in (1, 2, 3):
        meant = read_corpus(files.folder, fold=fold)
        assert meant.report.dropped == {NO_FOLD: 3}
        assert_same(read_corpus(tmp_path / "c", fold=fold), meant)
    with pytest.raises(DataError, match="fold from 1 to 3"):
        read_corpus(tmp_path / "c", fold=4)


def test_folds_that_converted_data_do_not_have(files: Any, tmp_path: Path) -> None:
    path, folds = write("iemocap", files), tmp_path / "folds.json"
    whole = read_corpus(path)
    folds.write_text(json.dumps({"train": [e.id for e in whole.splits["all"]][:9]}))
    convert.convert(open_source(path, folds=folds), tmp_path / "file")  # less than all: its tenths are not the source's
    convert.convert(open_source(path), tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["folds"]  # as earlier versions of this program wrote it
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    for folder in ("file", "old"):
        for asked in ({"fold": 3}, {"folds": "speaker", "fold": 3}):
            with pytest.raises(DataError, match="JSON file of folds"):
                read_corpus(tmp_path / folder, **asked)
    assert_same(read_corpus(tmp_path / "file"), read_corpus(path, folds=folds))


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
    (("folds",), [1]),
    (("folds",), {"speaker": 1}),
    (("folds",), {"speaker": [1, -1]}),
    (("standardise",), "yes"),
    (("version",), [1]),
]


@pytest.mark.parametrize(("keys", "value"), MANIFESTS)
def test_an_altered_manifest(keys: tuple[str, ...], value: Any, files: Any, tmp_path: Path) -> None:
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
    {"parts": [1]},
    {"parts": {"speaker": "1"}},
    {"non_finite": {"visual": "many"}},
    {"label": float("nan")},
    {"label": 10**400},
    {"words": []},
    {"words": ["one"]},  # with frames of two
    {"aligned": 1},
    {"id": "vidtrain[1]"},  # the next one's
]


@pytest.mark.parametrize("line", [*LINES, None, [1], 5])
def test_altered_lines(line: Any, files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    path = tmp_path / "c" / "examples.jsonl"
    entries = [json.loads(text) for text in path.read_text().splitlines()]
    entries[0] = entries[0] | line if isinstance(line, dict) else line
    path.write_text("\n".join(map(json.dumps, entries)) + "\n")
    with pytest.raises(DataError, match="Convert"):
        read_corpus(tmp_path / "c")


def altered(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change the manifest, or all lines, of converted data."""
    path = folder / name
    lines = [path.read_text()] if name == "manifest.json" else path.read_text().splitlines()
    entries = [json.loads(text) for text in lines]
    for entry in entries:
        change(entry)
    path.write_text("\n".join(map(json.dumps, entries)) + "\n")


def test_a_split_without_examples_is_none(files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    altered(tmp_path / "c", "manifest.json", lambda m: m["report"]["counts"].update(more=0))
    assert main(["inspect", str(tmp_path / "c")]) == 0
    assert "more" not in capsys.readouterr().out


def test_what_a_file_says_is_text_and_no_command_of_the_terminal(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")

    def split(entry: dict[str, Any]) -> None:
        entry["split"] = {"train": "x\udc80"}.get(entry["split"], entry["split"])
        entry["words"] = [word + "\ud800" for word in entry["words"]]

    def manifest(entry: dict[str, Any]) -> None:
        entry["report"]["counts"]["x\udc80"] = entry["report"]["counts"].pop("train")
        entry["report"]["notes"] = ["\x1b[31mred\x07"]

    altered(tmp_path / "c", "examples.jsonl", split)
    altered(tmp_path / "c", "manifest.json", manifest)
    assert main(["inspect", str(tmp_path / "c")]) == 0
    said = capsys.readouterr().out
    assert "?[31mred?" in said
    assert "x\ufffd" in said
    assert {e.words[0][-1] for e in read_corpus(tmp_path / "c").splits["x\ufffd"]} == {"\ufffd"}
    assert str(DataError("\x1b]0;title\x07 \udc80")) == "?]0;title? ?"


def test_frames_that_are_not_finite_are_refused_where_they_are_read(files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("mag", files)), tmp_path / "c")
    path = tmp_path / "c" / "visual.safetensors"
    frames = load_file(path)["frames"].copy()
    frames[-1, 0] = np.nan
    save_file({"frames": frames}, path)
    assert main(["inspect", str(tmp_path / "c")]) == 0  # frames are not looked at
    test = read_corpus(tmp_path / "c").splits["test"]
    assert np.isfinite(test[0].visual).all()
    with pytest.raises(DataError, match="visual values"):
        test[len(test) - 1]


def test_a_closed_pipe_is_no_traceback(files: Any) -> None:
    command = [sys.executable, "-m", "cmsbert_fast.data", "inspect", str(write("mag", files))]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as "| head" does
        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 141


def test_altered_numbers_of_frames_and_classes(files: Any, tmp_path: Path) -> None:
    convert.convert(open_source(write("funny", files)), tmp_path / "c")
    path = tmp_path / "c" / "examples.jsonl"
    entries = [json.loads(text) for text in path.read_text().splitlines()]
    for changes in (({"label": 2}, {}), ({"label": 0.0}, {}), ({"visual": -5}, {"visual": 13})):
        altered = [a | b for a, b in zip(entries, changes, strict=False)] + entries[2:]
        path.write_text("\n".join(map(json.dumps, altered)) + "\n")
        with pytest.raises(DataError, match="Convert"):
            read_corpus(tmp_path / "c")


@pytest.mark.parametrize("kind", ["type", "another"])
def test_altered_tensors(kind: str, files: Any, tmp_path: Path) -> None:
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
