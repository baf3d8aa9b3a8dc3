"""IEMOCAP."""

from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from tests.data.formats.expected import clean, find
from tests.data.sources import assert_same


def iemocap_rows(count: int = 60) -> list[list[Any]]:
    emotions = ["ang", "hap", "exc", "sad", "neu", "fru", "xxx"]
    rows = []
    for k in range(count):
        session, sex = 1 + k % 5, "FM"[k // 5 % 2]
        rows.append([f"Ses0{session}F_impro01_{sex}{k:03d}", emotions[k % 7], "some words"])
    return rows


def test_iemocap_has_four_classes_and_ten_folds(files: Any) -> None:
    rows = iemocap_rows()
    files.table(rows, "id\temotion\ttext")
    whole = read_corpus(files.folder)
    assert "IEMOCAP" in whole.report.source
    assert whole.classes == ("angry", "happy", "sad", "neutral")
    assert list(whole.splits) == ["all"]
    kept = [row for row in rows if row[1] not in ("fru", "xxx")]
    assert whole.report.counts["all"] == len(kept)
    assert sum(whole.report.dropped.values()) == len(rows) - len(kept)
    assert find(whole, rows[1][0]).label == find(whole, rows[2][0]).label == 1  # happy and excited are one class
    for folds in (None, "speaker", "random"):
        tested: list[str] = []
        for fold in range(1, 11):
            corpus = read_corpus(files.folder, folds=folds, fold=fold)
            parts = {split: {e.id for e in examples} for split, examples in corpus.splits.items()}
            assert set(parts) == {"train", "valid", "test"}
            assert sum(map(len, parts.values())) == len(kept)
            tested += parts["test"]
            if folds != "random":
                speakers = {split: {(i[:5], i.rsplit("_", 1)[1][0]) for i in ids} for split, ids in parts.items()}
                assert len(speakers["test"]) == len(speakers["valid"]) == 1
                assert len(speakers["train"]) == 8
                assert not speakers["train"] & (speakers["test"] | speakers["valid"])
        assert sorted(tested) == sorted(row[0] for row in kept)
    with pytest.raises(DataError, match="1 to 10"):
        read_corpus(files.folder, fold=11)


def test_iemocaps_folds_are_those_of_training_in_prediction(files: Any) -> None:
    files.table(iemocap_rows(), "id\temotion\ttext")
    for folds in ("speaker", "random"):
        trained, predicted = (read_corpus(files.folder, folds=folds, fold=2, labels=known) for known in (True, False))
        for split, examples in trained.splits.items():
            assert {e.id for e in predicted.splits[split]} == {e.id for e in examples}


@pytest.mark.parametrize(("protocol", "python2"), [(2, True), (4, False)])
def test_the_pickle_of_dialoguernn(files: Any, protocol: int, python2: bool) -> None:
    parts = files.dialogues(python2)
    path = files.pickle("IEMOCAP_features_raw.pkl", parts, protocol)
    corpus = read_corpus(path)
    assert corpus.report.counts == {"train": 20, "test": 10}
    assert corpus.report.dropped == {"its emotion is fru, none of the four classes": 6}
    assert corpus.classes == ("angry", "happy", "sad", "neutral")
    assert "its own split is train and test; for one to validate, choose --fold" in str(corpus.report)
    assert [example.label for example in corpus.splits["train"][:5]] == [1, 2, 3, 0, 1]  # hap sad neu ang exc
    example = corpus.splits["test"][6]
    video = list(parts[0])[5]
    assert (example.id, example.words) == ("Ses01F_impro05_M001", ("Oh,", "café", "number", "1"))
    np.testing.assert_array_equal(example.acoustic, parts[4][video][1][None])
    np.testing.assert_array_equal(example.visual, clean(parts[5][video][1][None]))
    assert read_corpus(path, labels=False).report.counts == {"train": 24, "test": 12}
    tested = []
    for fold in range(1, 11):
        found = read_corpus(path, fold=fold)
        assert sum(found.report.counts.values()) == 30
        tested += [example.id for example in found.splits.get("test", ())]
    assert len(set(tested)) == len(tested) == 30
    convert.convert(open_source(path), files.folder / "c")
    assert_same(read_corpus(files.folder / "c", folds="random", fold=3), read_corpus(path, folds="random", fold=3))


def test_other_tuples_of_dialogues_are_named(files: Any) -> None:
    parts = files.dialogues()
    with pytest.raises(DataError, match="a tuple of 11 parts by dialogue, as DialogueRNN and its successors"):
        read_corpus(files.pickle("a.pkl", (*parts, [], [])))
    meld = (*parts[:5], parts[6], [], [], parts[2])
    with pytest.raises(DataError, match="pickle MELD and others; only IEMOCAP's of nine parts is read"):
        read_corpus(files.pickle("a.pkl", meld))
    video = next(iter(parts[0]))
    for place, value, message in (
        (2, [0] * 5, "differ in number of utterances"),
        (2, [7] * 6, "with the label 7"),
        (0, ["dia0_utt0"] * 6, "expected an id like"),
        (0, [f"{video}_F000"] * 6, "occurs twice"),
        (4, [["a"]] * 6, "array of numbers"),
    ):
        altered = [dict(part) if isinstance(part, dict) else part for part in parts]
        altered[place][video] = value
        with pytest.raises(DataError, match=message):
            read_corpus(files.pickle("a.pkl", tuple(altered)))
