"""Feature files: a folder with one ``.npy``, ``.npz`` or ``.csv`` file per segment or per video.

``visual/03bSnISJMiM_11.npy`` holds the frames (n, d) of that segment; a ``.npz`` holds them as its only array, or as
the one called ``features``. A file named by the video is cut by time: a csv
then has a column ``timestamp`` (seconds, or ``start`` and ``stop``); to an npy, and a csv without such columns, the
frame rate gives times, ``NAME@HZ``.
"""

import os
import re
import zipfile
from array import array
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from cmsbert_fast.data.align import Track
from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.tables import START, STOP, number_of, read_table
from cmsbert_fast.data.untrusted.files import open_regular
from cmsbert_fast.data.untrusted.limits import FLOOR, RATIO

SUFFIXES = (".npy", ".npz", ".csv", ".tsv")
_FEATURES = "features"  # of several arrays in a .npz
_ROW_NUMBERS = re.compile(r"(unnamed: 0|index)?")  # names of the first column where pandas wrote its index
_COUNTED = 3  # rows from which a first column 0, 1, 2, ... without a name is no feature by chance
_POINT = ("timestamp", "frametime", "time")
_BOOKKEEPING = ("frame", "face_id", "name", "confidence", "success", "id")  # OpenFace's and openSMILE's own columns


def _load_npy(path: Path) -> np.ndarray:
    try:
        with open_regular(path) as file:  # numpy.load would open archives and pickles too
            if file.read(6) != b"\x93NUMPY":
                raise ValueError("it is not a .npy file")
        return _matrix(np.load(path, mmap_mode="r", allow_pickle=False), path)
    except DataError:
        raise
    except Exception as error:  # numpy reads the header with Python's own parser, which raises many kinds
        raise DataError(
            f"Save {path.name} again with numpy.save (no object arrays): it cannot be read "
            f"({type(error).__name__}: {str(error)[:200]})."
        ) from error


