"""Feature files beside a table of segments."""

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cmsbert_fast.data import DataError, read_corpus
from cmsbert_fast.data.streams import feature_files
from cmsbert_fast.data.streams.feature_csv import load_csv, seconds_of
from tests.data.sources import ROWS


def test_own_files_one_a_segment(files: Any) -> None:
    files.table(ROWS)
    frames = {row[0]: files.random.normal(size=(3 + k, 4)) for k, row in enumerate(ROWS)}
    (files.folder / "visual").mkdir()
    (files.folder / "audio").mkdir()
    for name, values in frames.items():
        np.save(files.folder / "visual" / f"{name}.npy", values)
        lines = ["f0,f1"] + [f"{a},{b}" for a, b in values[:, :2]]
        (files.folder / "audio" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    frames["v1_0"][0, 0] = np.nan
    np.save(files.folder / "visual" / "v1_0.npy", frames["v1_0"])
    corpus = read_corpus(files.folder)
    assert corpus.report.counts == {"train": 1, "valid": 1, "test": 1}
    assert (corpus.visual_size, corpus.acoustic_size) == (4, 2)
    assert corpus.report.non_finite == {"visual": 1}
    for examples in corpus.splits.values():
        (example,) = examples
        expected = np.nan_to_num(frames[example.id]).astype(np.float32)
        np.testing.assert_array_equal(example.visual, expected)
        if example.id != "v1_0":
            np.testing.assert_array_equal(example.acoustic, frames[example.id][:, :2].astype(np.float32))


def test_own_files_one_a_video(files: Any) -> None:
    files.table(ROWS)
    whole = {video: np.arange(80.0).reshape(40, 2) + k for k, video in enumerate(("v1", "v2"))}
    (files.folder / "openface").mkdir()
    (files.folder / "voice").mkdir()
    for video, values in whole.items():
        np.save(files.folder / "voice" / f"{video}.npy", values)
        lines = ["frame, timestamp, success, AU01, AU02"]
        lines += [f"{k + 1}, {k / 10}, 1, {a}, {b}" for k, (a, b) in enumerate(values)]
        (files.folder / "openface" / f"{video}.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="voice@HZ"):
        read_corpus(files.folder)
    corpus = read_corpus(files.folder, acoustic="voice@10")
    (example,) = corpus.splits["valid"]
    np.testing.assert_array_equal(example.visual, whole["v1"][20:40])
    np.testing.assert_array_equal(example.acoustic, whole["v1"][20:40])
    with pytest.raises(DataError, match=r"NAME@HZ"):
        read_corpus(files.folder, acoustic="voice@fast")
    with pytest.raises(DataError, match=r"Leave out @99: v1\.csv has times of its own"):
        read_corpus(files.folder, acoustic="voice@10", visual="openface@99")
    for video, values in whole.items():
        (files.folder / "voice" / f"{video}.npy").unlink()
        np.savetxt(files.folder / "voice" / f"{video}.csv", values, delimiter=",", header="pitch,energy", comments="")
    (example,) = read_corpus(files.folder, acoustic="voice@10").splits["valid"]
    np.testing.assert_array_equal(example.acoustic, whole["v1"][20:40])
    files.csd("COVAREP", "COVAREP", {"v1": (np.ones((1, 1)), [[0, 1]])})
    with pytest.raises(DataError, match="Leave out @10"):
        read_corpus(files.folder, acoustic="COVAREP@10")


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v1_0.npy", b"\x93NUMPY\x01\x00"),
        ("v1_0.npy", b"\x80\x04cos\nsystem\n."),
        ("v1_0.csv", b"a,b\n1,x\n"),
        ("v1_0.csv", b"a,b\n1\n"),
        ("v1_0.csv", b"a,timestamp\n1,nan\n"),
        ("v1_0.csv", b"a,b\n1,2,3\n"),
        ("v1_0.csv", b"1,2\n1,2,3\n"),
        ("v1_0.csv", b'"a,b\n1,2\n3,4\n'),
        ("v1_0.csv", b"a" * 200_000 + b"\n1\n"),
        ("v1_0.csv", b"frame,name\n1,2\n"),
        ("v1_0.csv", b"a,start\n1,2\n"),
        ("v1_0.npy", npy("{'descr':'<f4','fortran_order':False,'shape':(1099511627776,0)}")),
        ("v1_0.npy", npy("{'descr':'<f4','fortran_order':False,'shape':(1099511627776,4)}")),
        ("v1_0.npy", npy("{'descr':'<f4','fortran_order':False,'shape':(-1,2)}")),
        ("v1_0.npy", npy("{'descr': (")),
        ("v1_0.npy", npy("(" * 9000)),
        ("v1_0.npy", npy("-" * 9000 + "1")),
        ("v1_0.npy", npy(" {'descr'\n   :'<f4'\n x")),
        ("v1_0.npy", npy("{'descr':['a'],'fortran_order':False,'shape':(1,1)}")),
        ("v1_0.npy", b"PK\x03\x04" + bytes(100)),
    ],
)
def test_damaged_feature_files(files: Any, name: str, content: bytes) -> None:
    files.table(ROWS[:1])
    (files.folder / "audio").mkdir()
    (files.folder / "audio" / name).write_bytes(content)
    with pytest.raises(DataError, match="v1_0"):
        read_corpus(files.folder)


