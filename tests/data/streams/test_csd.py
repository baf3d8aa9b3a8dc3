"""Untrusted ``.csd`` files."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cmsbert_fast.data import DataError
from cmsbert_fast.data.streams import hdf5
from cmsbert_fast.data.streams.csd import CsdStream
from tests.data.streams.csd_files import GOOD, TIMES, refused, stream


def test_the_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csd"
    stream(path, GOOD, TIMES).close()
    track = CsdStream(path).read("v")
    np.testing.assert_array_equal(track.features, GOOD)
    np.testing.assert_array_equal(track.intervals, TIMES)


def test_truncated_files(tmp_path: Path) -> None:
    path = tmp_path / "a.csd"
    stream(path, np.random.default_rng(0).normal(size=(500, 20)), np.repeat(TIMES, 125, axis=0)).close()
    data = path.read_bytes()
    for end in np.linspace(0, len(data) - 1, 60).astype(int):
        path.write_bytes(data[:end])
        refused(path)


_ALTERED = """
import sys, resource
from pathlib import Path
import numpy as np
from cmsbert_fast.data import DataError
from cmsbert_fast.data.streams.csd import CsdStream
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # the library alone may ask for all there is
path = Path(sys.argv[1])
data, random = path.read_bytes(), np.random.default_rng(0)
for _ in range(300):
    broken = bytearray(data)
    for place in random.integers(0, len(data), 3):
        broken[place] ^= int(random.integers(1, 256))
    path.write_bytes(bytes(broken))
    try:
        track = CsdStream(path).read("v")
    except DataError:
        continue
    assert track.features.nbytes < 100_000
