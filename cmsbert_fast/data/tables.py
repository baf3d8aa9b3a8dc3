"""Tables with a header, as csv or tsv, with any delimiter."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cmsbert_fast.data.example import DataError

START = ("start", "start_time", "begin")
STOP = ("stop", "end", "end_time", "stop_time")


def read_table(path: Path) -> tuple[list[str], Iterator[list[str]]]:
    """Header (lower case, stripped) and rows of a csv or tsv file; the delimiter is the header's most frequent one.

    Raises:
        DataError: The file is empty or not text, or a quotation mark is not closed.
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
        # Strict: otherwise a quotation mark that is never closed makes the rest of the file one cell.
        return csv.reader(
            lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL, strict=True
        )

    try:
        header = next(parse([head]))
    except csv.Error as error:
        raise DataError(f"Repair the header of {path.name}: it cannot be read ({error}).") from error

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


def number_of(cell: str) -> float:
    """A cell as a number.

    Raises:
        ValueError: It is not a number. ``1_0`` is not one either: it is more likely an id than ten.
    """
    if "_" in cell:
        raise ValueError(f"could not convert string to float: {cell!r}")
    return float(cell)