def test_an_archive_is_no_npy(files: Any) -> None:
    files.table(ROWS[:1])
    (files.folder / "audio").mkdir()
    with (files.folder / "audio" / "v1_0.npy").open("wb") as file:
        np.savez(file, np.ones((2, 2)))
    with pytest.raises(DataError, match=r"not a \.npy file"):
        read_corpus(files.folder)


@pytest.mark.parametrize(
    ("content", "frames"),
    [
        ("0.5,1\n1,2\n", [[0.5, 1], [1, 2]]),
        ("0.5,1\n", [[0.5, 1]]),
        ("0,1,2\n3,4,5\n", [[3, 4, 5]]),  # pandas's names
        ("7\n8\n", [[7], [8]]),
    ],
)
def test_a_csv_without_header_loses_no_frame(files: Any, content: str, frames: list[list[float]]) -> None:
    files.table(ROWS[:1])
    (files.folder / "audio").mkdir()
    (files.folder / "audio" / "v1_0.csv").write_text(content)
    np.testing.assert_array_equal(read_corpus(files.folder).splits["train"][0].acoustic, frames)


def test_columns_of_a_csv(files: Any) -> None:
    files.table(ROWS[:2])
    (files.folder / "audio").mkdir()
    (files.folder / "audio" / "v1.csv").write_text("frame,begin,end,confidence,x\n1,0,2,0.9,5\n2,2,4,0.9,6\n")
    corpus = read_corpus(files.folder)
    assert [corpus.splits[split][0].acoustic.tolist() for split in ("train", "valid")] == [[[5.0]], [[6.0]]]
    assert "audio: no features are the columns confidence, frame" in str(corpus.report)


@pytest.mark.parametrize(
    ("content", "frames", "named"),
    [
        (",f0,f1\n0,5,6\n1,7,8\n2,9,9\n", [[5, 6], [7, 8], [9, 9]], "(row numbers)"),  # DataFrame.to_csv
        (",0,1\n7,5,6\n8,7,8\n", [[5, 6], [7, 8]], "(row numbers)"),  # of a slice
        (",f0\n0,5\n", [[5]], "(row numbers)"),
        ("Unnamed: 0,f0\n0,5\n1,6\n", [[5], [6]], "Unnamed: 0 (row numbers)"),  # read and written again
        ("index,f0\n0,5\n1,6\n", [[5], [6]], "index (row numbers)"),  # reset_index
        ("index,f0\n0.5,5\n1.5,6\n", [[0.5, 5], [1.5, 6]], ""),
        ("f0,f1\n0,5\n1,6\n2,6\n", [[0, 5], [1, 6], [2, 6]], ""),
        ("0,5\n1,6\n", [[0, 5], [1, 6]], ""),
    ],
)
def test_pandas_row_numbers_are_no_feature(files: Any, content: str, frames: list, named: str) -> None:
    files.table(ROWS[:1])
    (files.folder / "audio").mkdir()
    (files.folder / "audio" / "v1_0.csv").write_text(content)
    corpus = read_corpus(files.folder)
    np.testing.assert_array_equal(corpus.splits["train"][0].acoustic, frames)
    assert ("audio: no features are the columns " + named in str(corpus.report)) == bool(named)


