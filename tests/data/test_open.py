"""Opening data of any format."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from tests.data.sources import ROWS, write


def test_paths_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(DataError, match=r"Check the path of the data"):
            read_corpus(path)

    def closed(self: Path, **_: Any) -> bool:  # root may look everywhere
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(DataError, match=r"Check the path of the data.*Permission denied"):
        read_corpus(tmp_path)


def test_folds_replace_the_splits_of_any_source(files: Any) -> None:
    path = files.pickle("mosi.pkl", files.mag())
    folds = files.folder.parent / "folds.json"
    folds.write_text(json.dumps({"train": ["vidtest"], "dev": ["viddev[0]"], "test": ["vidtrain"]}))
    corpus = read_corpus(path, folds=folds)
    assert corpus.report.counts == {"train": 3, "valid": 1, "test": 3}
    assert sum(corpus.report.dropped.values()) == 2
    assert {e.id for e in corpus.splits["train"]} == {f"vidtest[{k}]" for k in range(3)}
    folds.write_text(json.dumps([{"train": ["vidtest"]}, {"train": ["vidtrain"], "test": ["vidtest"]}]))
    assert read_corpus(path, folds=folds, fold=2).report.counts == {"train": 3, "test": 3}
    for content, fold in (("{", None), ("[]", 1), ('{"train": 3}', None), ('{"train": ["a"], "test": ["a"]}', None)):
        folds.write_text(content)
        with pytest.raises(DataError):
            read_corpus(path, folds=folds, fold=fold)


def test_a_modality_can_be_left_out(files: Any) -> None:
    corpus = read_corpus(files.pickle("mosi.pkl", files.mag()), visual="none")
    assert (corpus.visual_size, corpus.acoustic_size) == (0, 5)
    assert all(e.visual.shape == (0, 0) for e in corpus.splits["train"])


def test_what_is_unknown_is_refused_with_a_list_of_what_is_known(files: Any, tmp_path: Path) -> None:
    cases = [files.pickle("a.pkl", {"some": "thing"}), tmp_path / "nothing.bin", tmp_path / "empty"]
    cases[1].write_bytes(b"\0\1\2")
    cases[2].mkdir()
    for path in cases:
        with pytest.raises(DataError) as error:
            read_corpus(path)
        for known in ("MMSA", "MAG-BERT", "MISA", "MulT", "UR-FUNNY", "csd", "IEMOCAP", "table of segments"):
            assert known in str(error.value)
    with pytest.raises(DataError, match="does not exist"):
        read_corpus(tmp_path / "missing")


def test_files_of_another_shape_than_their_format(files: Any) -> None:
    rows = np.ones((2, 3))
    good = ((["a", "b"], rows, rows), 0.5, "v[0]")
    for bad in (
        ((["a", "b"], rows), 0.5, "v[1]"),
        ((["a", "b"], rows, "text"), 0.5, "v[1]"),
        ((["a", "b"], rows, rows), "positive", "v[1]"),
        ((["a", "b"], rows, np.ones((2, 9))), 0.5, "v[1]"),
        ((["a", {}], rows, rows), 0.5, "v[1]"),
        ((["a", "b"], rows, np.array([None, None])), 0.5, "v[1]"),
        ((["a", "b"], rows, rows), 0.5, "v[0]"),
        (7, 0.5, "v[1]"),
        None,
    ):
        with pytest.raises(DataError):
            read_corpus(files.pickle("mag.pkl", {"train": [good, bad]}))


def test_examples_without_text_or_label_are_dropped_and_counted(files: Any) -> None:
    rows = np.ones((2, 3))
    items = [
        ((["a", "b"], rows, rows), 0.5, "v[0]"),
        (([], rows, rows), 0.5, "v[1]"),
        ((["a", "b"], rows, rows), np.array([[np.nan]]), "v[2]"),
    ]
    report = read_corpus(files.pickle("mag.pkl", {"train": items})).report
    assert report.counts == {"train": 1}
    assert sorted(report.dropped.values()) == [1, 1]
    assert "dropped 1: it has no text" in str(report)


@pytest.mark.parametrize("kind", ["mmsa", "mag", "misa", "mult", "funny", "table"])
def test_data_without_labels_can_be_read_for_prediction(kind: str, files: Any) -> None:
    """What has no label, or NaN, is refused or dropped for training, and all there for prediction."""
    rows, words, count = np.ones((2, 3)), None, 1
    path = files.folder / "data.pkl"
    if kind == "mmsa":
        files.pickle("data.pkl", {"test": {"raw_text": ["a b"], "id": ["v_0"], "vision": rows[None]}})
    elif kind == "mag":
        files.pickle("data.pkl", {"test": [((["a", "b"], rows, rows), np.nan, "v_0")]})
    elif kind == "misa":
        for name in ("train", "test"):
            files.pickle(f"{name}.pkl", [(([0, 1], rows, rows, ["a", "b"]), None, f"{name}_0")])
        path, count = files.folder, 2
    elif kind == "mult":
        root = files.mult()
        for part in root.values():
            del part["labels"]
        files.pickle("data.pkl", root)
        words = str(files.table([["vid0_0", "train", 0, 1.5, 0, "yes"]]))
    elif kind == "funny":
        part = ("a joke", np.ones((2, 91)), np.ones((2, 81)), np.ones((2, 4)))
        files.pickle("data.pkl", {"test": [(part, part, 1, None)]})
    else:
        path = files.table([["v_0", "test", 0, 1, 0.5, "a b"]])
    if kind != "table":
        with pytest.raises(DataError):
            read_corpus(path, words=words)
    corpus = read_corpus(path, words=words, labels=False)
    assert sum(corpus.report.counts.values()) == count
    assert [e.label for examples in corpus.splits.values() for e in examples] == [None] * count
    assert not corpus.report.dropped or kind == "mult"
    assert corpus.classes is None


def test_the_embedded_corpus_without_labels() -> None:
    corpus = read_corpus("embedded", labels=False)
    assert {e.label for examples in corpus.splits.values() for e in examples} == {None}


def test_values_of_examples_that_the_folds_leave_out_are_not_counted(files: Any) -> None:
    path, folds = files.pickle("data.pkl", files.mmsa(False)), files.folder.parent / "folds.json"
    folds.write_text(json.dumps({"train": ["vidtrain$_$1", "vidtrain$_$2"]}))
    assert read_corpus(path).report.non_finite
    assert read_corpus(path, folds=folds).report.non_finite == {}
    rows = np.ones((3, 2))
    items = [((["a"], rows, rows), 0.5, f"v[{k}]") for k in range(3)]
    folds.write_text(json.dumps({"train": ["v[1]"]}))
    report = read_corpus(files.pickle("mag.pkl", {"train": items}), folds=folds).report
    assert list(report.tallies.values()) == [1]


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("id\tlabel\ttext", ["a\tnan\thi", "b\t1\tyo"]),
        ("id\tlabel\ttext", ["a\tunknown\thi", "b\t1\tyo"]),
        ("id\temotion\ttext", ["Ses01F_impro01_F000\tfru\thi", "Ses01F_impro01_F001\tang\tyo"]),
    ],
)
def test_prediction_does_not_depend_on_the_labels_of_a_table(files: Any, header: str, lines: list[str]) -> None:
    path = files.folder / "segments.tsv"
    path.write_text("\n".join([header, *lines]) + "\n")
    for label in (None, "another"):
        corpus = read_corpus(path, labels=False, label=label)
        assert [(e.words, e.label) for e in corpus.splits["all"]] == [(("hi",), None), (("yo",), None)]
        assert corpus.classes is None


def test_one_csd_file_and_converted_data_are_told_what_to_do(files: Any) -> None:
    path = files.csd("COVAREP", "COVAREP", {"a": (np.ones((2, 2)), [[0, 1], [1, 2]])})
    with pytest.raises(DataError, match="Give the folder"):
        read_corpus(path)
    convert.convert(open_source(files.pickle("mag.pkl", files.mag())), files.folder / "c")
    with pytest.raises(DataError, match="already converted"):
        open_source(files.folder / "c")


def _torch(path: Path, legacy: bool) -> bytes:
    import torch

    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=not legacy)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["data.pkl", "train.pkl", "data.bin", "label.csv"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"x" * 100), "compressed with gzip"),
        (b"PK\x03\x04" + b"x" * 60, "it is a zip archive"),
        ("new", "written by torch.save"),
        ("legacy", "written by torch.save"),
        (b"\n<!DOCTYPE html>\n<html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
        (bytes(10_000), "begins with zero bytes only"),
        (b"", "it is empty"),
    ],
    ids=["gzip", "zip", "torch", "old-torch", "page", "lfs", "zeros", "empty"],
)
def test_first_bytes_tell_what_a_file_is(tmp_path: Path, name: str, content: Any, message: str) -> None:
    """Alone, and as the only file of its folder."""
    if isinstance(content, str):
        content = _torch(tmp_path / "saved", content == "legacy")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(content)
    for path in (tmp_path / "data" / name, tmp_path / "data"):
        with pytest.raises(DataError) as error:
            read_corpus(path)
        assert message in str(error.value)
        assert name in str(error.value)


@pytest.mark.parametrize("name", ["v1_0.npy", "v1_0.npz", "v1_0.h5", "v1_0.csv", "COVAREP.csd"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
        (gzip.compress(b"x" * 100), "compressed with gzip"),
        (bytes(10_000), "begins with zero bytes only"),
    ],
    ids=["lfs", "gzip", "zeros"],
)
def test_first_bytes_of_frames_tell_it_too(files: Any, name: str, content: bytes, message: str) -> None:
    files.table(ROWS[:1])
    path = files.folder / name if name.endswith(".csd") else files.folder / "visual" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        read_corpus(files.folder)


@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
def test_a_table_of_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "label.csv").write_bytes("video_id,clip_id,text,label,标注\nv,1,你好,0.5,x\n".encode(encoding))
    for path in (tmp_path, tmp_path / "label.csv"):
        with pytest.raises(DataError, match=r"Save label.csv as a UTF-8 text table"):
            read_corpus(path)


def _closed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file that may not be read; root may read everything."""
    original = os.open

    def refuse(path: Any, *rest: Any, **options: Any) -> int:
        if Path(os.fspath(path)).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("name", ["segments.tsv", "v1_0.npy", "v1_0.npz", "v1_0.h5", "v1_0.csv", "v1_0.txt", "a.pkl"])
