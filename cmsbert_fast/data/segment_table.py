"""A table of segments: id, video, split, start, stop, label and text of each, as tsv or csv."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cmsbert_fast.data.example import DataError, unreadable
from cmsbert_fast.data.folds import ALL, split_name, video_of
from cmsbert_fast.data.tables import START, STOP, SUFFIXES, is_number, number_of, read_table
from cmsbert_fast.data.untrusted.files import read_text
from cmsbert_fast.data.untrusted.limits import TEXT

_ALIASES = {
    "id": ("id", "segment_id", "utterance_id", "name"),
    "video": ("video", "video_id"),
    "split": ("split", "mode", "partition"),
    "start": START,
    "stop": STOP,
    "label": ("label", "sentiment", "emotion"),
    "text": ("text", "transcript", "sentence"),
    "fold": ("fold",),
}
_TRANSCRIPTS = ("text", "transcripts", "transcript")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")


@dataclass(slots=True)
class Segment:
    """A row of the table; ``span`` is its start and stop in the video, in seconds."""

    id: str
    video: str
    split: str
    span: tuple[float, float] | None
    label: float | str | tuple[int, ...] | None  # several at once: which are present
    text: str
    fold: str = ""
    has_video: bool = False  # whether the table names the video
    transcript: Path | None = None  # the file of its text, where the table has none


def find_table(path: Path) -> Path | None:
    """The table of segments at a path: the file itself, or the one table in the folder that has an id and a text."""
    if path.is_file():
        return path if path.suffix.lower() in SUFFIXES else None
    tables = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    named = [table for table in tables if table.stem.lower() == "segments"]
    found = named or [table for table in tables if _is_table(table)]
    if len(found) > 1:
        raise DataError(f"Choose one of the tables of {path}: {', '.join(p.name for p in found)}.")
    return found[0] if found else None


def several_columns(label: str) -> list[str]:
    """The names of columns in ``NAME,NAME``, lower case, each once."""
    return list(dict.fromkeys(name.strip().lower() for name in label.split(",") if name.strip()))


def _is_table(path: Path) -> bool:
    try:
        header = [name.lower() for name in read_table(path)[0]]
    except DataError:
        return False
    has_id = any(name in header for name in (*_ALIASES["id"], "clip_id"))
    return has_id and (
        any(name in header for name in _ALIASES["text"]) or any((path.parent / t).is_dir() for t in _TRANSCRIPTS)
    )


def read_segments(table: Path, label: str | None = None, labels: bool = True) -> list[Segment]:
    """The rows of a table of segments.

    Args:
        table: The file.
        label: The column of labels, or several with commas between; None: recognised by its name.
        labels: False: labels may be anything, and need not be there.

    Raises:
        DataError: A needed column is missing, or a cell cannot be read.
    """
    header, rows = read_table(table)
    columns = _Columns(table, [name.lower() for name in header], label, labels)
    segments = [columns.segment(line, row) for line, row in enumerate(rows, 2)]
    if not segments:
        raise DataError(f"Add segments to {table.name}: it has a header only.")
    return segments


def doubtful_columns(table: Path, label: str | None, labels: bool = True) -> list[str]:
    """What to say of columns that could be the same thing, such as ``sentiment`` and ``emotion``: which one is read.

    Args:
        table: The file.
        label: The column of labels that was asked for, if any.
        labels: Whether labels are read at all.
    """
    header = [name.lower() for name in read_table(table)[0]]
    found = {role: [name for name in names if name in header] for role, names in _ALIASES.items()}
    return [
        f"each {role} is read from the column {names[0]}, not from {', '.join(names[1:])}"
        + ("; --label chooses another" if role == "label" else "")
        for role, names in found.items()
        if len(names) > 1 and not (role == "label" and (label is not None or not labels))
    ]


def label_advice(table: Path) -> list[str]:
    """What to say of a table without a column of labels, such as one with ``score``: a sentence, or none."""
    header = [name.lower() for name in read_table(table)[0]]
    if any(name in header for name in _ALIASES["label"]):
        return []
    known = {name for names in _ALIASES.values() for name in names} | {"clip_id", "", "unnamed: 0", "index"}
    others = [name[:40] for name in header if name not in known]
    advice = f"give --label {others[0]}" if len(others) == 1 else f"give --label NAME: {', '.join(others[:8])}"
    return [f"no labels: no column is called {', '.join(_ALIASES['label'])}; {advice if others else 'add one'}"]


class _Columns:
    """Where the columns of a table are, and how a row becomes a segment."""

    def __init__(self, table: Path, header: list[str], label: str | None, labels: bool) -> None:
        twice = next((name for name, count in Counter(header).items() if name and count > 1), None)
        if twice is not None:
            raise DataError(f"Give every column of {table.name} its own name: {twice!r} occurs twice.")
        self._table, self._header, self._labels = table, header, labels
        self._several = self._columns_of(label)
        if self._several or (label is not None and not labels and label.lower() not in header):
            label = None
        self._at = {role: self._place(role, label if role == "label" else None) for role in _ALIASES}
        folders = (table.parent / name for name in _TRANSCRIPTS)
        self._transcripts = next((folder for folder in folders if folder.is_dir()), None)
        has_clip = "clip_id" in header and self._at["video"] is not None  # as in MMSA's label.csv
        self._clip = header.index("clip_id") if has_clip else None
        no_id = self._at["id"] is None and self._clip is None
        if no_id and sum(is_number(name) for name in header) > 1:
            raise DataError(
                f"Give {table.name} a header line with the columns id and text: its first line is a row, "
                f"{', '.join(header):.200} (CMU-MOSI's own labels are read with their raw folder)."
            )
        if no_id or (self._at["text"] is None and self._transcripts is None):
            raise DataError(
                f"Give {table.name} the columns id and text (and split, label; start and stop where streams are cut by "
                f"time): it has {', '.join(header)}."
            )

    def _columns_of(self, label: str | None) -> dict[str, int]:
        """Where several labels are, by name; empty where one or none is named."""
        names = [] if label is None or label.lower() in self._header else several_columns(label)
        if len(names) < 2 or not self._labels:
            return {}
        return {name: at for name in names if (at := self._place("label", name)) is not None}

    def _place(self, role: str, named: str | None) -> int | None:
        header = self._header
        if named is not None:
            if named.lower() not in header:
                raise DataError(
                    f"Name a {role} column that {self._table.name} has: {named!r} is not among {', '.join(header)}."
                )
            return header.index(named.lower())
        return next((header.index(name) for name in _ALIASES[role] if name in header), None)

    def segment(self, line: int, row: list[str]) -> Segment:
        """The segment of a row.

        Raises:
            DataError: A cell cannot be read.
        """
        cells = {role: None if at is None else row[at].strip() for role, at in self._at.items()}
        name = cells["id"] or ""
        if self._at["id"] is None and self._clip is not None:
            name = f"{cells['video']}$_${row[self._clip].strip()}"
        if not name:
            raise DataError(f"Give line {line} of {self._table.name} an id.")
        span = self._span(line, cells["start"], cells["stop"])
        text, file = cells["text"], None
        if text is None and self._transcripts is not None:
            text, file = _transcript(self._transcripts, name)
        if text is not None and len(text) > TEXT:
            raise DataError(
                f"Shorten the text of line {line} of {self._table.name} to {TEXT:,} characters: it has {len(text):,}."
            )
        split, label = cells["split"], cells["label"]
        return Segment(
            id=name,
            video=cells["video"] or video_of(name),
            split=split_name(split) if split else ALL,
            span=span,
            label=self._label(line, row, label),
            text=text or "",
            fold=cells["fold"] or "",
            has_video=bool(cells["video"]),
            transcript=file,
        )

    def _label(self, line: int, row: list[str], label: str | None) -> float | str | tuple[int, ...] | None:
        if not self._labels:
            return label or None
        if not self._several:
            return _label(label, self._table, line)
        values = [_label(row[at].strip(), self._table, line) for at in self._several.values()]
        if any(isinstance(value, str) or (value is not None and value < 0) for value in values):
            raise DataError(
                f"Give several labels at once as numbers, 0 where absent: line {line} of {self._table.name} has others."
            )
        known = [value for value in values if isinstance(value, float)]
        return tuple(int(value > 0) for value in known) if len(known) == len(values) else None

    def _span(self, line: int, start: str | None, stop: str | None) -> tuple[float, float] | None:
        if not (start and stop):
            return None
        span = _time(start, self._table, line), _time(stop, self._table, line)
        if span[1] < span[0]:
            raise DataError(
                f"Let no segment stop before it starts: line {line} of {self._table.name} has {start} to {stop}."
            )
        return span


def _transcript(folder: Path, name: str) -> tuple[str, Path]:
    """The text of a segment, and its file."""
    file = folder / f"{name}.txt"
    try:
        if file.parent != folder:
            raise OSError("an id must not name a folder")
        text = read_text(file, 4 * TEXT)
        if len(text) > TEXT:
            raise OSError(f"it has more than {TEXT:,} characters")
        return text, file
    except PermissionError as error:
        raise unreadable(f"{folder.name}/{file.name}") from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null byte in the id
        raise DataError(
            f"Add the transcript {folder.name}/{file.name} as UTF-8 text of at most {TEXT:,} characters: it cannot be "
            f"read ({getattr(error, 'strerror', None) or error})."
        ) from error


def _time(value: str, table: Path, line: int) -> float:
    try:
        seconds = number_of(value)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise DataError(f"Write start and stop in seconds: line {line} of {table.name} has {value!r}.")
    return seconds


def _label(value: str | None, table: Path, line: int) -> float | str | None:
    if value is None or value == "":
        return None
    try:
        number = number_of(value)
    except ValueError:
        if _DECIMAL_COMMA.fullmatch(value):
            raise DataError(f"Write labels with a decimal point: line {line} of {table.name} has {value!r}.") from None
        return value
    if not math.isfinite(number):
        raise DataError(f"Leave unknown labels empty: line {line} of {table.name} has {value!r}.")
    return number