def _load_npz(path: Path) -> np.ndarray:
    """The frames of an archive; no more is unpacked than its size warrants."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            named = [entry for entry in entries if entry.filename in (_FEATURES, f"{_FEATURES}.npy")]
            entry = named[-1] if named else entries[0] if len(entries) == 1 else None
            if entry is None:
                names = ", ".join(found.filename.removesuffix(".npy")[:200] for found in entries[:20])
                raise DataError(
                    f"Save {path.name} with the frames as its only array or as {_FEATURES!r}: it has {len(entries)} "
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


def _frame_of(header: list[str]) -> bool:
    """Whether the first line of a csv is a frame: all numbers, but not 0, 1, 2, ..., the names that pandas gives."""
    try:
        _ = [number_of(name) for name in header]
    except ValueError:
        return False
    return len(header) == 1 or header != [str(k) for k in range(len(header))]


def _load_csv(path: Path) -> tuple[Track, set[str]]:
    """The frames of a csv, and the names of the columns that are neither features nor times."""
    header, rows = read_table(path)
    first = 2
    if _frame_of(header):
        rows, header, first = chain([header], rows), [""] * len(header), 1
    columns = [k for k, name in enumerate(header) if name not in (*_BOOKKEEPING, *_POINT, *START, *STOP)]
    if not columns:
        raise DataError(f"Give {path.name} a column of features: it has only {', '.join(header)}.")
    timed = next((header.index(name) for name in _POINT if name in header), None)
    bounds = [header.index(name) for names in (START, STOP) for name in names if name in header]
    if len(bounds) not in (0, 2) or (bounds and header[bounds[1]] in START) or (bounds and header[bounds[0]] in STOP):
        raise DataError(f"Give {path.name} both columns start and stop, or neither.")
    face = header.index("face_id") if "face_id" in header else None
    faces: set[str] = set()
    numbers, times, count = array("d"), array("d"), 0  # lists of Python's numbers take four times as much
    marked = 2 if bounds else 1
    try:
        for row in rows:
            if len(row) != len(header):
                line = count + first
                raise DataError(f"Give every line of {path.name} {len(header)} cells: line {line} has {len(row)}.")
            numbers.extend([number_of(row[k]) for k in columns])
            if face is not None:
                faces.add(row[face].strip())
            if len(bounds) == 2:
                times.extend([number_of(row[k]) for k in bounds])
            elif timed is not None:
                times.append(number_of(row[timed]))
            count += 1
    except ValueError as error:
        line = count + first
        raise DataError(
            f"Fill every cell of {path.name} with a number: line {line} has a cell that is none ({error})."
        ) from error
    if len(faces) > 1:
        raise DataError(f"Keep the rows of one face in {path.name}: its column face_id names {len(faces)}.")
    features = np.frombuffer(numbers, dtype=np.float64).reshape(count, len(columns))
    numbered = _numbered(features, header, columns, path)
    features = features[:, 1:] if numbered else features
    left_out = {name for name in header if name in _BOOKKEEPING}
    if numbered:
        left_out.add(f"{header[0]} (row numbers)".strip())
    if not times:
        return Track(features, None), left_out
    marks = np.frombuffer(times, dtype=np.float64).reshape(count, marked)
    if not np.isfinite(marks).all():
        raise DataError(f"Give every frame of {path.name} a finite time.")
    if marks.shape[1] == 2:
        return Track(features, marks), left_out
    step = float(np.median(np.diff(marks[:, 0]))) if len(marks) > 1 else 0.0
    stops = np.append(marks[1:], marks[-1:] + step, axis=0)
    return Track(features, np.concatenate([marks, stops], axis=1)), left_out


def _numbered(features: np.ndarray, header: list[str], columns: list[int], path: Path) -> bool:
    """Whether the first column of a csv holds row numbers, as pandas writes them, and no feature.

    Raises:
        DataError: It has no name and cannot be told from a feature, or there is no other column.
    """
    if columns[0] != 0 or not _ROW_NUMBERS.fullmatch(header[0]):
        return False
    first, headed = features[:, 0], any(header)
    counts = bool((np.diff(first) == 1).all()) and bool((first == np.rint(first)).all())
    if not headed:  # no header at all: any column may count by chance in two rows
        if counts and len(first) >= _COUNTED and first[0] in (0, 1):
            raise DataError(
                f"Give {path.name} a header line, or remove its first column: it counts "
                f"{first[0]:g}, {first[1]:g}, {first[2]:g}, ... and seems to be no feature."
            )
        return False
    if not header[0] and not counts:
        raise DataError(f"Give the first column of {path.name} a name: it has none, and does not number the rows.")
    if counts and len(columns) == 1:
        raise DataError(f"Give {path.name} a column of features: it has only row numbers.")
    return counts


class FileStream:
    """A folder of feature files, one per segment or per video.

    Attributes:
        name: The folder's name.
        left_out: Names of columns, of the csv files read so far, that are neither features nor times.

    Raises:
        DataError: Two files have one name, but for the suffix, or one is no regular file.
    """

    def __init__(self, path: Path, rate: float | None = None) -> None:
        self.path = path
        self.name = path.name
        self._rate = rate
        self.left_out: set[str] = set()
        self._files: dict[str, Path] = {}
        for file in sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.is_dir()):
            if not file.is_file():
                raise DataError(
                    f"Restore or remove {file.name} in {path.name}: it is a broken link, a pipe or a device."
                )
            other = self._files.setdefault(file.stem, file)
            if other is not file:
                raise DataError(f"Keep one of {other.name} and {file.name} in {path.name}: both are of {file.stem}.")

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def files(self) -> list[Path]:
        return list(self._files.values())

    def read(self, key: str) -> Track:
        """The frames of one file.

        Raises:
            DataError: The file does not hold (frames, features) of numbers.
        """
        path = self._files[key]
        suffix = path.suffix.lower()
        if suffix in (".npy", ".npz"):
            track = Track(_load_npy(path) if suffix == ".npy" else _load_npz(path), None)
        else:
            track, left_out = _load_csv(path)
            self.left_out |= left_out
        if self._rate is None:
            return track
        if track.intervals is not None:
            raise DataError(f"Leave out @{self._rate:g}: {path.name} has times of its own.")
        begin = np.arange(len(track.features)) / self._rate
        return Track(track.features, np.stack([begin, begin + 1 / self._rate], axis=1))
