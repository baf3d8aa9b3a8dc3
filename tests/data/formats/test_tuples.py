"""MAG-BERT's, MISA's and UR-FUNNY's pickles."""

from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, read_corpus
from cmsbert_fast.data.example import Alignment
from tests.data.formats.expected import clean


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_mag(files: Any, protocol: int) -> None:
    root = files.mag()
    root["train"][0][0][2][0, 0] = np.nan
    corpus = read_corpus(files.pickle("mosi.pkl", root, protocol))
    assert corpus.report.counts == {"train": 3, "valid": 3, "test": 3}
    assert corpus.report.non_finite == {"acoustic": 1}
    for split, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        for example, ((words, visual, acoustic), label, segment) in zip(corpus.splits[split], root[name], strict=True):
            assert (example.id, example.words, example.alignment) == (segment, tuple(words), Alignment.WORDS)
            assert example.label == float(label[0, 0])
            np.testing.assert_array_equal(example.visual, clean(visual))
            np.testing.assert_array_equal(example.acoustic, clean(acoustic))


@pytest.mark.parametrize("lengths", [False, True])
def test_misa_and_mmim(files: Any, lengths: bool) -> None:
    root = files.misa(lengths)
    for split, content in root.items():
        files.pickle(f"{split}.pkl", content)
    for path, counts in (
        (files.folder, {"train": 3, "valid": 3, "test": 3}),
        (files.folder / "dev.pkl", {"valid": 3}),
    ):
        corpus = read_corpus(path)
        assert corpus.report.counts == counts
        for example, (inner, label, segment) in zip(corpus.splits["valid"], root["dev"], strict=True):
            words = inner[3]
            assert (example.id, example.words, example.alignment) == (
                segment,
                tuple(words),
                Alignment.NONE if lengths else Alignment.WORDS,
            )
            assert example.label == float(label[0, 0])
            n = (len(words) + 1, len(words) + 2) if lengths else (len(words), len(words))
            np.testing.assert_array_equal(example.visual, clean(inner[1][: n[0]]))
            np.testing.assert_array_equal(example.acoustic, clean(inner[2][: n[1]]))


def test_misa_emotions_are_columns(files: Any) -> None:
    root = files.misa(columns=7)
    for split, content in root.items():
        files.pickle(f"{split}.pkl", content)
    assert read_corpus(files.folder, label="sad").splits["train"][0].label == float(root["train"][0][1][0, 2])
    assert read_corpus(files.folder, label="2").splits["train"][0].label == float(root["train"][0][1][0, 2])
    with pytest.raises(DataError, match="anger"):
        read_corpus(files.folder, label="envy")


def test_misa_labels_of_six_columns_are_emotions(files: Any) -> None:
    """Labels of six columns have no sentiment; by the names of seven each would be its neighbour."""
    root = files.misa(columns=6)
    for split, content in root.items():
        files.pickle(f"{split}.pkl", content)
    for number, name in enumerate(("happy", "sad", "anger", "surprise", "disgust", "fear")):
        for label in (name, str(number)):
            found = read_corpus(files.folder, label=label).splits["train"]
            assert [e.label for e in found] == [float(label[0, number]) for _, label, _ in root["train"]]
    for label in ("sentiment", "6", None):
        with pytest.raises(DataError, match=r"--label 0 to 5 \(or happy, sad, .* with commas\)"):
            read_corpus(files.folder, label=label)


@pytest.mark.parametrize("columns", [6, 7])
def test_misa_emotions_at_once(files: Any, columns: int) -> None:
    root = files.misa(columns=columns)
    emotions = columns - 6
    for split, content in root.items():
        for _, label, _ in content:
            label[:] = np.maximum(label, 0)
        files.pickle(f"{split}.pkl", content)
    corpus = read_corpus(files.folder, label="emotions")
    assert (corpus.several, corpus.classes) == (True, ("happy", "sad", "anger", "surprise", "disgust", "fear"))
    for example, (_, label, _) in zip(corpus.splits["train"], root["train"], strict=True):
        assert example.label == tuple(int(value > 0) for value in label[0, emotions:])
    chosen = read_corpus(files.folder, label="fear, happy")
    assert chosen.classes == ("fear", "happy")
    assert chosen.splits["train"][0].label == tuple(int(root["train"][0][1][0, emotions + k] > 0) for k in (5, 0))
    root["train"][0][1][0, -1] = -1
    files.pickle("train.pkl", root["train"])
    with pytest.raises(DataError, match=r"train.pkl\[0\] has a negative value"):
        read_corpus(files.folder, label="emotions")
    bare = read_corpus(files.folder, label="emotions", labels=False)
    assert (bare.several, bare.classes, bare.splits["train"][0].label) == (False, None, None)


def test_ur_funny(files: Any) -> None:
    root = files.funny()
    corpus = read_corpus(files.pickle("ur_funny.pkl", root))
    assert corpus.report.counts == {"train": 3, "valid": 3, "test": 3}
    assert corpus.classes == ("no humour", "humour")
    assert (corpus.visual_size, corpus.acoustic_size) == (91, 81)
    example = corpus.splits["train"][1]
    assert (example.id, example.words, example.label, example.alignment) == (
        "1",
        ("that", "is", "the", "joke"),
        1,
        Alignment.WORDS,
    )
    assert isinstance(example.label, int)
    np.testing.assert_array_equal(example.visual, clean(root["train"][1][0][1]))


def test_several_columns_of_labels_need_a_choice(files: Any) -> None:
    rows = np.ones((1, 2))
    path = files.pickle("mag.pkl", {"train": [((["a"], rows, rows), np.arange(7.0)[None], "v[0]")]})
    with pytest.raises(DataError, match="7 columns"):
        read_corpus(path)
    for split, content in files.misa(columns=7).items():
        files.pickle(f"{split}.pkl", content)
    with pytest.raises(DataError, match="7 columns"):
        read_corpus(files.folder)


def test_two_files_for_one_split_of_misa_are_refused(files: Any) -> None:
    for split, content in files.misa().items():
        files.pickle(f"{split}.pkl", content)
    files.pickle("valid.pkl", files.misa()["dev"])
    with pytest.raises(DataError, match=r"dev\.pkl, valid\.pkl"):
        read_corpus(files.folder)


@pytest.mark.parametrize("whole", [True, False])
def test_any_file_of_misa_is_the_split_of_its_name(files: Any, whole: bool) -> None:
    root = files.misa()
    path = files.pickle("test.pkl", root["test"])
    if not whole:
        files.pickle("train.pkl", root["train"])
    assert read_corpus(files.folder if whole else path).report.counts == {"test": 3}


def test_misa_pairs_without_segments(files: Any) -> None:
    """MISA's cache of UR-FUNNY."""
    root = files.misa()
    for split, content in root.items():
        files.pickle(f"{split}.pkl", [(inner, np.array([[k % 2]])) for k, (inner, _, _) in enumerate(content)])
    corpus = read_corpus(files.folder)
    assert [(e.id, e.label) for e in corpus.splits["valid"]] == [
        ("valid[0]", 0.0),
        ("valid[1]", 1.0),
        ("valid[2]", 0.0),
    ]
    for example, (inner, _, _) in zip(corpus.splits["test"], root["test"], strict=True):
        assert example.words == tuple(inner[3])
        np.testing.assert_array_equal(example.visual, clean(inner[1]))
    assert read_corpus(files.folder / "test.pkl", task="classification").classes == ("0", "1")
