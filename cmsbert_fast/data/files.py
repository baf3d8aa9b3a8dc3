"""Feature files of one's own: a folder with one ``.npy`` or ``.csv`` file per segment or per video.

``visual/03bSnISJMiM_11.npy`` holds the frames (n, d) of that segment. A file named by the video is cut by time: a csv
then has a column ``timestamp`` (seconds, or ``start`` and ``stop``), an npy the rate given as ``NAME@HZ``.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .align import Track
from .example import DataError

SUFFIXES = (".npy", ".csv", ".tsv")
_POINT = ("timestamp", "frametime", "time")
_BOOKKEEPING = ("frame", "face_id", "name", "confidence", "success", "id")  # OpenFace's and openSMILE's own columns


def read_table(path: Path) -> tuple[list[str], Iterator[list[str]]]:
    """Header (lower case, stripped) and rows of a csv or tsv file; the delimiter is the header's most frequent one.

    Raises:
        DataError: The file is empty or not text.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Save {path.name} as a UTF-8 text table: it cannot be read ({error}).") from error
    if not head.strip():
        raise DataError(f"Give {path.name} a header line: it is empty.")
    delimiter = "\t" if path.suffix == ".tsv" else max(",;\t", key=head.count)
    # A quotation mark in a tab-separated transcript is text, unless the header itself is quoted.
    plain = delimiter == "\t" and '"' not in head

    def parse(lines: Iterable[str]) -> Any:
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)

    header = next(parse([head]))

    def rows() -> Iterator[list[str]]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = parse(file)
            try:
                next(reader)
                for row in reader:
                    if row:
                        yield row
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(
                    f"Repair {path.name}: it cannot be read beyond line {reader.line_num} ({error})."
                ) from error

    return [name.strip().lower() for name in header], rows()


def _load_npy(path: Path) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError) as error:
        raise DataError(
            f"Save {path.name} again with numpy.save (no object arrays): it cannot be read ({error})."
        ) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise DataError(f"Save {path.name} again as an array of numbers.")
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2:
        raise DataError(f"Save {path.name} as (frames, features): it has the shape {values.shape}.")
    return values


def _load_csv(path: Path) -> Track:
    header, rows = read_table(path)
    columns = [k for k, name in enumerate(header) if name not in (*_BOOKKEEPING, *_POINT, "start", "stop")]
    timed = next((header.index(name) for name in _POINT if name in header), None)
    bounds = [header.index(name) for name in ("start", "stop") if name in header]
    numbers: list[list[float]] = []
    times: list[list[float]] = []
    try:
        for row in rows:
            numbers.append([float(row[k]) for k in columns])
            if len(bounds) == 2:
                times.append([float(row[k]) for k in bounds])
            elif timed is not None:
                times.append([float(row[timed])])
    except (ValueError, IndexError) as error:
        line = len(numbers) + 2
        raise DataError(f"Fill every cell of {path.name} with a number: line {line} has not ({error}).") from error
    features = np.array(numbers, dtype=np.float64).reshape(len(numbers), len(columns))
    if not times:
        return Track(features, None)
    marks = np.array(times, dtype=np.float64)
    if not np.isfinite(marks).all():
        raise DataError(f"Give every frame of {path.name} a finite time.")
    if marks.shape[1] == 2:
        return Track(features, marks)
    step = float(np.median(np.diff(marks[:, 0]))) if len(marks) > 1 else 0.0
    return Track(features, np.concatenate([marks, np.append(marks[1:], marks[-1:] + step, axis=0)], axis=1))


class FileStream:
    """A folder of feature files, one per segment or per video."""

    def __init__(self, path: Path, rate: float | None = None) -> None:
        self.path = path
        self.name = path.name
        self._rate = rate
        self.left_out: set[str] = set()
        self._files = {p.stem: p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES and p.is_file()}

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
        if path.suffix.lower() != ".npy":
            return _load_csv(path)
        values = _load_npy(path)
        if self._rate is None:
            return Track(values, None)
        begin = np.arange(len(values)) / self._rate
        return Track(values, np.stack([begin, begin + 1 / self._rate], axis=1))
