"""MulT's pickles."""

from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, read_corpus
from tests.data.formats.expected import clean


@pytest.mark.parametrize("aligned", [True, False])
def test_mult_needs_words_from_elsewhere(files: Any, aligned: bool) -> None:
    root = files.mult(aligned)
    path = files.pickle("mosi_data.pkl", root)
    with pytest.raises(DataError, match=r"--words.*no words"):
        read_corpus(path)
    rows = [
        [f"vid{v}_{k}", "x", 2.0 * k + 0.001, 2.0 * k + 1.499, 0, "hello there" if k else "hi"]
        for v in range(3)
        for k in range(2)
    ]
    table = files.table(rows)
    corpus = read_corpus(path, words=str(table))
    assert corpus.report.counts == {"train": 2, "valid": 2, "test": 2}
    assert sum(corpus.report.dropped.values()) == 3
    example = corpus.splits["valid"][1]
    assert (example.id, example.words) == ("vid1_1", ("hello", "there"))
    assert example.label == float(root["valid"]["labels"][1, 0, 0])
    np.testing.assert_array_equal(example.visual, clean(root["valid"]["vision"][1, -3:]))  # the padding is in front
    np.testing.assert_array_equal(example.acoustic, clean(root["valid"]["audio"][1, -3:]))


def test_mult_unaligned_arrays_of_one_length_lose_their_padding_each_by_itself(files: Any) -> None:
    root = files.mult(aligned=False)
    for part in root.values():  # as in MOSEI: 500 steps each, the text has 50
        part["vision"] = files.random.normal(size=(3, 9, 4))
        part["audio"] = files.random.normal(size=(3, 9, 5))
        part["vision"][:, :-3] = part["audio"][:, :-7] = 0
        part["id"] = np.array([f"v_{k}" for k in range(3)])
    table = files.table([["v_0", "train", 0, 1, 0, "yes"]])
    path = files.pickle("mosei_data_noalign.pkl", {"train": root["train"]})
    example = read_corpus(path, words=str(table)).splits["train"][0]
    assert (len(example.visual), len(example.acoustic)) == (3, 7)


def test_mult_ids_may_be_names(files: Any) -> None:
    root = files.mult()
    for split, part in root.items():
        part["id"] = np.array([f"{split}_{k}" for k in range(3)])
    table = files.table([["train_0", "train", 0, 1, 0, "yes"]])
    corpus = read_corpus(files.pickle("mosei_data.pkl", root), words=str(table))
    assert corpus.report.counts == {"train": 1}


def test_the_table_of_mult_may_name_video_and_clip(files: Any) -> None:
    """As docs/data.md says: id, or video and clip_id; start and stop where the file's ids are times; and text."""
    path = files.pickle("mosi_data.pkl", files.mult())
    rows = [[f"vid{v}", k, 2.0 * k, 2.0 * k + 1.5, "hello"] for v in range(3) for k in range(2)]
    corpus = read_corpus(path, words=str(files.table(rows, "video\tclip_id\tstart\tstop\ttext")))
    assert corpus.report.counts == {"train": 2, "valid": 2, "test": 2}
    assert corpus.splits["valid"][1].id == "vid1$_$1"
    with pytest.raises(DataError, match=r"columns id and text"):
        read_corpus(path, words=str(files.table([row[:1] + row[2:] for row in rows], "video\tstart\tstop\ttext")))


def test_ids_of_mult_have_three_parts_at_most(files: Any) -> None:
    table = files.table([["train_0", "train", 0, 1, 0, "yes"]])
    for wrong in (np.array([["v", "0", "1", "2"]] * 3), [["v", "0", "1", "2"]] * 3):
        root = files.mult()
        root["train"]["id"] = wrong
        with pytest.raises(DataError, match="more parts"):
            read_corpus(files.pickle("data.pkl", root), words=str(table))
