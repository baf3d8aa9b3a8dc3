"""IEMOCAP."""

from typing import Any

import pytest

from cmsbert_fast.data import DataError, read_corpus
from tests.data.formats.expected import find


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
