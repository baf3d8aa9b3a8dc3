"""What labels are, what a task makes of them, and what is said about doubtful ones."""

from collections.abc import Sequence

import numpy as np
import pytest

from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from cmsbert_fast.data.example import Corpus, Example, Label, no_frames, outlines
from cmsbert_fast.data.inspection import summary
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.task import LabelKind, Labels, labels_of, warnings_of, with_task

F = np.float32


def corpus(labels: Sequence[Label | None], classes: tuple[str, ...] | None = None, several: bool = False) -> Corpus:
    """A corpus whose examples, e0, e1, ..., go to train, valid and test in turn."""
    examples = [Example(f"e{k}", ("a",), label, no_frames(), no_frames()) for k, label in enumerate(labels)]
    splits = {split: examples[k::3] for k, split in enumerate(("train", "valid", "test"))}
    return Corpus("some", splits, 0, 0, ReadReport("some"), classes, several=several)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([-3.0, 1.2, 3.0], LabelKind.SENTIMENT),
        ([-1.2, 0.4], LabelKind.SENTIMENT),
        ([-1.0, 0.2, 1.0], LabelKind.SIMS),
        ([float(F(-0.8)), float(F(1.0)) + 1e-7], LabelKind.SIMS),
        ([-3.1, 2.0], LabelKind.SIGNED),
        ([0.0, 0.33, 3.0], LabelKind.SCORE),  # an emotion of MOSEI
        ([1.0, 7.0, None], LabelKind.SCORE),  # POM
        ([-1.0, 0.0], LabelKind.SCORE),
        ([None], LabelKind.SCORE),
    ],
)
def test_kinds_of_scores(labels: list[float | None], kind: LabelKind) -> None:
    assert labels_of(corpus(labels)) == Labels(kind)


def test_kinds_of_classes() -> None:
    assert labels_of(corpus([0, 1], ("a", "b"))) == Labels(LabelKind.CLASSES, ("a", "b"))
    assert labels_of(corpus([(0, 1)], ("a", "b"), several=True)) == Labels(LabelKind.SEVERAL, ("a", "b"))


def test_whole_numbers_become_classes() -> None:
    found = with_task(corpus([2.0, -1.0, 10.0, None, 2.0]), "classification")
    assert found.classes == ("-1", "2", "10")
    assert [e.label for e in found.splits["train"]] == [1, None]
    assert [e.label for e in found.splits["valid"][::-1]] == [1, 0]
    assert [o.label for o in outlines(found.splits["test"])] == [2]
    assert all(type(o.label) is int for o in outlines(found.splits["valid"]))


def test_strengths_become_present_and_absent() -> None:
    found = with_task(corpus([0.0, 1 / 3, 3.0]), "classification")
    assert found.classes == ("absent", "present")
    assert [part[0].label for part in found.splits.values()] == [0, 1, 1]
    assert "the class absent is 0" in str(found.report)


def test_tasks_that_labels_do_not_allow() -> None:
    scores, named = corpus([0.5, -1.5]), corpus([0, 1], ("a", "b"))
    assert with_task(scores, None) is scores
    assert with_task(scores, "regression") is scores
    assert with_task(named, "classification") is named
    with pytest.raises(
        DataError, match=r"neither names, nor whole numbers, nor strengths from 0 on, but -1\.5 to 0\.5"
    ):
        with_task(scores, "classification")
    with pytest.raises(DataError, match="names of classes"):
        with_task(named, "regression")
    with pytest.raises(DataError, match="'ranking' is neither"):
        with_task(scores, "ranking")


def test_doubtful_labels_are_told() -> None:
    whole = [0.0, 1.0] * 5
    assert "all labels are whole numbers (0, 1) and are predicted as scores" in warnings_of(corpus(whole))[0]
    assert warnings_of(corpus(whole), "regression") == []
    assert warnings_of(with_task(corpus(whole), "classification"), "classification") == []
    ordinary = list(np.linspace(-3, 3, 30))
    assert warnings_of(corpus(ordinary)) == []
    assert warnings_of(corpus([-3.0, 3.0, 0.0])) == []
    (far,) = warnings_of(corpus([*ordinary, 57.0]))
    assert "1 of 31 labels are far from all others, such as 57 of 'e30'" in far
    assert "every label is 0.5" in warnings_of(corpus([0.5] * 4))[0]
    assert warnings_of(corpus([0.0] * 20 + [0.33, 3.0])) == []  # an emotion is mostly absent
    assert warnings_of(corpus([None])) == []


def test_classes_that_are_not_trained_are_told() -> None:
    told = warnings_of(corpus([0, 1, 2, 1, 1, 2], ("a", "b", "c")))
    assert told == ["no example of the class 'c' is in the train split, but the test split has it."]
    several = corpus([(1, 0), (0, 1), (0, 0), (1, 0), (1, 1), (0, 1)], ("a", "b"), several=True)
    assert warnings_of(several) == [
        "no example of the class 'b' is in the train split, but the valid and test split has it."
    ]


def test_a_table_of_classes_by_number(files) -> None:
    rows = [[f"v_{k}", split, "", "", k % 2, "good film"] for k, split in enumerate(("train", "valid", "test") * 2)]
    folder = files.table(rows).parent
    assert read_corpus(folder).classes is None
    found = read_corpus(folder, task="classification")
    assert found.classes == ("0", "1")
    assert {e.id: e.label for part in found.splits.values() for e in part} == {f"v_{k}": k % 2 for k in range(6)}
    assert read_corpus(folder, task="classification", labels=False).classes is None
    convert.convert(open_source(folder), folder.parent / "converted")
    again = read_corpus(folder.parent / "converted", task="classification")
    assert (again.classes, again.splits["train"][1].label) == (("0", "1"), 1)
    assert "warning: all labels are whole numbers (0, 1)" in summary(read_corpus(folder))
    assert "labels: classes" in summary(found)


def test_several_labels_are_converted_to_the_bit(files) -> None:
    root = files.misa(columns=6)
    for split, content in root.items():
        for _, label, _ in content:
            label[:] = np.maximum(label, 0)
        files.pickle(f"{split}.pkl", content)
    convert.convert(open_source(files.folder, label="happy,fear"), files.folder.parent / "converted")
    direct, again = read_corpus(files.folder, label="happy,fear"), read_corpus(files.folder.parent / "converted")
    assert (again.several, again.classes) == (True, ("happy", "fear"))
    for split, examples in direct.splits.items():
        assert [e.label for e in again.splits[split]] == [e.label for e in examples]
    assert "labels: several labels at once" in summary(again)
    lines = (files.folder.parent / "converted" / "examples.jsonl").read_text()
    (files.folder.parent / "converted" / "examples.jsonl").write_text(lines.replace('"label": [', '"label": [2, ', 1))
    with pytest.raises(DataError, match="a label is not 2 of 0 and 1"):
        read_corpus(files.folder.parent / "converted")


def test_classes_by_number_in_misas_files(files) -> None:
    root = files.misa()
    for split, content in root.items():
        for k, (_, label, _) in enumerate(content):
            label[:] = k % 2
        files.pickle(f"{split}.pkl", content)
    found = read_corpus(files.folder, task="classification")
    assert found.classes == ("0", "1")
    assert [e.label for e in found.splits["train"]] == [0, 1, 0]
    assert "all labels are whole numbers (0, 1)" in summary(read_corpus(files.folder))
