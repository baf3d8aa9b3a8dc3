"""Files that are none, or that are made to take time and memory."""

import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from cmsbert_fast.data.folds import read_folds
from cmsbert_fast.data.tables import read_table
from cmsbert_fast.data.untrusted import files as untrusted_files
from cmsbert_fast.data.untrusted import pickles, records
from cmsbert_fast.data.word_vectors import WordVectors, read_vectors
from tests.data.untrusted.hostile import text
from tests.data.untrusted.limited import seconds


def special(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


KINDS = pytest.mark.parametrize("kind", ["pipe", "device", "folder"])


@KINDS
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    special(tmp_path / "a", kind)
    with seconds(5), pytest.raises(OSError, match="regular"):
        untrusted_files.open_regular(tmp_path / "a")
    (tmp_path / "b").write_text("whole")
    (tmp_path / "link").symlink_to("b")
    assert untrusted_files.read_text(tmp_path / "link", 5) == "whole"
    with pytest.raises(OSError, match="more than 4 bytes"):
        untrusted_files.read_text(tmp_path / "link", 4)
    with pytest.raises(OSError, match="a line has more than 4 bytes"):
        list(untrusted_files.text_lines(tmp_path / "link", 4))


@KINDS
def test_pipes_devices_and_folders_where_files_should_be(tmp_path: Path, kind: str) -> None:
    path, table = tmp_path / "a.pkl", tmp_path / "segments.tsv"
    special(path, kind)
    readers = {
        "pickle": lambda: pickles.load(path),
        "folds": lambda: read_folds(path),
        "vectors": lambda: read_vectors(path, ["a"]),
        "saved vectors": lambda: WordVectors.load(path),
        "table": lambda: read_table(path),
    }
    for read in readers.values():
        with seconds(5), pytest.raises((DataError, OSError), match=r"regular|cannot be read"):
            read()
    table.write_text("id\tlabel\nv\t1\n")
    (tmp_path / "text").mkdir()
    special(tmp_path / "text" / "v.txt", kind)
    with seconds(5), pytest.raises(DataError, match=r"Add the transcript text/v\.txt.*regular"):
        read_corpus(table)
    table.write_text("id\tlabel\ttext\nv\t1\tgood\n")
    for name in ("visual/v.npy", "visual/v.csv", "visual/v.npz"):
        (tmp_path / "visual").mkdir(exist_ok=True)
        special(tmp_path / name, kind)
        with seconds(5), pytest.raises(DataError, match="visual"):
            read_corpus(table)
        (tmp_path / name).rmdir() if kind == "folder" else (tmp_path / name).unlink()


@KINDS
@pytest.mark.parametrize("name", ["manifest.json", "examples.jsonl", "visual.safetensors"])
def test_converted_files_that_are_none(files: Any, tmp_path: Path, kind: str, name: str) -> None:
    target = tmp_path / "c"
    convert.convert(open_source(files.pickle("mag.pkl", files.mag())), target)
    special(target / name, kind)
    with seconds(5), pytest.raises(DataError):
        read_corpus(target)


def test_texts_that_are_too_long(tmp_path: Path) -> None:
    table = tmp_path / "segments.tsv"
    table.write_text("id\tlabel\nv\t1\n")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "v.txt").write_text("é" * 100_000)
    assert len(read_corpus(table).splits["all"][0].words[0]) == 100_000
    (tmp_path / "text" / "v.txt").write_text("é" * 100_001)
    with pytest.raises(DataError, match="100,000 characters"):
        read_corpus(table)
    with open(tmp_path / "text" / "v.txt", "wb") as file:
        file.truncate(1 << 40)
    with seconds(5), pytest.raises(DataError, match="more than 400,000 bytes"):
        read_corpus(table)


def test_an_id_with_a_null_byte(tmp_path: Path) -> None:
    (tmp_path / "segments.tsv").write_text("id\tlabel\nv\0w\t1\n")
    (tmp_path / "text").mkdir()
    with pytest.raises(DataError, match="Add the transcript"):
        read_corpus(tmp_path)


def test_a_header_of_very_many_columns(tmp_path: Path) -> None:
    path = tmp_path / "segments.tsv"
    for count, most in ((10_000, 5), (100_000, 1), (5_000_000, 1)):
        path.write_text("id\ttext\t" + "\t".join(f"{k:x}" for k in range(count)) + "\nv\tgood" + "\t" * count + "\n")
        tracemalloc.start()
        try:
            with seconds(most):
                if count == 10_000:
                    assert read_corpus(path).report.counts == {"all": 1}
                else:
                    with pytest.raises(DataError, match=r"100,002 columns|1,048,576 characters"):
                        read_corpus(path)
            assert tracemalloc.get_traced_memory()[1] < 100_000_000
        finally:
            tracemalloc.stop()


