"""Feature files: a folder with one ``.npy``, ``.npz``, ``.h5`` or ``.csv`` file per segment or per video.

``visual/03bSnISJMiM_11.npy`` holds the frames (n, d) of that segment; a ``.npz`` or ``.h5`` holds them as its only
array, or as the one called ``features``. A file named by the video is cut by time: a csv then has a column
``timestamp`` (seconds, or ``start`` and ``stop``); to others, and a csv without such columns, the frame rate gives
times, ``NAME@HZ``.
"""

import functools
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmsbert_fast.data import tables
from cmsbert_fast.data.align import Track
from cmsbert_fast.data.example import DataError, unreadable
from cmsbert_fast.data.streams.feature_csv import load_csv, names_in
from cmsbert_fast.data.streams.feature_hdf5 import FEATURES, load_hdf5, verify_hdf5
from cmsbert_fast.data.untrusted.files import open_regular
from cmsbert_fast.data.untrusted.first_bytes import LENGTH, check_first_bytes
from cmsbert_fast.data.untrusted.limits import FLOOR, RATIO

_HDF5 = (".h5", ".hdf5")
SUFFIXES = (".npy", ".npz", *_HDF5, *tables.SUFFIXES)
_ZIP = b"PK\x03\x04"


def _load_npy(path: Path) -> np.ndarray:
    try:
        with open_regular(path) as file:  # numpy.load would open archives and pickles too
            head = file.read(LENGTH)
            if not head.startswith(b"\x93NUMPY"):
                if not head.startswith(_ZIP):  # of a .npz that was given another name
                    check_first_bytes(path.name, head)
                raise ValueError("it is not a .npy file")
        return _matrix(np.load(path, mmap_mode="r", allow_pickle=False), path)
    except DataError:
        raise
    except PermissionError as error:
        raise unreadable(path.name) from error
    except Exception as error:  # numpy reads the header with Python's own parser, which raises many kinds
        raise DataError(
            f"Save {path.name} again with numpy.save (no object arrays): it cannot be read "
            f"({type(error).__name__}: {str(error)[:200]})."
        ) from error


def _load_npz(path: Path) -> np.ndarray:
    """The frames of an archive; no more is unpacked than its size warrants."""
    try:
        with open_regular(path) as file:
            if not (head := file.read(LENGTH)).startswith(_ZIP):
                check_first_bytes(path.name, head)
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            named = [entry for entry in entries if entry.filename in (FEATURES, f"{FEATURES}.npy")]
            entry = named[-1] if named else entries[0] if len(entries) == 1 else None
            if entry is None:
                names = ", ".join(found.filename.removesuffix(".npy")[:200] for found in entries[:20])
                raise DataError(
                    f"Save {path.name} with the frames as its only array or as {FEATURES!r}: it has {len(entries)} "
                    f"({names[:200]})."
                )
            if entry.file_size > RATIO * os.fstat(file.fileno()).st_size + FLOOR:
                raise DataError(
                    f"Do not use {path.name}: its frames are many times larger than it is (if you trust it, save it "
                    "with numpy.savez, which does not compress)."
                )
            with archive.open(entry) as content:
                return _matrix(np.lib.format.read_array(content, allow_pickle=False), path)
    except DataError:
        raise
    except PermissionError as error:
        raise unreadable(path.name) from error
    except Exception as error:  # zip, zlib and numpy raise many kinds
        raise DataError(
            f"Save {path.name} again with numpy.savez (no object arrays): it cannot be read "
            f"({type(error).__name__}: {str(error)[:200]})."
        ) from error


def _matrix(values: object, path: Path) -> np.ndarray:
    """An array of a file as (frames, features).

    Raises:
        DataError: It has another form, or holds no numbers.
    """
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise DataError(f"Save {path.name} again as an array of numbers.")
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or not values.shape[1]:
        raise DataError(f"Save {path.name} as (frames, features): it has the shape {values.shape}.")
    return values


class FileStream:
    """A folder of feature files, one per segment or per video.

    Attributes:
        name: The folder's name.
        left_out: Names of columns, of the csv files read so far, that are neither features nor times.
        lost: Frames in which OpenFace found no face, by the csv file that was read.
        columns: Names of the features, from the first csv file that has a header; empty until one was read.

    Raises:
        DataError: Two files have one name, but for the suffix, or one is no regular file.
    """

    def __init__(self, path: Path, rate: float | None = None) -> None:
        self.path = path
        self.name = path.name
        self._rate = rate
        self.left_out: set[str] = set()
        self.lost: dict[str, int] = {}
        self.columns: tuple[str, ...] = ()
        self._wanted: frozenset[str] | None = None
        self._first = ""  # the file that the names are from
        self._files: dict[str, Path] = {}
        for file in sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.is_dir()):
            if not file.is_file():
                raise DataError(
                    f"Restore or remove {file.name} in {path.name}: it is a broken link, a pipe or a device."
                )
            other = self._files.setdefault(file.stem, file)
            if other is not file:
                raise DataError(f"Keep one of {other.name} and {file.name} in {path.name}: both are of {file.stem}.")
        verify_hdf5([file for file in self._files.values() if file.suffix.lower() in _HDF5])

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def files(self) -> list[Path]:
        return list(self._files.values())

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all features, from the header of the first csv file; empty where there is none."""
        table = next((file for file in self._files.values() if file.suffix.lower() in tables.SUFFIXES), None)
        return () if table is None else names_in(table)

    def choose(self, places: list[int]) -> None:
        """Reads these features only, by their places in `names`."""
        self._wanted = frozenset(self.names[place] for place in places)

    def read(self, key: str) -> Track:
        """The frames of one file.

        Raises:
            DataError: The file does not hold (frames, features) of numbers, or other features than files before it.
        """
        path = self._files[key]
        suffix = path.suffix.lower()
        if suffix in tables.SUFFIXES:
            track = self._read_csv(path)
        elif self._wanted is not None:
            raise DataError(f"Leave out --columns: the features of {path.name} in {self.name} have no names.")
        elif suffix in _HDF5:
            track = Track(_matrix(load_hdf5(path), path), None)
        else:
            track = Track(_load_npy(path) if suffix == ".npy" else _load_npz(path), None)
        if self._rate is None:
            return track
        if track.intervals is not None:
            raise DataError(f"Leave out @{self._rate:g}: {path.name} has times of its own.")
        begin = np.arange(len(track.features)) / self._rate
        return Track(track.features, np.stack([begin, begin + 1 / self._rate], axis=1))

    def _read_csv(self, path: Path) -> Track:
        track, names, left_out, lost = load_csv(path, self._wanted)
        self.left_out |= left_out
        self.lost[path.stem] = lost
        if names and not self.columns:
            self.columns, self._first = names, path.name
        if names and names != self.columns:
            other = next((pair for pair in zip(names, self.columns, strict=False) if pair[0] != pair[1]), None)
            what = f"{len(names)} and {len(self.columns)} features" if other is None else " and ".join(map(repr, other))
            raise DataError(
                f"Give all files of {self.name} the same columns in one order: {path.name} and {self._first} have "
                f"{what:.200}."
            )
        return track
