"""What is made of a pickle stays in proportion to the file."""

import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from cmsbert_fast.data.__main__ import main
from cmsbert_fast.data.untrusted import content, limits, pickles


def test_one_array_named_a_thousand_times_is_refused(files: Any) -> None:
    words, rows = ["a"] * 2, np.zeros((2, 200_000))
    root = {"train": [((words, rows, rows), 0.5, f"v[{k}]") for k in range(1000)]}
    path = files.pickle("mag.pkl", root)
    assert path.stat().st_size < 10_000_000
    with pytest.raises(DataError, match="many times larger"):
        read_corpus(path)


def _peak(path: Path, **choices: Any) -> int:
    """The most bytes that a refused reading held, in Python's own allocations."""
    tracemalloc.start()
    with pytest.raises(DataError):
        read_corpus(path, **choices)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


LIMIT = 4 * (limits.MEMORY_FLOOR + (1 << 20) * limits.MEMORY_FACTOR) // 3


@pytest.mark.parametrize("kind", ["mmsa", "funny"])
def test_a_text_of_spaces_named_again_and_again_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MEMORY_FLOOR", 1 << 20)
    blank, count, rows = " " * 60_000, 200, np.ones((1, 2))
    root: dict[str, Any] = {"raw_text": [blank] * count, "id": [f"v_{k}" for k in range(count)]}
    part = (blank, rows, rows, rows)
    path = tmp_path / "file.pkl"
    train = root | {"regression_labels": [0.5] * count} if kind == "mmsa" else [(part, part, 1, 0)] * count
    path.write_bytes(pickle.dumps({"train": train}, 4))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="many times larger"):
        read_corpus(path)