def test_a_row_of_very_many_cells(tmp_path: Path) -> None:
    path = tmp_path / "segments.csv"
    path.write_text("id,text\nv,good\nw" + "," * 5_000_000 + "\n")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than 200,000 cells"):
            read_corpus(path)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    path.write_text("id,text\n" + "".join(f'v{k},"a, b, c, d, e"\n' for k in range(60_000)))
    assert read_corpus(path).report.counts == {"all": 60_000}  # those of all rows together do not count


def test_a_row_of_another_number_of_cells_than_the_header(tmp_path: Path) -> None:
    path = tmp_path / "segments.csv"
    for row, count in (("w", 1), ("w,so,good", 3)):
        path.write_text(f"id,text\nv,good\n\n{row}\n")
        with pytest.raises(DataError, match=f"Give every line of segments.csv 2 cells: line 3 has {count}"):
            read_corpus(path)


def test_a_csv_of_frames_takes_memory_in_proportion(tmp_path: Path) -> None:
    (tmp_path / "visual").mkdir()
    (tmp_path / "segments.tsv").write_text("id\ttext\tlabel\nv\tgood\t1\n")
    frames = tmp_path / "visual" / "v.csv"
    frames.write_text(",".join(f"f{k}" for k in range(100)) + "\n" + (",".join("1" * 100) + "\n") * 20_000)
    tracemalloc.start()
    assert read_corpus(tmp_path).splits["all"][0].visual.shape == (20_000, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * frames.stat().st_size


@pytest.mark.parametrize(("kind", "width", "size"), [("U", 99_999, 399_996), ("S", 99_999, 99_999)])
def test_numpy_scalars_of_one_long_text_again_and_again(kind: str, width: int, size: int) -> None:
    names = b"cnumpy\ndtype\n" + text(f"{kind}{width}") + b"K\x00K\x01\x87Rq\x010"
    names += b"cnumpy.core.multiarray\nscalar\nq\x020"
    whole = b"X" + struct.pack("<I", size) + bytes(size) + b"q\x000"
    encoded = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86Rq\x030"
    data = b"\x80\x04" + whole + names + encoded + b"(" + b"h\x02h\x01h\x03\x86R0" * 100_000 + b"l."
    with seconds(5), pytest.raises(records.UnsafePickleError, match="times its size in memory"):
        pickles.loads(data)


def test_keys_that_are_made_to_collide() -> None:
    """Keys that agree in their lower bits meet in one place of a dictionary: 60 bits have room for many."""
    mask, keys = (1 << 17) - 1, []
    for k in range(1, 40_000):
        keys.append(((k * 0x9E3779B1) & 0xFFFFFFFF) << 27 & ((1 << 59) - 1) & ~mask)
    body = b"".join(b"\x8a\x08" + key.to_bytes(8, "little") + b"N" for key in keys)
    with seconds(5), pytest.raises(records.UnsafePickleError, match="a key that is a large number"):
        pickles.loads(b"\x80\x04}(" + body + b"u.")
    assert pickles.loads(pickle.dumps({k: k for k in range(-5, 70_000)}, 4))[69_999] == 69_999


def test_deep_json_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "folds.json"
    for content in ("[" * 100_000, '{"train": ' * 50_000):
        path.write_text(content)
        with pytest.raises(DataError, match="cannot be read"):
            read_folds(path)
    path.write_text(json.dumps({"train": ["a"]}))
    assert read_folds(path).split_of("a", "a") == "train"


def test_an_archive_whose_only_entry_is_no_array(tmp_path: Path) -> None:
    (tmp_path / "visual").mkdir()
    (tmp_path / "segments.tsv").write_text("id\ttext\tlabel\nv\tgood\t1\n")
    path = tmp_path / "visual" / "v.npz"
    np.savez(path, features=np.ones((2, 3)), other=np.ones(1))
    assert read_corpus(tmp_path).splits["all"][0].visual.shape == (2, 3)
    np.savez(path, a=np.ones((2, 3)), b=np.ones(1))
    with pytest.raises(DataError, match="as its only array"):
        read_corpus(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features", "no array")
    with pytest.raises(DataError, match="cannot be read"):
        read_corpus(tmp_path)
