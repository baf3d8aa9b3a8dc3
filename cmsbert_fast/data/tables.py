"""Tables with a header, as csv or tsv, with any delimiter."""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from cmsbert_fast.data.example import DataError, unreadable
from cmsbert_fast.data.untrusted.files import open_regular
from cmsbert_fast.data.untrusted.first_bytes import LENGTH, check_first_bytes
from cmsbert_fast.data.untrusted.limits import TEXT

SUFFIXES = (".csv", ".tsv")
_HEADER = 1 << 20  # characters of a header
_COLUMNS = 20_000
_CELLS = 200_000  # of a row: those of its text, which may have commas, are counted too
START = ("start", "start_time", "begin")
STOP = ("stop", "end", "end_time", "stop_time")


def read_table(path: Path) -> tuple[list[str], Iterator[list[str]]]:
    """Header (stripped) and rows of a csv or tsv file; the delimiter is the header's most frequent one.

    Raises:
        DataError: The file is empty, something else than a table, or not text, a quotation mark is not closed, or a row
            has more or fewer cells than the header.
    """
    try:
        with open_regular(path) as raw:
            if start := raw.read(LENGTH):
                check_first_bytes(path.name, start)
        with _open(path) as file:
            head = file.readline(_HEADER + 1)
    except PermissionError as error:
        raise unreadable(path.name) from error
    except (OSError, ValueError) as error:
        raise DataError(f"Save {path.name} as a UTF-8 text table: it cannot be read ({error}).") from error
    if len(head) > _HEADER:
        raise DataError(f"Give {path.name} a header line: its first line has more than {_HEADER:,} characters.")
    if not head.strip():
        raise DataError(f"Give {path.name} a header line: it is empty.")
    delimiter = "\t" if path.suffix == ".tsv" else max(",;\t", key=head.count)
    if head.count(delimiter) >= _COLUMNS:
        raise DataError(f"Do not use {path.name}: it has {head.count(delimiter) + 1:,} columns, at most {_COLUMNS:,}.")
    # A quotation mark in a tab-separated transcript is text, unless the header itself is quoted.
    plain = delimiter == "\t" and '"' not in head

    def parse(lines: Iterable[str]) -> Any:
        # Strict: otherwise a quotation mark that is never closed makes the rest of the file one cell.
        return csv.reader(
            lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL, strict=True
        )

    try:
        header = next(parse([head]))
    except csv.Error as error:
        raise DataError(f"Repair the header of {path.name}: it cannot be read ({error}).") from error

    def rows() -> Iterator[list[str]]:
        with _open(path) as file:
            lines = _Lines(file, delimiter)
            reader = parse(lines)
            try:
                next(reader)
                for line, row in enumerate(filter(None, reader), 2):
                    lines.cells = 0
                    if len(row) != len(header):
                        raise DataError(
                            f"Give every line of {path.name} {len(header)} cells: line {line} has {len(row)}."
                        )
                    yield row
            except (csv.Error, UnicodeDecodeError) as error:
                if "field larger" in str(error):
                    raise DataError(
                        f"Shorten the texts of {path.name} to {TEXT:,} characters: one near line {reader.line_num} is "
                        "longer (or a quotation mark before it is not closed)."
                    ) from error
                raise DataError(
                    f"Repair {path.name}: it cannot be read beyond line {reader.line_num} ({error})."
                ) from error

    return [name.strip() for name in header], rows()


def _open(path: Path) -> TextIO:
    return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="")


class _Lines:
    """The lines of a table. A row has a limited number of cells: each takes far more memory than its comma.

    Attributes:
        cells: Delimiters since this was set to 0.
    """

    def __init__(self, file: TextIO, delimiter: str) -> None:
        self._file, self._delimiter = file, delimiter
        self.cells = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.cells += line.count(self._delimiter)
        if self.cells > _CELLS:
            raise csv.Error(f"a row has more than {_CELLS:,} cells")
        return line


def number_of(cell: str) -> float:
    """A cell as a number.

    Raises:
        ValueError: It is not a number. ``1_0`` is not one either: it is more likely an id than ten.
    """
    if "_" in cell:
        raise ValueError(f"could not convert string to float: {cell!r}")
    return float(cell)


def is_number(cell: str) -> bool:
    """Whether a cell is a number, as `number_of` reads it."""
    try:
        number_of(cell)
    except ValueError:
        return False
    return True
