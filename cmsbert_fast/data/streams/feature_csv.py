"""Frames in text tables: csv files of OpenFace, openSMILE and pandas, and others with a header.

Which columns are no features: OpenFace's ``frame``, ``face_id``, ``confidence`` and ``success``; openSMILE's ``name``,
``frameIndex`` (its own csv, with semicolons) and ``file`` (its Python package); ``id``; pandas' row numbers. Times are
``timestamp``, ``frameTime`` or ``time``, or ``start`` and ``stop``, in seconds or as pandas writes them,
``0 days 00:00:00.02``.
"""

import re
from array import array
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmsbert_fast.data.align import Track
from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.tables import START, STOP, is_number, number_of, read_table

_IMPLAUSIBLE_STEP = 10  # seconds between frames; of 100 a second, in milliseconds, it is 10
_ROW_NUMBERS = re.compile(r"(unnamed: 0|index)?")  # names of the first column where pandas wrote its index
_COUNTED = 3  # rows from which a first column 0, 1, 2, ... without a name is no feature by chance
_POINT = ("timestamp", "frametime", "time")
_BOOKKEEPING = ("frame", "frameindex", "face_id", "name", "file", "confidence", "success", "id")
_SAME = {
    "face_id": "Keep the rows of one face in {path}: its column face_id names {count}.",
    "file": "Make a file of the rows of each recording in {path}: its column file names {count}.",
}
_DURATION = re.compile(r"(\d{1,6}) days?(?: \+?(\d{1,2}):(\d{2}):(\d{2}(?:\.\d{1,9})?))?")


class CsvFrames(NamedTuple):
    """The frames of a csv.

    Attributes:
        track: The frames.
        names: Names of the features; empty without a header.
        left_out: Names of the columns that are neither features nor times.
        lost: Frames whose ``success`` is 0: OpenFace found no face in them.
    """

    track: Track
    names: tuple[str, ...]
    left_out: set[str]
    lost: int


def names_in(path: Path) -> tuple[str, ...]:
    """The names of the features of a csv, from its header; empty where it has none."""
    header, _ = read_table(path)
    if _frame_of(header):
        return ()
    return tuple(header[k] for k in _features(header) if not (k == 0 and _ROW_NUMBERS.fullmatch(header[0].lower())))


def load_csv(path: Path, wanted: frozenset[str] | None = None) -> CsvFrames:
    """The frames of a csv.

    Args:
        path: The file.
        wanted: Names of the features to read; None: all.

    Raises:
        DataError: It has no features, a cell is no number, or it is of several faces or recordings.
    """
    header, rows = read_table(path)
    first = 2
    if _frame_of(header):
        rows, header, first = chain([header], rows), [""] * len(header), 1
        if wanted is not None:
            raise DataError(f"Give {path.name} a header, or leave out --columns: its features have no names.")
    columns = _features(header)
    if wanted is not None:
        columns = [k for k in columns if header[k] in wanted]
    if not columns:
        raise DataError(f"Give {path.name} a column of features: it has only {', '.join(header)}.")
    values = _Values(path, header, columns)
    values.read(rows, first)
    features = np.frombuffer(values.numbers, dtype=np.float64).reshape(values.count, len(columns))
    numbered = _numbered(features, header, columns, path)
    features, columns = (features[:, 1:], columns[1:]) if numbered else (features, columns)
    left_out = {name for name in header if name.lower() in _BOOKKEEPING}
    if numbered:
        left_out.add(f"{header[0]} (row numbers)".strip())
    names = tuple(header[k] for k in columns)
    return CsvFrames(Track(features, _intervals(values, path)), names if any(names) else (), left_out, values.lost)


def _features(header: list[str]) -> list[int]:
    """Where the features are."""
    others = (*_BOOKKEEPING, *_POINT, *START, *STOP)
    return [k for k, name in enumerate(header) if name.lower() not in others]


