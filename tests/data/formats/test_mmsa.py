"""MMSA's pickles."""

from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, read_corpus
from cmsbert_fast.data.example import Alignment
from tests.data.formats.expected import clean


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("aligned", [True, False])
def test_mmsa(files: Any, aligned: bool, protocol: int) -> None:
    root = files.mmsa(aligned)
    corpus = read_corpus(files.pickle("data.pkl", root, protocol))
    assert corpus.report.counts == {"train": 4, "valid": 4, "test": 4}
    assert (corpus.visual_size, corpus.acoustic_size, corpus.classes) == (3, 2, None)
    for split, examples in corpus.splits.items():
        part = root[split]
        for k, example in enumerate(examples):
            assert example.id == part["id"][k]
            assert example.words == tuple(part["raw_text"][k].split())
            assert example.label == part["regression_labels"][k]
            n = len(example.words)
            v = slice(1, n + 1) if aligned else slice(0, part["vision_lengths"][k])
            a = slice(1, n + 1) if aligned else slice(0, part["audio_lengths"][k])
            np.testing.assert_array_equal(example.visual, clean(part["vision"][k, v]))
            np.testing.assert_array_equal(example.acoustic, clean(part["audio"][k, a]))
            assert example.visual.dtype == example.acoustic.dtype == np.float32
            assert (example.alignment is Alignment.WORDS) == aligned
    inside = sum(0 < 1 < (2 if aligned else root[s]["audio_lengths"][0]) for s in root)
    assert corpus.report.non_finite.get("acoustic", 0) == inside
    assert "acoustic: " in str(corpus.report)


def test_mmsa_labels_of_every_kind(files: Any) -> None:
    root = files.mmsa(False)
    path = files.pickle(
        "sims.pkl", root | {s: p | {"regression_labels_T": p["regression_labels"] / 2} for s, p in root.items()}
    )
    half = read_corpus(path, label="regression_labels_T")
    assert half.splits["train"][1].label == root["train"]["regression_labels"][1] / 2
    sentiment = read_corpus(path, label="classification_labels")
    assert sentiment.classes == ("negative", "zero", "positive")
    assert sentiment.splits["test"][2].label == int(root["test"]["classification_labels"][2])
    assert isinstance(sentiment.splits["test"][2].label, int)
    named = read_corpus(path, label="annotations")
    assert named.classes == ("Negative", "Neutral", "Positive")
    assert [e.label for e in named.splits["train"]] == [0, 1, 2, 2]
    with pytest.raises(DataError, match="regression_labels_T"):
        read_corpus(path, label="happiness")


def test_mmsa_labels_in_a_column(files: Any) -> None:
    root = files.mmsa(False)
    meant = [float(value) for value in root["train"]["regression_labels"]]
    for part in root.values():
        part["regression_labels"] = part["regression_labels"][:, None]
    assert [e.label for e in read_corpus(files.pickle("data.pkl", root)).splits["train"]] == meant


def test_mmsa_labels_that_are_no_number_are_dropped(files: Any) -> None:
    root = files.mmsa(False)
    root["test"]["regression_labels"][2] = np.nan
    report = read_corpus(files.pickle("data.pkl", root)).report
    assert report.counts["test"] == 3
    assert report.dropped == {"its label is not a number": 1}


def test_mmsa_frames_beyond_the_length_are_padding_whatever_they_hold(files: Any) -> None:
    root = files.mmsa(False)
    root["train"]["vision"][0, 4:] = np.nan
    root["train"]["vision_lengths"][0] = 4
    corpus = read_corpus(files.pickle("data.pkl", root))
    assert len(corpus.splits["train"][0].visual) == 4
    assert "visual" not in corpus.report.non_finite


def test_mmsa_aligned_to_word_pieces_is_not_called_aligned_to_words(files: Any) -> None:
    root = files.mmsa(True)
    root["train"]["text_bert"][0, 1, :] = 1
    root["train"]["vision"][0, 4:8] = 1.5
    corpus = read_corpus(files.pickle("data.pkl", root))
    assert corpus.splits["train"][0].alignment is Alignment.PIECES
    assert len(corpus.splits["train"][0].visual) == 8  # all between [CLS] and [SEP], the last one of zeros too
    assert corpus.splits["train"][1].alignment is Alignment.WORDS


def test_chinese_text_is_words_of_one_character(files: Any) -> None:
    root = files.mmsa(False)
    root["train"]["raw_text"] = np.array(["我不想去 OK", "好", "a b", "c"])
    corpus = read_corpus(files.pickle("sims.pkl", root))
    assert corpus.splits["train"][0].words == ("我", "不", "想", "去", "OK")


def test_mmsa_with_parts_that_do_not_fit(files: Any) -> None:
    for key, value in (
        ("vision", np.ones((3, 9, 3))),
        ("vision_lengths", [99, 1, 1, 1]),
        ("vision_lengths", [1, 1]),
        ("vision", np.ones((4, 9))),
        ("id", np.array(["x"] * 4)),
    ):
        root = files.mmsa(False)
        root["valid"][key] = value
        with pytest.raises(DataError):
            read_corpus(files.pickle("data.pkl", root))


def test_mmsa_trailing_frames_of_zeros_are_frames_where_a_mask_tells_the_length(files: Any) -> None:
    root = files.mmsa(True)
    for key in ("vision", "audio"):
        root["train"][key][0, 3] = 0  # "it was good": the face was not found during the last word
    corpus = read_corpus(files.pickle("data.pkl", root))
    example = corpus.splits["train"][0]
    assert (example.alignment, len(example.visual), len(example.acoustic)) == (Alignment.WORDS, 3, 3)
    assert not example.visual[2].any()


def test_mmsa_words_of_a_text_that_its_tokenizer_cut_are_not_called_aligned(files: Any) -> None:
    """With eight words or more in ten places there may be pieces that the file has no frame of."""
    root = files.mmsa(True)
    texts = ["a b c d e f g h", "a b c d e f g", "a", "a"]
    for name, fill in (("vision", 1.5), ("audio", 0.5)):
        for k, text in enumerate(texts):
            root["train"][name][k, 1 : len(text.split()) + 1] = fill
    root["train"]["raw_text"] = np.array(texts)
    for k, text in enumerate(texts):
        root["train"]["text_bert"][k, 1] = np.arange(10) < len(text.split()) + 2
    examples = read_corpus(files.pickle("data.pkl", root)).splits["train"]
    assert [e.alignment for e in examples] == [Alignment.PIECES, *[Alignment.WORDS] * 3]
    assert [len(e.visual) for e in examples] == [8, 7, 1, 1]


def test_entries_that_are_no_split_are_not_read(files: Any) -> None:
    """As later versions write them."""
    root = files.mmsa(True)
    expected = read_corpus(files.pickle("data.pkl", root))
    found = read_corpus(files.pickle("data.pkl", {**root, "config": {"audio": {"tool": "x"}}, "note": "y"}))
    assert found.report.counts == expected.report.counts
    assert [e.id for e in found.splits["test"]] == [e.id for e in expected.splits["test"]]
    assert "not read: config, note" in str(found.report)
    with pytest.raises(DataError, match="none of"):  # a split that is damaged is not left out
        read_corpus(files.pickle("data.pkl", {**root, "test": {"config": 1}}))
