"""UR-FUNNY's own folder of pickles."""

from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from cmsbert_fast.data.example import Alignment
from tests.data.formats.expected import clean
from tests.data.sources import assert_same

WORDS = ["that", "is", "the", "joke"]


def folder(files: Any, first: bool = False, lists: bool = False) -> dict[str, Any]:
    """The six files, of the first or second version."""
    root: dict[str, Any] = files.funny_sdk(first, lists)
    for name, content in root.items():
        files.pickle(f"{name}.pkl", content)
    return root


@pytest.mark.parametrize("lists", [False, True])
def test_the_second_version(files: Any, lists: bool) -> None:
    root = folder(files, lists=lists)
    corpus = read_corpus(files.folder)
    assert corpus.report.counts == {"train": 2, "valid": 2, "test": 2}
    assert corpus.report.dropped == {"it is not in language_sdk.pkl": 1}
    assert (corpus.visual_size, corpus.acoustic_size, corpus.classes) == (371, 81, ("no humour", "humour"))
    example = corpus.splits["valid"][1]
    assert (example.id, example.words, example.label, example.alignment) == ("103", tuple(WORDS), 1, Alignment.WORDS)
    np.testing.assert_array_equal(
        example.visual, clean(np.array(root["openface_features_sdk"][103]["punchline_features"]))
    )
    assert corpus.splits["test"][1].words == ("it", "is", "the", "sentence")
    convert.convert(open_source(files.folder), files.folder / "c")
    assert_same(read_corpus(files.folder / "c"), corpus)
    bare = read_corpus(files.folder, labels=False, visual="none")
    assert (bare.visual_size, bare.classes, bare.splits["train"][0].label) == (0, None, None)


def test_the_first_version_has_numbers_of_words(files: Any) -> None:
    folder(files, first=True)
    with pytest.raises(DataError, match=r"Get UR-FUNNY's second version with language_sdk.pkl, or add word_list.pkl"):
        read_corpus(files.folder)
    files.pickle("word_list.pkl", ["<pad>", *WORDS])
    assert read_corpus(files.folder).splits["train"][0].words == tuple(WORDS)
    files.pickle("word_list.pkl", WORDS)
    with pytest.raises(DataError, match="a word has a number beyond the 4"):
        read_corpus(files.folder)


def test_files_that_are_missing(files: Any) -> None:
    folder(files)
    with pytest.raises(DataError, match=r"Give the folder of language_sdk\.pkl"):
        read_corpus(files.folder / "language_sdk.pkl")
    (files.folder / "openface_features_sdk.pkl").unlink()
    corpus = read_corpus(files.folder)
    assert corpus.visual_size == 0
    assert "no visual stream: there is no openface_features_sdk.pkl" in str(corpus.report)
    (files.folder / "humor_label_sdk.pkl").unlink()
    assert read_corpus(files.folder, labels=False).report.counts["train"] == 2
    with pytest.raises(DataError, match=r"Add humor_label_sdk\.pkl"):
        read_corpus(files.folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("language_sdk", [1], "it is not UR-FUNNY's"),
        ("language_sdk", {100: 5}, "not built as"),
        ("humor_label_sdk", dict.fromkeys(range(100, 106), 7), "label is 7"),
        ("data_folds", {"train": [[1]]}, "not built as"),
        ("covarep_features_sdk", {100: {"punchline_features": [[1.0], [1.0, 2.0]]}}, "different widths"),
        ("covarep_features_sdk", {100: {"punchline_features": [["a"]]}}, "Expected an array of numbers"),
    ],
)
def test_other_content_is_refused(files: Any, name: str, content: Any, message: str) -> None:
    folder(files)
    files.pickle(f"{name}.pkl", content)
    with pytest.raises(DataError, match=message):
        read_corpus(files.folder)