def test_a_file_that_may_not_be_read_is_named(files: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    header = "id\tsplit\tstart\tstop\tlabel"
    files.table([row[:5] for row in ROWS[:1]], header)
    (files.folder / "text").mkdir()
    (files.folder / "text" / "v1_0.txt").write_text("so good")
    (files.folder / "visual").mkdir()
    path = files.folder / "visual" / name
    if name.endswith(".npz"):
        np.savez(path, np.ones((2, 2)))
    elif name.endswith(".h5"):
        with h5py.File(path, "w") as file:
            file["features"] = np.ones((2, 2))
    elif name.endswith(".csv"):
        path.write_text("a,b\n1,2\n")
    else:
        np.save(files.folder / "visual" / "v1_0.npy", np.ones((2, 2)))
    source = files.pickle(name, files.mag()) if name == "a.pkl" else files.folder
    read_corpus(source)
    _closed(monkeypatch, name)
    with pytest.raises(DataError, match=rf"Make .*{name} readable for you"):
        read_corpus(source)


@pytest.mark.parametrize("count", [100_001, 131_073, 300_000])
def test_texts_that_are_too_long_are_named(tmp_path: Path, count: int) -> None:
    path = tmp_path / "segments.csv"
    path.write_text(f"id,label,text\na,1,ok\nb,1,{'x' * count}\n")
    with pytest.raises(DataError, match=r"Shorten the texts? of .*100,000 characters"):
        read_corpus(path)
    path.write_text(f"id,label,text\na,1,ok\nb,1,{'x' * 100_000}\n")
    assert len(read_corpus(path).splits["all"][1].words[0]) == 100_000


@pytest.mark.parametrize(
    ("header", "row", "advice"),
    [
        ("id,text,score", "a,hi,1", "give --label score"),
        ("id,text,score,rating", "a,hi,1,2", "give --label NAME: score, rating"),
        ("id,text", "a,hi", "add one"),
        ("Unnamed: 0,id,text,score", "0,a,hi,1", "give --label score"),  # pandas' row numbers
        ("id,text,label", "a,hi,", ""),
    ],
)
def test_a_table_without_labels_says_which_column_may_be_they(
    tmp_path: Path, header: str, row: str, advice: str
) -> None:
    path = tmp_path / "segments.csv"
    path.write_text(f"{header}\n{row}\n")
    message = f"no labels: no column is called label, sentiment, emotion; {advice}"
    assert (message in str(read_corpus(path).report)) == bool(advice)
    assert "no labels" not in str(read_corpus(path, labels=False).report)


@pytest.mark.parametrize("kind", ["table", "pickle", "csd", "converted"])
def test_ids_of_folds_that_name_no_example_are_counted(files: Any, kind: str) -> None:
    folds = files.folder.parent / "folds.json"
    if kind == "csd":
        write("csd", files)
        folds.write_text(json.dumps({"train": ["a", "b[0]"], "valid": ["b[1]", "gone", "gone[3]"], "test": ["c"]}))
        source = files.folder
    elif kind == "table":
        files.table(ROWS)
        folds.write_text(json.dumps({"train": ["v1"], "valid": ["gone"], "test": ["v2_0", "gone[3]"]}))
        source = files.folder
    else:
        source = files.pickle("mag.pkl", files.mag())
        if kind == "converted":
            convert.convert(open_source(source), files.folder / "c")
            source = files.folder / "c"
        folds.write_text(json.dumps({"train": ["vidtrain"], "valid": ["gone"], "test": ["vidtest[0]", "gone[3]"]}))
    total = len([name for names in json.loads(folds.read_text()).values() for name in names])
    assert f"2 of {total} ids of folds.json name no example: gone, gone[3]" in str(
        read_corpus(source, folds=folds).report
    )
    if kind != "converted":
        convert.convert(open_source(source, folds=folds), files.folder.parent / "d")
        assert f"2 of {total} ids of folds.json" in str(read_corpus(files.folder.parent / "d").report)
    assert "ids of folds" not in str(read_corpus(source).report)


def test_segments_that_are_there_twice_are_counted(files: Any) -> None:
    files.table([*ROWS, ["v1_9", "train", 0.0, 2.0, 1.0, "so good"]])
    twice = "1 segments have the same times as another of their video: they are there twice"
    assert twice in str(read_corpus(files.folder).report)
    (files.folder / "segments.tsv").unlink()
    write("csd", files)
    assert "they are there twice" not in str(read_corpus(files.folder).report)
    (files.folder / "Labels.csd").unlink()
    files.csd("Labels", "All Labels", {v: (np.ones((2, 1)), [[0, 2], [0, 2]]) for v in ("a", "b")})
    assert twice.replace("1", "2", 1) in str(read_corpus(files.folder).report)
