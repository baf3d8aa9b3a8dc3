"""Features chosen by name, and what of their names is shown."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from cmsbert_fast.data.inspection import summary
from cmsbert_fast.data.streams.columns import near_names, short_list
from tests.data.sources import ROWS

# As OpenFace writes it: spaces after commas, and names that differ in case only.
OPENFACE = ["frame", "face_id", "timestamp", "confidence", "success", "gaze_0_x", "x_0", "x_1", "X_0", "pose_Tx"]
OPENFACE += ["AU01_r", "AU02_r", "AU45_c"]


def openface(folder: Path, videos: dict[str, np.ndarray], header: list[str] = OPENFACE) -> None:
    """Frames at 10 Hz; the last but one of each video has no face."""
    (folder / "openface").mkdir(exist_ok=True)
    for video, values in videos.items():
        lines = [", ".join(header)]
        for k, row in enumerate(values):
            found = int(k != len(values) - 2)
            lines.append(f"{k + 1}, 0, {k / 10:.3f}, 0.98, {found}, " + ", ".join(map(str, row)))
        (folder / "openface" / f"{video}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def faces(files: Any) -> dict[str, np.ndarray]:
    files.table(ROWS)
    videos = {video: files.random.normal(size=(40, 8)) for video in ("v1", "v2")}
    openface(files.folder, videos)
    return videos


@pytest.mark.parametrize(
    ("columns", "places"),
    [("AU*", [5, 6, 7]), ("AU*_r, pose*", [4, 5, 6]), ("x_*", [1, 2]), ("X_?", [3]), ("gaze_0_x", [0])],
)
def test_columns_choose_features(files: Any, faces: dict[str, np.ndarray], columns: str, places: list[int]) -> None:
    corpus = read_corpus(files.folder, columns=columns)
    (example,) = corpus.splits["valid"]
    np.testing.assert_array_equal(example.visual, faces["v1"][20:40, places].astype(np.float32))
    report = str(corpus.report)
    assert f"openface: {len(places)} of 8 features (--columns)" in report
    assert "no features are the columns confidence, face_id, frame, success" in report
    assert f"openface has {short_list([OPENFACE[5 + k] for k in places])}" in summary(corpus)


def test_frames_without_a_face_are_counted(files: Any, faces: dict[str, np.ndarray]) -> None:
    found = read_corpus(files.folder)
    assert "2 of the visual frames of openface have no face (success 0); their values are kept" in str(found.report)
    assert found.visual_size == 8


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("AU*,gase*", r"no feature is called 'gase\*'; near are gaze_0_x"),
        ("au01_R", r"called 'au01_R'; near are AU01_r"),
        ("confidence", "no feature is called 'confidence'"),
        (" , ", "Give --columns up to"),
    ],
)
def test_patterns_without_a_match_are_refused(
    files: Any, faces: dict[str, np.ndarray], columns: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_corpus(files.folder, columns=columns)


def test_a_stream_without_a_match_keeps_its_features(files: Any, faces: dict[str, np.ndarray]) -> None:
    (files.folder / "voice").mkdir()
    for video in faces:
        lines = ["name;frameIndex;frameTime;F0;energy", *(f"'unknown';{k};{k / 10:.6f};{k};1" for k in range(40))]
        (files.folder / "voice" / f"{video}.csv").write_text("\n".join(lines) + "\n")
    corpus = read_corpus(files.folder, columns="AU*")
    assert (corpus.visual_size, corpus.acoustic_size) == (3, 2)
    assert "voice: all features, no name of which --columns matches" in str(corpus.report)
    assert corpus.report.columns == {"openface": OPENFACE[-3:], "voice": ["F0", "energy"]}
    assert corpus.report.features == {"visual": OPENFACE[-3:], "acoustic": ["F0", "energy"]}
    convert.convert(open_source(files.folder, columns="AU*"), files.folder / "c")
    converted = read_corpus(files.folder / "c")
    assert converted.report.columns == corpus.report.columns
    assert converted.report.features == corpus.report.features
    with pytest.raises(DataError, match="Leave out --words, --label and --columns"):
        read_corpus(files.folder / "c", columns="AU*")


def test_features_without_names_are_not_chosen_by_name(files: Any) -> None:
    files.table(ROWS)
    (files.folder / "visual").mkdir()
    np.save(files.folder / "visual" / "v1_0.npy", np.ones((3, 4)))
    with pytest.raises(DataError, match=r"Leave out --columns: no stream has names .* \(streams: visual\)"):
        read_corpus(files.folder, columns="AU*")
    with pytest.raises(DataError, match="Leave out --columns: MAG-BERT data"):
        read_corpus(files.pickle("mag.pkl", files.mag()), columns="AU*")


def test_files_of_a_stream_have_the_same_columns(files: Any, faces: dict[str, np.ndarray]) -> None:
    openface(files.folder, {"v2": faces["v2"]}, [*OPENFACE[:-2], OPENFACE[-1], OPENFACE[-2]])
    with pytest.raises(DataError, match=r"same columns in one order: v2.csv and v1.csv have 'AU45_c' and 'AU02_r'"):
        read_corpus(files.folder)
    with pytest.raises(DataError, match="same columns in one order"):
        read_corpus(files.folder, columns="AU*")
    assert read_corpus(files.folder, columns="AU01_r").visual_size == 1


def test_names_in_the_metadata_of_a_csd_file(files: Any) -> None:
    files.table(ROWS)
    values = np.arange(120.0).reshape(40, 3)
    edges = np.arange(41) / 10
    times = np.stack([edges[:-1], edges[1:]], axis=1)
    path = files.csd("FACET", "FACET 4.2", dict.fromkeys(("v1", "v2"), (values, times)))
    assert read_corpus(files.folder).report.columns == {}

    def name(text: str) -> None:
        with h5py.File(path, "a") as file:
            metadata = file["FACET 4.2/metadata"]
            if "dimension names" in metadata:
                del metadata["dimension names"]
            metadata.create_dataset("dimension names", data=np.array([text], dtype=object), dtype=h5py.string_dtype())

    name(json.dumps(["Joy", "AU1", "Pitch"]))
    corpus = read_corpus(files.folder, columns="Joy,Pitch")
    np.testing.assert_array_equal(corpus.splits["valid"][0].visual, values[20:40, [0, 2]])
    assert corpus.report.columns == {"FACET": ["Joy", "Pitch"]}
    for damaged in ("[" * 100_000, "[1, 2, 3]", "x" * 2_000_000):
        name(damaged)
        assert read_corpus(files.folder).visual_size == 3
    name(json.dumps(["Joy", "AU1"]))
    with pytest.raises(DataError, match="FACET names 2 features, v1 has 3"):
        read_corpus(files.folder, columns="Joy")


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["x_0", "x_1", "x_2", "x_4", "F0"], "x_0 to x_2, x_4, F0"),
        (["AU01_r", "AU02_r"], "AU01_r, AU02_r"),
        (["mfcc1_sma", "mfcc2_sma", "mfcc3_sma"], "mfcc1_sma to mfcc3_sma"),
        (["a" * 100], "a" * 60),
        ([], ""),
    ],
)
def test_short_lists_of_names(names: list[str], shown: str) -> None:
    assert short_list(names) == shown


def test_near_names() -> None:
    assert near_names("gaze*", ["pose_Tx", "Gaze_x"]) == ["Gaze_x"]
    assert near_names("zzz", ["b", "a"]) == ["b", "a"]