"""


def test_bytes_that_are_altered_end_in_an_error_or_in_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csd"
    stream(path, GOOD, TIMES).close()
    subprocess.run([sys.executable, "-c", _ALTERED, str(path)], check=True, timeout=300)


@pytest.mark.parametrize("what", ["features", "intervals", "entry", "data"])
@pytest.mark.parametrize("kind", ["external", "soft", "loop"])
def test_links_are_not_followed(tmp_path: Path, what: str, kind: str) -> None:
    secret, path = tmp_path / "secret.csd", tmp_path / "a.csd"
    stream(secret, GOOD, TIMES).close()
    place = {"features": "/COVAREP/data/v/features", "intervals": "/COVAREP/data/v/intervals",
             "entry": "/COVAREP/data/v", "data": "/COVAREP/data"}[what]  # fmt: skip
    with stream(path, GOOD, TIMES) as file:
        file.move(place, "/kept") if kind == "soft" else file.__delitem__(place)
        links = {
            "external": h5py.ExternalLink(str(secret), place),
            "soft": h5py.SoftLink("/kept"),
            "loop": h5py.SoftLink(place),
        }
        file[place] = links[kind]
    refused(path)


def test_storage_in_other_files_is_refused(tmp_path: Path) -> None:
    secret, path = tmp_path / "secret.raw", tmp_path / "a.csd"
    secret.write_bytes(bytes(64))
    with stream(path, None, TIMES) as file:
        file["COVAREP/data/v"].create_dataset("features", (4, 2), "f4", external=[(str(secret), 0, 32)])
    refused(path)
    other = tmp_path / "other.csd"
    stream(other, GOOD, TIMES).close()
    virtual = tmp_path / "b.csd"
    with stream(virtual, None, TIMES) as file:
        layout = h5py.VirtualLayout((4, 2), "f4")
        layout[:] = h5py.VirtualSource(str(other), "COVAREP/data/v/features", (4, 2))
        file["COVAREP/data/v"].create_virtual_dataset("features", layout)
    refused(virtual)


def test_sizes_that_the_file_does_not_hold(tmp_path: Path) -> None:
    for name, options in {
        "never written": {},
        "never written, chunked": {"chunks": (1024, 64)},
        "never written, compressed": {"chunks": (1024, 64), "compression": "gzip"},
    }.items():
        path = tmp_path / f"{name.replace(' ', '_')}.csd"
        with stream(path, None, TIMES) as file:
            file["COVAREP/data/v"].create_dataset("features", (1 << 34, 64), "f4", **options)
        refused(path)


@pytest.mark.parametrize("kind", ["deflated", "chunk", "many", "words", "words in chunks", "wide"])
def test_what_deflates_beyond_reason_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, n = tmp_path / "a.csd", 40_000
    monkeypatch.setattr(hdf5, "RATIO", 1)  # small files show it too
    monkeypatch.setattr(hdf5, "FLOOR", 2 << 20)
    times = np.zeros((n, 2), dtype=np.float32)
    with h5py.File(path, "w") as file:
        group, deflated = file.create_group("COVAREP/data/v"), dict(compression="gzip", compression_opts=9)
        if kind == "chunk":
            group.create_dataset("features", (4, 1), "f4", maxshape=(None, 1), chunks=(1 << 22, 1), **deflated)[...] = 1
            group.create_dataset("intervals", data=TIMES)
        elif kind == "wide":
            group.create_dataset("features", (1, n), h5py.string_dtype(), chunks=(1, n), **deflated)[0, 0] = "a"
            group.create_dataset("intervals", data=TIMES[:1])
        elif kind.startswith("words"):
            rows = n // 40 if kind == "words" else n * 2
            words = group.create_dataset("features", (n * 2, 1), h5py.string_dtype(), chunks=(rows, 1), **deflated)
            words[:] = np.full((n * 2, 1), "", dtype=object)
            group.create_dataset("intervals", data=np.zeros((n * 2, 2), dtype="i1"), **deflated)
        else:
            for key in ("v",) if kind == "deflated" else [f"v{k}" for k in range(40)]:
                part = file.require_group(f"COVAREP/data/{key}")
                rows = n if kind == "deflated" else n // 40
                part.create_dataset("features", data=np.zeros((rows, 100), dtype=np.float32), **deflated)
                part.create_dataset("intervals", data=times[:rows], **deflated)
            if kind == "many":
                del file["COVAREP/data/v"]
    said = {"many": "many times more", "words": "many times larger", "wide": "shape"}.get(kind, "too many")
    with pytest.raises(DataError, match=said):
        CsdStream(path).check() if kind == "many" else CsdStream(path)._pair("v")


@pytest.mark.parametrize(
    ("features", "intervals"),
    [
        (np.ones((4, 2, 2)), TIMES),
        (np.ones(4), TIMES),
        (np.float32(3), TIMES),
        (GOOD, TIMES[:3]),
        (GOOD, TIMES[:, :1]),
        (GOOD, TIMES * np.nan),
        (GOOD, np.array([[b"a", b"b"]] * 4)),
        (np.array([[b"text"]] * 4), TIMES),
        (np.ones((4, 2), dtype=[("x", "f4")]), TIMES),
        (np.ones((4, 2), dtype=complex), TIMES),
        (h5py.Empty("f4"), TIMES),
        (None, TIMES),
        (GOOD, None),
    ],
)
def test_wrong_types_and_lengths(tmp_path: Path, features: Any, intervals: Any) -> None:
    path = tmp_path / "a.csd"
    stream(path, features, intervals).close()
    with pytest.raises(DataError):
        CsdStream(path).read("v")


def test_groups_and_data_sets_in_each_others_place(tmp_path: Path) -> None:
    path = tmp_path / "a.csd"
    with stream(path, None, TIMES) as file:
        file.create_group("COVAREP/data/v/features")
    refused(path)
    with stream(path, GOOD, TIMES) as file:
        del file["COVAREP/data/v"]
        file["COVAREP/data/v"] = GOOD
    refused(path)
    with h5py.File(path, "w") as file:
        file["COVAREP/data"] = GOOD
    refused(path)
    with h5py.File(path, "w") as file:
        file["a/data"], file["b/data"] = GOOD, GOOD
    refused(path)
    path.write_bytes(b"no HDF5 at all")
    refused(path)
    stream(path, GOOD, TIMES).close()
    refused(path, "w")


def test_references_and_strings_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.csd"
    with stream(path, None, TIMES) as file:
        references = file["COVAREP/data/v"].create_dataset("features", (4, 1), h5py.ref_dtype)
        references[0, 0] = file["COVAREP"].ref
    refused(path)
    with stream(path, None, TIMES) as file:
        words = file["COVAREP/data/v"].create_dataset("features", (4, 1), h5py.string_dtype())
        words[:, 0] = "x" * 5000
    with pytest.raises(DataError, match="1000 bytes"):
        CsdStream(path).read_words("v")


def test_words_may_have_any_length(tmp_path: Path) -> None:
    path = tmp_path / "words.csd"
    with stream(path, None, TIMES) as file:
        words = file["COVAREP/data/v"].create_dataset("features", (4, 1), h5py.string_dtype())
        words[:, 0] = ["naïve", "sp", "", "☃"]
    found, times = CsdStream(path).read_words("v")
    assert found == ["naïve", "☃"]
    np.testing.assert_array_equal(times, TIMES[[0, 3]])
