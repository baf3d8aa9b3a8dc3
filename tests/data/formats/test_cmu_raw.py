"""The raw folders of CMU-MOSI and CMU-MOSEI."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from cmsbert_fast.data.formats import cmu_raw
from tests.data.sources import assert_same

LABELS = ["0.5,2.5,v1,1,-1.2", "2.5,4.0,v1,2,3.0", "1.0,2.0,v2,1,0.0", "2.0,3.0,v2,2,1.0"]


def mosi(folder: Path, labels: list[str] = LABELS) -> None:
    """As it is downloaded: recordings beside the transcripts, no header."""
    for name in ("Labels", "Transcript/Segmented", "Transcript/Full", "Audio/WAV_16000/Full", "Video/Full"):
        (folder / name).mkdir(parents=True)
    (folder / "Labels" / "OpinionLevelSentiment.csv").write_text("\n".join(labels) + "\n")
    (folder / "Transcript/Segmented/v1.annotprocessed").write_text("1_DELIM_A LOT OF SAD PARTS\n2_DELIM_SO ___ GOOD\n")
    (folder / "Transcript/Segmented/v2.annotprocessed").write_text("1_DELIM_FINE\n3_DELIM_NO LABEL\n")
    (folder / "Transcript/Full/v1.textonly").write_text("A LOT OF SAD PARTS SO GOOD")


@pytest.mark.parametrize("inside", ["", "Raw"])
def test_mosi(files: Any, inside: str) -> None:
    raw = files.folder / inside
    mosi(raw)
    corpus = read_corpus(files.folder)
    assert [(e.id, e.words, e.label) for e in corpus.splits["all"]] == [
        ("v1_1", ("A", "LOT", "OF", "SAD", "PARTS"), -1.2),
        ("v1_2", ("SO", "___", "GOOD"), 3.0),
        ("v2_1", ("FINE",), 0.0),
    ]
    report = str(corpus.report)
    assert "raw folder of CMU-MOSI" in report
    assert "dropped 1: it has no text" in report
    assert "1 transcribed segments are not in OpinionLevelSentiment.csv" in report
    assert "no visual and no acoustic frames: add a folder of them" in report
    (raw / "covarep").mkdir()
    for video in ("v1", "v2"):
        np.save(raw / "covarep" / f"{video}.npy", np.arange(50.0)[:, None])
    folds = files.folder.parent / "folds.json"
    folds.write_text(json.dumps({"train": ["v1"], "test": ["v2"]}))
    corpus = read_corpus(files.folder, acoustic="covarep@10", folds=folds)
    assert corpus.report.counts == {"train": 2, "test": 1}
    np.testing.assert_array_equal(corpus.splits["train"][0].acoustic[:, 0], np.arange(5, 25))
    source = open_source(files.folder, acoustic="covarep@10", folds=folds)
    assert len(source.files) == len(set(source.files)) == 6
    convert.convert(source, files.folder.parent / "c")
    assert_same(read_corpus(files.folder.parent / "c"), corpus)


def test_segments_that_are_transcribed_again_or_are_too_many(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mosi(files.folder)
    path = files.folder / "Transcript/Segmented/v1.annotprocessed"
    path.write_text("1_DELIM_first\n1_DELIM_second\n")
    corpus = read_corpus(files.folder)
    assert corpus.splits["all"][0].words == ("second",)
    assert "1 lines of transcripts are replaced by later ones of the same number" in str(corpus.report)
    monkeypatch.setattr(cmu_raw, "_MOST", 2)
    with pytest.raises(DataError, match="more than 2 segments"):
        read_corpus(files.folder)


def test_mosei(files: Any) -> None:
    folder = files.folder / "Transcript" / "Segmented" / "Combined"
    folder.mkdir(parents=True)
    (folder / "v1.txt").write_text("v1___0___0.0___1.5___And she said,___yes.\nv1___1___1.5___3___Ok.\n\n")
    corpus = read_corpus(files.folder, labels=False)
    assert [(e.id, e.words) for e in corpus.splits["all"]] == [
        ("v1_0", ("And", "she", "said,___yes.")),
        ("v1_1", ("Ok.",)),
    ]
    with pytest.raises(DataError, match=r"Give the folder of MOSEI's \.csd files to train"):
        read_corpus(files.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: (raw / "Labels/OpinionLevelSentiment.csv").write_text("1,2,v1,1\n"), "the columns start, stop"),
        (lambda raw: (raw / "Labels/OpinionLevelSentiment.csv").write_text("1,x,v1,1,0\n"), "Write times in seconds"),
        (lambda raw: (raw / "Labels/OpinionLevelSentiment.csv").write_text("3,2,v1,1,0\n"), "stop before it starts"),
        (lambda raw: (raw / "Labels/OpinionLevelSentiment.csv").write_text("1,2,v1,1,nan\n"), "labels as numbers"),
        (lambda raw: (raw / "Transcript/Segmented/v1.annotprocessed").write_text("hello\n"), "with a segment a line"),
        (lambda raw: (raw / "Transcript/Segmented/v1.annotprocessed").write_bytes(b"1_DELIM_\xff"), "as UTF-8 text"),
    ],
)
def test_what_is_built_differently_is_refused(files: Any, change: Any, message: str) -> None:
    mosi(files.folder)
    change(files.folder)
    with pytest.raises(DataError, match=message):
        read_corpus(files.folder)


def test_its_table_alone_has_no_header(files: Any) -> None:
    mosi(files.folder)
    with pytest.raises(DataError, match=r"first line is a row, 0\.5, 2\.5, v1, 1, -1\.2 .* with their raw"):
        read_corpus(files.folder / "Labels")
    with pytest.raises(DataError, match="its first line is a row"):
        read_corpus(files.folder / "Labels" / "OpinionLevelSentiment.csv")
