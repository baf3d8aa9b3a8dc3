"""The raw folders of CMU-MOSI and CMU-MOSEI: transcripts of segments, and MOSI's table of labels, which has no header.

    Labels/OpinionLevelSentiment.csv            start, stop, video, segment, label
    Transcript/Segmented/VIDEO.annotprocessed   a line a segment: number_DELIM_text
    Transcript/Segmented/Combined/VIDEO.txt     MOSEI's: video___number___start___stop___text

Frames are streams beside the folder Transcript. MOSEI's labels are in its ``.csd`` file only, so that its raw folder
can be predicted, but not trained on.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from cmsbert_fast.data.example import MODALITIES, DataError, unreadable
from cmsbert_fast.data.folds import ALL
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.segment_table import Segment
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.streams.assignment import find_streams, kind_of
from cmsbert_fast.data.streams.segment_reader import Selection, table_source
from cmsbert_fast.data.tables import number_of, read_table
from cmsbert_fast.data.untrusted.files import read_text

_LABELS = "OpinionLevelSentiment.csv"
_INSIDE = "Raw"
_LARGEST = 4 << 20  # bytes of the transcripts of a video
_MOST = 200_000  # segments; MOSEI has 23,000
_COLUMNS = 5  # of labels, and of MOSEI's lines
_PLACES = ("Transcript/Segmented/Combined", "Transcript/Segmented", "Transcript/Combined", "Transcript", "Segmented")
_SUFFIXES = (".annotprocessed", ".txt")
_DELIMITERS = ("_DELIM_", "___")


class Layout(NamedTuple):
    """Where the parts are; ``labels`` is None for MOSEI."""

    folder: Path
    labels: Path | None
    transcripts: list[Path]


def find(path: Path) -> Layout | None:
    """The parts of a raw folder, or of the folder ``Raw`` in it; None where it is none."""
    if not path.is_dir():
        return None
    for folder in (path, path / _INSIDE):
        labels = next((p for p in (folder / "Labels" / _LABELS, folder / _LABELS) if p.is_file()), None)
        for place in (folder / name for name in _PLACES):
            files = (
                sorted(p for p in place.glob("*") if p.suffix in _SUFFIXES and p.is_file()) if place.is_dir() else []
            )
            if files and (labels is not None or "___" in _content(files[0])):
                return Layout(folder, labels, files)
    return None


def cmu_raw_source(layout: Layout, request: DataRequest) -> Source:
    """The segments of a raw folder, with the streams in it.

    Raises:
        DataError: There are no labels and they are wanted, or a line is built differently.
    """
    folder, labels, transcripts = layout
    if request.label is not None:
        raise DataError(f"Leave out --label: {_LABELS} has one label a segment.")
    if request.labels and labels is None:
        raise DataError(
            f"Give the folder of MOSEI's .csd files to train: the raw transcripts of {folder.name} have no labels."
        )
    notes = [f"transcripts of {len(transcripts)} videos"]
    spoken = _spoken(transcripts, notes)
    if labels is None:
        segments = [_segment(line, None, None) for line in spoken.values()]
    else:
        segments = list(_labelled(labels, spoken, request.labels))
        if more := len(spoken) - sum(bool(segment.text) for segment in segments):
            notes.append(f"{more} transcribed segments are not in {labels.name}")
    if not segments:
        raise DataError(f"Add segments to {(labels or folder).name}: it has none.")
    here = {kind_of(stream.stem) for stream in find_streams(folder)}
    absent: dict[str, Any] = {m: ("none",) for m in MODALITIES if not getattr(request, m) and m not in here}
    if absent:
        notes.append(f"no {' and no '.join(absent)} frames: add a folder of them beside Transcript (docs/data.md)")
    selection = Selection("raw folder of CMU-MOSI" if labels else "raw folder of CMU-MOSEI", segments, None, {})
    source = table_source(labels or transcripts[0], selection, replace(request, **absent), folder)
    source.notes += notes
    source.name = folder.resolve().parent.name if folder.name == _INSIDE else source.name
    return source


class _Line(NamedTuple):
    """A line of a transcript; ``span`` is None in MOSI's."""

    video: str
    number: str
    span: tuple[str, str] | None
    text: str
    file: Path

    @property
    def key(self) -> tuple[str, str]:
        return self.video, self.number


def _spoken(transcripts: list[Path], notes: list[str]) -> dict[tuple[str, str], _Line]:
    """The lines of all transcripts, by video and number; the last one where a number occurs again, which is noted."""
    spoken: dict[tuple[str, str], _Line] = {}
    again = 0
    for line in (line for file in transcripts for line in _lines(file)):
        again += line.key in spoken
        spoken[line.key] = line
        if len(spoken) > _MOST:
            raise DataError(f"Do not use these transcripts: they have more than {_MOST:,} segments.")
    if again:
        notes.append(f"{again} lines of transcripts are replaced by later ones of the same number")
    return spoken


def _content(file: Path) -> str:
    try:
        return read_text(file, _LARGEST)
    except PermissionError as error:
        raise unreadable(file.name) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Save {file.name} as UTF-8 text: it cannot be read ({error}).") from error


def _lines(file: Path) -> Iterator[_Line]:
    """The segments of a transcript."""
    for number, line in enumerate(_content(file).splitlines(), 1):
        if not line.strip():
            continue
        delimiter = next((mark for mark in _DELIMITERS if mark in line), None)
        parts = line.split(delimiter, _COLUMNS - 1) if delimiter == "___" else line.split(delimiter or "\0", 1)
        if len(parts) == _COLUMNS and delimiter == "___":
            yield _Line(parts[0].strip(), parts[1].strip(), (parts[2], parts[3]), parts[4].strip(), file)
        elif len(parts) > 1:
            yield _Line(file.stem, parts[0].strip(), None, (delimiter or "").join(parts[1:]).strip(), file)
        else:
            raise DataError(
                f"Write the transcript {file.name} with a segment a line, number_DELIM_text: line {number} is not."
            )


def _labelled(table: Path, spoken: dict[tuple[str, str], _Line], labels: bool) -> Iterator[Segment]:
    """The segments of the table of labels."""
    header, rows = read_table(table)
    if len(header) != _COLUMNS:
        raise DataError(f"Give {table.name} the columns start, stop, video, segment, label: line 1 does not have them.")
    for number, row in enumerate(chain([header], rows), 1):
        cells = [cell.strip() for cell in row]
        if number == 1 and cells[0].lower() in ("start", "start_time"):
            continue  # somebody gave it a header
        line = spoken.get((cells[2], cells[3])) or _Line(cells[2], cells[3], None, "", table)
        label = _number(cells[4], table, number) if labels else None
        yield _segment(line, (_number(cells[0], table, number), _number(cells[1], table, number)), label)


def _segment(line: _Line, span: tuple[float, float] | None, label: float | None) -> Segment:
    if span is None and line.span is not None:
        span = _number(line.span[0], line.file, 0), _number(line.span[1], line.file, 0)
    if span is not None and span[1] < span[0]:
        raise DataError(f"Let no segment stop before it starts: {line.video}_{line.number} has {span[0]} to {span[1]}.")
    transcript = line.file if line.text else None
    return Segment(f"{line.video}_{line.number}", line.video, ALL, span, label, line.text, transcript=transcript)


def _number(cell: str, file: Path, line: int) -> float:
    try:
        value = number_of(cell)
        if abs(value) < float("inf"):
            return value
    except ValueError:
        pass
    where = f"line {line} of {file.name}" if line else file.name
    raise DataError(f"Write times in seconds and labels as numbers: {where} has {cell!r:.60}.")