@pytest.mark.parametrize("kind", ["frames that are cut off", "wide word"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_an_array_of_which_nothing_is_left_is_charged_all_the_same(
    kind: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example looks at all of it, and decodes it where a protocol before 3 wrote it."""
    monkeypatch.setattr(limits, "MEMORY_FLOOR", 1 << 20)
    rows, words = np.zeros((20_000, 1)), np.array(["a"], dtype="U50000")
    inner = (0, rows, rows, ["a"], 0, 0) if kind != "wide word" else (0, rows[:1], rows[:1], words)
    path = tmp_path / "train.pkl"
    path.write_bytes(pickle.dumps([(inner, 1.0, f"v[{k}]") for k in range(100)], protocol))
    assert path.stat().st_size < 350_000
    with pytest.raises(DataError, match="many times larger"):
        read_corpus(path)


@pytest.mark.parametrize("kind", [str, bytes])
def test_a_text_that_is_too_long_is_refused(kind: type) -> None:
    long = "é" * 100_000
    assert content.text_of(pickles.loads(pickle.dumps(long if kind is str else long.encode(), 4))) == long
    for text in (long + "e", "e" * 400_001):
        value = pickles.loads(pickle.dumps(text if kind is str else text.encode(), 4))
        with pytest.raises(DataError, match="longer than"):
            content.text_of(value)


@pytest.mark.parametrize("kind", ["mmsa", "mag", "mult", "funny"])
@pytest.mark.parametrize("labels", [True, False])
def test_one_split_under_many_names_is_refused_before_it_is_read(
    kind: str, labels: bool, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = str(files.table([["a", "train", 0, 1, 1, "b"]]))
    one = (files.mmsa(aligned=False) if kind == "mmsa" else getattr(files, kind)())["train"]
    path = files.pickle("many.pkl", {f"split {k}": one for k in range(65)})
    monkeypatch.setattr(content, "items_of", lambda value: pytest.fail("it was read"))
    with pytest.raises(DataError, match="65 splits"):
        open_source(path, words=table if kind == "mult" else None, labels=labels)


def test_labels_of_splits_that_are_one_object_are_looked_at_once(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"raw_text": ["a"] * 9, "id": [f"v_{k}" for k in range(9)], "regression_labels": ["glad", "sad", None] * 3}
    path = files.pickle("mmsa.pkl", {f"split {k}": one for k in range(60)})
    seen, items_of = [], content.items_of
    monkeypatch.setattr(content, "items_of", lambda value: seen.append(value) or items_of(value))
    assert open_source(path).classes == ("glad", "sad")
    assert len(seen) == 1


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_a_long_word_named_a_thousand_times_is_decoded_once(kind: str, tmp_path: Path) -> None:
    word: Any = "z" * 70_000 if kind == "text" else b"z" * 70_000
    rows = np.ones((1, 2))
    path = tmp_path / "mag.pkl"
    path.write_bytes(pickle.dumps({"train": [(([word] * 6000, rows, rows), 0.5, "v[0]")]}, 4))
    assert path.stat().st_size < 100_000
    assert _peak(path) < LIMIT


def test_words_and_ids_are_charged_their_size(tmp_path: Path) -> None:
    path, count = tmp_path / "mmsa.pkl", 5000
    root = {"raw_text": [" " + "z" * 60_000] * count, "id": [f"v_{k}" for k in range(count)]}
    path.write_bytes(pickle.dumps({"train": root | {"regression_labels": [0.5] * count}}, 4))
    assert _peak(path) < LIMIT
    with pytest.raises(DataError, match="many times larger"):  # and what convert writes is as bounded
        convert.convert(open_source(path), tmp_path / "c")
    assert sum(p.stat().st_size for p in (tmp_path / "c.partial").iterdir()) < LIMIT


@pytest.mark.parametrize("kind", ["mag", "mmsa", "annotations", "mult"])
def test_arrays_of_short_texts_are_no_bombs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMORY_FLOOR", 1 << 20)
    count, rows = 300_000, np.ones((1, 2))
    short = np.array([f"{k:x}" for k in range(count)], dtype="S5")
    root: Any = {"raw_text": short, "id": short, "regression_labels": np.zeros(count, dtype="f2")}
    if kind == "mag":
        root = [((["a"], rows, rows), 1.0, "v[0]"), ((short, rows, rows), 1.0, "v[1]")]
    elif kind == "annotations":
        root["regression_labels"] = short.astype("U5")
    elif kind == "mult":
        root = {"vision": rows, "audio": rows, "labels": rows, "id": short.reshape(count, 1)}
    path, table = tmp_path / "file.pkl", tmp_path / "words.tsv"
    path.write_bytes(pickle.dumps({"train": root}, 4))
    table.write_text("id\ttext\n1\tyes\n")
    assert _peak(path, words=str(table)) < limits.MEMORY_FACTOR * path.stat().st_size + limits.MEMORY_FLOOR


@pytest.mark.parametrize("kind", ["mag", "misa", "funny"])
def test_what_is_dropped_for_its_label_costs_nothing(
    kind: str, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of a million words can be named by a million examples, none of which leaves anything to charge."""
    many, nan, rows = ["many"] * 9, float("nan"), np.ones((1, 2))
    if kind == "funny":
        part = (many, rows, rows, rows)
        path = files.pickle("file.pkl", {"train": [((["a"], *part[1:]), part, 1, 0)] + [(part, part, 2, nan)] * 9})
    elif kind == "mag":
        path = files.pickle("file.pkl", {"train": [((["a"], rows, rows), 1.0, "v"), ((many, rows, rows), nan, "w")]})
    else:
        frames = [[0.0, 1.0]] * 5
        items = [(([], rows, rows, ["a"]), 1.0, "v"), ((many, frames, frames, many, 1, 1), nan, "w")]
        path = files.pickle("train.pkl", items)
    items_of, array_of = content.items_of, content.array_of
    monkeypatch.setattr(content, "items_of", lambda v: pytest.fail("it was read") if len(v) > 1 else items_of(v))
    monkeypatch.setattr(
        content, "array_of", lambda v: pytest.fail("it was read") if isinstance(v, list) else array_of(v)
    )
    report = read_corpus(path).report
    assert report.counts == {"train": 1}
    assert list(report.dropped) == ["its label is not a number"]


@pytest.mark.parametrize("choice", ["folds", "none"])
def test_what_is_left_out_after_it_was_read_is_charged(choice: str, files: Any, tmp_path: Path) -> None:
    rows, one = np.zeros((1000, 1000)), np.zeros((1, 1000))
    items = [((["a"], one, one), 0.5, "v"), *[((["a"], rows, rows), 0.5, f"w[{k}]") for k in range(100)]]
    path, folds = files.pickle("mag.pkl", {"train": items}), tmp_path / "folds.json"
    folds.write_text(json.dumps({"train": ["v"]}))
    choices: Any = {"folds": folds} if choice == "folds" else {"visual": "none", "acoustic": "none"}
    with pytest.raises(DataError, match="many times larger"):
        read_corpus(path, **choices)


@pytest.mark.parametrize("kind", ["mag", "mmsa", "array"])
def test_halves_of_characters_are_replaced(
    kind: str, files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, texts = np.ones((1, 1, 2)), ["w\udc80 x"]
    root: Any = {"raw_text": texts, "id": ["a\ud800"], "annotations": ["good\udfff"], "vision": rows}
    if kind == "mag":
        root = [((["w\udc80", "x"], np.ones((2, 2)), np.ones((2, 2))), 0.5, "a\ud800")]
    elif kind == "array":
        root |= {"raw_text": np.array(texts), "id": np.array(root["id"])}
    path = files.pickle("file.pkl", {"x\udc80": root})
    label = [] if kind == "mag" else ["--label", "annotations"]
    assert main(["inspect", str(path), *label]) == 0
    assert main(["convert", str(path), str(tmp_path / "c"), *label]) == 0
    capsys.readouterr().out.encode()
    for source in (path, tmp_path / "c"):
        corpus = read_corpus(source, label=label[1] if label and source == path else None)
        (example,) = corpus.splits["x\ufffd"]
        assert (example.id, example.words) == ("a\ufffd", ("w\ufffd", "x"))
        assert corpus.classes in (None, ("good\ufffd",))


def test_a_shared_list_of_labels_is_not_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, rows = [0.5] * 2000, np.ones((1, 2))
    path = tmp_path / "mag.pkl"
    path.write_bytes(pickle.dumps({"train": [((["a"], rows, rows), labels, "v")]}, 4))
    with pytest.raises(DataError, match="too many columns"):
        read_corpus(path)
    monkeypatch.setattr(content, "array_of", lambda value: pytest.fail("it was looked through"))
    assert content.few_of(labels, 64) is None
