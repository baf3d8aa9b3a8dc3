"""Chunks of HDF5 data sets that take more memory or time than what they hold."""

import os
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cmsbert_fast.data import DataError, read_corpus
from cmsbert_fast.data.streams import chunks
from cmsbert_fast.data.streams.csd import CsdStream
from tests.data.streams.csd_files import GOOD, TIMES, refused, stream

GZIP: dict[str, Any] = dict(compression="gzip", compression_opts=9)


def packed(path: Path, content: bytes, width: int = 250) -> None:
    """A file whose one chunk, of 1,000 bytes, holds the given content."""
    with stream(path, None, TIMES[:1]) as file:
        data = file["COVAREP/data/v"].create_dataset("features", (1, width), "f4", chunks=(1, width), **GZIP)
        data.id.write_direct_chunk((0, 0), content)


@pytest.mark.parametrize("options", [{}, GZIP, {"compression": "lzf"}, {**GZIP, "shuffle": True, "fletcher32": True}])
def test_honest_chunks_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    frames = np.random.default_rng(0).normal(size=(300, 74)).astype(np.float32)
    with stream(tmp_path / "a.csd", None, np.zeros((300, 2))) as file:
        file["COVAREP/data/v"].create_dataset("features", data=frames, chunks=(7, 74), **options)
    np.testing.assert_array_equal(CsdStream(tmp_path / "a.csd").read("v").features, frames)


def test_a_chunk_that_unpacks_to_more_than_it_declares(tmp_path: Path) -> None:
    path, size = tmp_path / "a.csd", 200 << 20
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()
    packed(path, bomb)  # stored longer than it is unpacked
    assert "is stored in" in str(refused(path))
    frames = np.zeros((1, 1 << 18), dtype=np.float32)  # of the length of an honest chunk
    packed(path, bomb, frames.size)
    assert "unpacks to more" in str(refused(path))
    packed(path, zlib.compress(frames.tobytes(), 9), frames.size)
    assert CsdStream(path).read("v").features.sum() == 0


def test_damaged_chunks_are_counted_up_to_the_damage() -> None:
    whole = zlib.compress(bytes(100_000))
    assert chunks._unpacked_size(whole, 1 << 20) == 100_000
    assert chunks._unpacked_size(whole + b"more", 1 << 20) == 100_000
    assert chunks._unpacked_size(whole[: len(whole) // 2], 1 << 20) <= 100_000
    assert chunks._unpacked_size(b"no such thing", 1 << 20) == 0
    assert chunks._unpacked_size(b"", 1 << 20) == 0
    assert chunks._unpacked_size(whole, 10) > 10


def test_chunks_of_one_element(tmp_path: Path) -> None:
    path = tmp_path / "a.csd"
    with stream(path, None, np.zeros((40, 2))) as file:
        file["COVAREP/data/v"].create_dataset("features", data=np.zeros((40, 500), "f4"), chunks=(1, 1))
    assert "20000 chunks of 4 bytes" in str(refused(path))


def test_filters_after_compression(tmp_path: Path) -> None:
    path = tmp_path / "a.csd"
    with stream(path, None, TIMES) as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((4, 2))
        plan.set_deflate(9)
        plan.set_shuffle()
        space = h5py.h5s.create_simple((4, 2))
        h5py.h5d.create(file["COVAREP/data/v"].id, b"features", h5py.h5t.NATIVE_FLOAT, space, plan)
        file["COVAREP/data/v/features"][...] = GOOD
    assert "unknown filters" in str(refused(path))


@pytest.mark.parametrize("what", ["entry", "features"])
def test_one_entry_under_many_names(tmp_path: Path, what: str) -> None:
    path = tmp_path / "Labels.csd"
    with stream(path, np.ones((1, 1)), TIMES[:1]) as file:
        data = file["COVAREP/data"]
        for k in range(100):
            if what == "entry":
                data[f"w{k}"] = data["v"]
            else:
                data.create_group(f"w{k}")["features"] = data["v/features"]
    assert "has several names" in str(refused(path))


def test_a_pipe_where_a_stream_should_be(tmp_path: Path) -> None:
    stream(tmp_path / "words.csd", GOOD, TIMES).close()
    os.mkfifo(tmp_path / "COVAREP.csd")
    assert "not a regular file" in str(refused(tmp_path / "COVAREP.csd"))
    with pytest.raises(DataError, match=r"COVAREP\.csd"):
        read_corpus(tmp_path)
