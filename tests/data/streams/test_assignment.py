"""Which stream of a folder serves as what."""

import json
import re
from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, read_corpus
from cmsbert_fast.data.streams.assignment import kind_of


def test_names_say_what_a_stream_is() -> None:
    assert {kind_of(n) for n in ("CMU_MOSI_Visual_Facet_41", "OpenFace_2", "FACET 4.2")} == {"visual"}
    assert {kind_of(n) for n in ("CMU_MOSI_COVAREP", "openSMILE_IS09", "CMU_MOSEI_openSMILE_IS09")} == {"acoustic"}
    assert {kind_of(n) for n in ("CMU_MOSEI_TimestampedWords", "CMU_MOSI_ModifiedTimestampedWords")} == {"words"}
    assert {kind_of(n) for n in ("CMU_MOSEI_TimestampedWordVectors", "CMU_MOSI_TimestampedPhones")} == {"ignored"}
    assert kind_of("CMU_MOSEI_Labels") == "labels"
    assert kind_of("features") is None


TABLE = [["v_0", "train", "", "", 1, "so good"]]


def frames_beside(files: Any, *names: str) -> None:
    files.table(TABLE)
    for name in names:
        (files.folder / name).parent.mkdir(exist_ok=True)
        (files.folder / name).write_bytes(b"0")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("visual/v_0.pt", "files .pt"),
        ("openface/v_0.mat", "files .mat"),
        ("visual/v_0.parquet", "files .parquet"),
        ("visual.pkl", "a single .pkl file"),
        ("visual/v_0.npy", ""),
    ],
)
def test_frames_that_cannot_be_read_are_no_absent_stream(files: Any, name: str, why: str) -> None:
    frames_beside(files, name)
    if not why:
        np.save(files.folder / name, np.ones((2, 3)))
        assert read_corpus(files.folder).visual_size == 3
        return
    message = f"Save the frames of {name.split('/')[0]} in a folder, .* it has {re.escape(why)}"
    for visual in ((), name.split("/")[0]):
        with pytest.raises(DataError, match=message):
            read_corpus(files.folder, visual=visual)
    corpus = read_corpus(files.folder, visual="none")
    assert corpus.visual_size == 0
    assert f"not read: {name.split('/')[0]}, which has {why}" in str(corpus.report)


def test_other_files_beside_a_table_are_noted(files: Any) -> None:
    frames_beside(files, "unaligned_39.pkl")
    manifest = {"fingerprint": "0f" * 16, "columns": {"visual": ["a"]}, "units": {"visual": {"a": ""}}}
    (files.folder / "extraction.json").write_text(json.dumps(manifest))
    assert "not read: unaligned_39.pkl, which has a single .pkl file" in str(read_corpus(files.folder).report)


def test_empty_and_nested_folders_of_frames_are_told(files: Any) -> None:
    files.table(TABLE)
    (files.folder / "audio").mkdir()
    with pytest.raises(DataError, match="it has nothing"):
        read_corpus(files.folder)
    (files.folder / "audio" / "train").mkdir()
    np.save(files.folder / "audio" / "train" / "v_0.npy", np.ones((2, 3)))
    with pytest.raises(DataError, match="it has only folders"):
        read_corpus(files.folder)


def test_recordings_beside_frames_are_only_noted(files: Any) -> None:
    frames_beside(files, "video/v_0.mp4", "features/v_0.pt", "voice/v_0.wav", "visual/v_1.pt")
    np.save(files.folder / "visual" / "v_0.npy", np.ones((2, 3)))
    corpus = read_corpus(files.folder)
    assert (corpus.visual_size, corpus.acoustic_size) == (3, 0)
    for path, kind in (("video", ".mp4"), ("features", ".pt"), ("voice", ".wav"), ("visual", ".pt")):
        assert f"not read: {path}, which has files {kind}" in str(corpus.report)