def test_frames_in_archives(files: Any) -> None:
    files.table(ROWS[:2])
    (files.folder / "visual").mkdir()
    frames = files.random.normal(size=(3, 4)).astype(np.float32)
    np.savez(files.folder / "visual" / "v1_0.npz", frames)
    np.savez_compressed(files.folder / "visual" / "v1_1.npz", features=frames + 1, times=np.arange(3))
    corpus = read_corpus(files.folder)
    np.testing.assert_array_equal(corpus.splits["train"][0].visual, frames)
    np.testing.assert_array_equal(corpus.splits["valid"][0].visual, frames + 1)
    np.savez(files.folder / "visual" / "v1_0.npz", a=frames, b=frames)
    with pytest.raises(DataError, match="only array or as 'features': it has 2"):
        read_corpus(files.folder)
    np.savez(files.folder / "visual" / "v1_0.npz", np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"numpy\.savez \(no object arrays\)"):
        read_corpus(files.folder)
    (files.folder / "visual" / "v1_0.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match=r"v1_0\.npz again"):
        read_corpus(files.folder)


def test_an_archive_that_inflates_is_refused(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "FLOOR", 1 << 16)
    files.table(ROWS[:1])
    (files.folder / "visual").mkdir()
    np.savez_compressed(files.folder / "visual" / "v1_0.npz", np.zeros((1 << 20, 2)))
    with pytest.raises(DataError, match="many times larger than it is"):
        read_corpus(files.folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (",x\n5,1\n3,2\n", "Give the first column of a.csv a name"),
        (",\n0,\n", "Fill every cell"),
        ("index\n0\n1\n", "only row numbers"),
        ("0,7\n1,8\n2,9\n", "Give a.csv a header line, or remove its first column: it counts 0, 1, 2"),
        ("x,y\n1_0,2\n", "Fill every cell"),
        ("frame, face_id, timestamp, x\n1, 0, 0.1, 5\n1, 1, 0.1, 6\n", "rows of one face"),
        ("file,start,end,x\na.wav,0,1,5\nb.wav,0,1,5\n", "Make a file of the rows of each recording in a.csv: .* 2"),
        ("start,end,x\n0 days 00:00:00,NaT,5\n", "Fill every cell"),
        ("start,end,x\n0 days 1,0 days,5\n", "Fill every cell"),
        ("start,end,x\n0 days 00:00:00," + "9" * 5000 + " days,5\n", "Fill every cell"),
    ],
)
def test_a_csv_of_two_faces_or_recordings_or_of_what_is_no_number_is_refused(
    files: Any, content: str, message: str
) -> None:
    files.table([["a", "train", 0, 1, 0, "hi"]])
    (files.folder / "visual").mkdir()
    (files.folder / "visual" / "a.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_corpus(files.folder)


def test_two_files_of_one_utterance_are_refused(files: Any) -> None:
    files.table(ROWS[:1])
    (files.folder / "audio").mkdir()
    (files.folder / "audio" / "v1_0.csv").write_text("a\n1\n")
    np.save(files.folder / "audio" / "v1_0.npy", np.ones((1, 1)))
    with pytest.raises(DataError, match=r"v1_0\.csv and v1_0\.npy"):
        read_corpus(files.folder)


def test_feature_files_run_no_code(files: Any) -> None:
    files.table(ROWS[:1])
    (files.folder / "audio").mkdir()
    np.save(files.folder / "audio" / "v1_0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="object arrays"):
        read_corpus(files.folder)

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {files.folder / 'pwned'}",)

    (files.folder / "audio" / "v1_0.npy").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(DataError, match="object arrays"):
        read_corpus(files.folder)
    assert not (files.folder / "pwned").exists()


def test_files_of_an_utterance_begin_with_it(files: Any) -> None:
    files.table([["t_0", "train", 0, 2, 1, "so good"], ["t_1", "train", 60, 62, 1, "so good"]])
    words = np.array([[b"so"], [b"good"]] * 2)
    files.csd("words", "words", {"t": (words, [[0, 1], [1, 2], [60, 61], [61, 62]])})
    files.csd("COVAREP", "COVAREP", {"t": (np.array([[3.0], [4.0]]), [[0, 61], [61, 100]])})
    (files.folder / "audio").mkdir()
    for k in (0, 1):
        np.save(files.folder / "audio" / f"t_{k}.npy", np.arange(20.0)[:, None])
    for example in read_corpus(files.folder, words="words", acoustic="audio@10").splits["train"]:
        np.testing.assert_array_equal(example.acoustic, [[4.5], [14.5]])
    # Cut, and joined with a stream that runs through the video.
    second = read_corpus(files.folder, acoustic=["audio@10", "COVAREP"]).splits["train"][1]
    np.testing.assert_array_equal(second.acoustic[:, 1], [3.0] * 10 + [4.0] * 10)


def test_what_a_file_named_by_an_id_without_number_holds(files: Any) -> None:
    rows = [["clipA", "train", 10, 12, 1, "so good"], ["clipB", "train", 30, 32, 1, "so bad"]]
    (files.folder / "audio").mkdir()
    for name in ("clipA", "clipB"):
        np.save(files.folder / "audio" / f"{name}.npy", np.arange(400.0)[:, None])

    def read(**options: Any) -> list[int]:
        return [int(e.acoustic[0, 0]) for e in read_corpus(files.folder, **options).splits["train"]]

    files.table(rows)  # nothing else is of the same video: the files are the utterances' own
    assert read() == read(acoustic="audio@10") == [0, 0]
    files.table([[*row, row[0]] for row in rows], "id\tsplit\tstart\tstop\tlabel\ttext\tvideo")
    assert read(acoustic="audio@10") == [100, 300]
    files.table([*rows, ["clipA_1", "train", 20, 21, 1, "yes"]])
    assert read(acoustic="audio@10") == [100, 200, 0]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("file,start,end,F0,energy", "v1.wav,0 days 00:00:0{k}.100000,0 days 00:00:0{k}.2,{k},5"),  # process_files
        ("start,end,F0,energy", "0 days 00:00:0{k}.1,0 days 00:00:0{k}.2,{k},5"),  # process_signal
        ("name;frameTime;F0;energy", "'unknown';{k}.100000;{k}.0e+00;5"),  # SMILExtract -csvoutput
        (" frame, timestamp, confidence, F0, energy", " 1, {k}.1, 0.9, {k}, 5"),
    ],
)
def test_times_as_opensmile_and_pandas_write_them(files: Any, header: str, row: str) -> None:
    files.table(ROWS)
    (files.folder / "opensmile").mkdir()
    for video in ("v1", "v2"):
        lines = [header, *(row.format(k=k) for k in range(5))]
        (files.folder / "opensmile" / f"{video}.csv").write_text("\n".join(lines) + "\n")
    corpus = read_corpus(files.folder)
    assert corpus.report.columns == {"opensmile": ["F0", "energy"]}
    (example,) = corpus.splits["valid"]  # from 2 to 4 s
    expected = [[2, 5], [3, 5]] if "end" in header else [[1, 5], [2, 5], [3, 5]]  # until the next frame
    np.testing.assert_array_equal(example.acoustic, expected)