def _frame_of(header: list[str]) -> bool:
    """Whether the first line of a csv is a frame: all numbers, but not 0, 1, 2, ..., the names that pandas gives."""
    as_pandas = [str(k) for k in range(len(header))]
    return all(map(is_number, header)) and (len(header) == 1 or header != as_pandas)


class _Values:
    """The cells of a csv as numbers.

    Attributes:
        numbers: The features, row after row.
        times: The times, row after row.
        marked: Times of a row.
        count: Rows.
        lost: Rows whose success is 0.
    """

    def __init__(self, path: Path, header: list[str], columns: list[int]) -> None:
        self._path, self._columns = path, columns
        lower = [name.lower() for name in header]
        bounds = [lower.index(name) for names in (START, STOP) for name in names if name in lower]
        in_order = len(bounds) == 2 and lower[bounds[0]] in START and lower[bounds[1]] in STOP
        if bounds and not in_order:
            raise DataError(f"Give {path.name} both columns start and stop, or neither.")
        self._timed = bounds or [lower.index(name) for name in _POINT if name in lower][:1]
        self._same = {name: lower.index(name) for name in _SAME if name in lower}
        self._found: dict[str, set[str]] = {name: set() for name in self._same}
        self._success = lower.index("success") if "success" in lower else None
        self.marked = len(self._timed)
        # Lists of Python's numbers take four times as much.
        self.numbers, self.times, self.count, self.lost = array("d"), array("d"), 0, 0

    def read(self, rows: Iterator[list[str]], first: int) -> None:
        """Reads all rows; the first is the line ``first`` of the file.

        Raises:
            DataError: A cell is no number, or rows are of several faces or files.
        """
        try:
            for row in rows:
                self._see(row)
        except ValueError as error:
            line = self.count + first
            raise DataError(
                f"Fill every cell of {self._path.name} with a number: line {line} has a cell that is none ({error})."
            ) from error
        for name, found in self._found.items():
            if len(found) > 1:
                raise DataError(_SAME[name].format(path=self._path.name, count=len(found)))

    def _see(self, row: list[str]) -> None:
        self.numbers.extend([number_of(row[k]) for k in self._columns])
        self.times.extend([seconds_of(row[k]) for k in self._timed])
        for name, place in self._same.items():
            if len(self._found[name]) < 100:
                self._found[name].add(row[place].strip())
        if self._success is not None:
            self.lost += row[self._success].strip() in ("0", "0.0")
        self.count += 1


def seconds_of(cell: str) -> float:
    """A time in seconds, given as a number or as pandas' text.

    Raises:
        ValueError: It is neither.
    """
    match = _DURATION.fullmatch(cell.strip()) if "day" in cell else None
    if match is None:
        return number_of(cell)
    days, hours, minutes, seconds = match.groups(default="0")
    return 86400 * int(days) + 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _intervals(values: _Values, path: Path) -> np.ndarray | None:
    """When each frame begins and ends (n, 2), in seconds; None without times."""
    if not values.marked:
        return None
    marks = np.frombuffer(values.times, dtype=np.float64).reshape(values.count, values.marked)
    if not np.isfinite(marks).all():
        raise DataError(f"Give every frame of {path.name} a finite time.")
    if values.marked == 2:
        return marks
    order = np.argsort(marks[:, 0], kind="stable")  # rows may be in any order
    begin = marks[order, 0]
    step = float(np.median(np.diff(begin))) if len(begin) > 1 else 0.0
    if step >= _IMPLAUSIBLE_STEP:
        raise DataError(
            f"Give the times of {path.name} in seconds: its frames are {step:g} apart, as milliseconds are."
        )
    stops = np.empty_like(begin)
    stops[order] = np.append(begin[1:], begin[-1:] + step)
    return np.column_stack([marks[:, 0], stops])


def _numbered(features: np.ndarray, header: list[str], columns: list[int], path: Path) -> bool:
    """Whether the first column of a csv holds row numbers, as pandas writes them, and no feature.

    Raises:
        DataError: It has no name and cannot be told from a feature, or there is no other column.
    """
    if columns[0] != 0 or not _ROW_NUMBERS.fullmatch(header[0].lower()):
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