def test_frames_in_hdf5(files: Any) -> None:
    files.table(ROWS[:2])
    (files.folder / "visual").mkdir()
    frames = files.random.normal(size=(3, 4)).astype(np.float32)
    path = files.folder / "visual" / "v1_0.h5"
    with h5py.File(path, "w") as file:
        file["embedding"] = frames
    with h5py.File(path.with_name("v1_1.hdf5"), "w") as file:
        file["features"] = frames + 1
        file["times"] = np.arange(3)
    corpus = read_corpus(files.folder)
    np.testing.assert_array_equal(corpus.splits["train"][0].visual, frames)
    np.testing.assert_array_equal(corpus.splits["valid"][0].visual, frames + 1)
    other = files.folder.parent / "secret.h5"
    with h5py.File(other, "w") as file:
        file["features"] = frames

    def write(fill: Any) -> None:
        with h5py.File(path, "w") as file:
            fill(file)

    def zeros(file: Any) -> None:
        file.create_dataset("features", (1 << 28, 4), "f4", chunks=(1 << 20, 4), compression="gzip")

    for fill, message in (
        (lambda file: file.update(a=frames, b=frames), "only data set or as 'features': it has a, b"),
        (lambda file: file.create_group("features"), "must be a data set"),
        (lambda file: file.__setitem__("features", h5py.ExternalLink(str(other), "features")), "link to elsewhere"),
        (lambda file: file.__setitem__("features", np.array([b"text"])), "array of numbers"),
        (zeros, "declares"),
    ):
        write(fill)
        with pytest.raises(DataError, match=message):
            read_corpus(files.folder)
    path.write_bytes(b"\x89HDF\r\n\x1a\n no more")
    with pytest.raises(DataError, match=r"Get v1_0\.h5 again"):
        read_corpus(files.folder)


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [("0 days", 0), ("1 days 02:03:04.5", 93784.5), ("0 days 00:00:18.356190476", 18.356190476), (" 2.5", 2.5)],
)
def test_times_in_seconds(cell: str, seconds: float) -> None:
    assert seconds_of(cell) == seconds


def test_rows_of_a_csv_may_be_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("timestamp,x\n0.2,2\n0.0,0\n0.1,1\n")
    np.testing.assert_allclose(load_csv(tmp_path / "a.csv").track.intervals, [[0.2, 0.3], [0.0, 0.1], [0.1, 0.2]])


def test_times_in_milliseconds_are_no_seconds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("timestamp,x\n0,2\n40,0\n80,1\n")
    with pytest.raises(DataError, match=r"times of a\.csv in seconds: its frames are 40 apart"):
        load_csv(tmp_path / "a.csv")
