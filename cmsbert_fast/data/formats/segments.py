"""A folder with a table of segments (id, split, start, stop, label, text; tsv or csv) and any number of streams.

The table is the authority on splits, labels and text. Streams (``.csd`` files, or sub-folders of ``.npy`` or ``.csv``
files) are cut per segment, or averaged per word where a word stream is named.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmsbert_fast.data.align import MOST_PAIRS, common_subsequence
from cmsbert_fast.data.example import MODALITIES, DataError, Example, ReadReport
from cmsbert_fast.data.folds import COLUMN, NO_FOLD, Rotation, choose, read_folds
from cmsbert_fast.data.formats import iemocap
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.source import Budget, Source, no_frames, split_name, video_of, words_of
from cmsbert_fast.data.streams.csd import FLOOR, RATIO, ROW
from cmsbert_fast.data.streams.cutting import Assignment, Cutter, words_within
from cmsbert_fast.data.streams.feature_files import START, STOP, number_of, read_table

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
_LOOK, _COMPARE = 8, 1000  # words looked through for a segment, pairs of words compared, that cost a byte of the budget
ALL = "all"  # the split of tables without one, for prediction


@dataclass(slots=True)
class Segment:
    id: str
    video: str
    split: str
    span: tuple[float, float] | None
    label: float | str | None
    text: str
    fold: str = ""
    has_video: bool = False  # whether the table names the video
    transcript: Path | None = None  # the file of its text, where the table has none


def find_table(path: Path) -> Path | None:
    """The table of segments at a path: the file itself, or the one table in the folder that has an id and a text."""
    if path.is_file():
        return path if path.suffix.lower() in (".tsv", ".csv") else None
    tables = sorted(p for p in path.iterdir() if p.suffix.lower() in (".tsv", ".csv") and p.is_file())
    named = [table for table in tables if table.stem.lower() == "segments"]
    found = named or [table for table in tables if _is_table(table)]
    if len(found) > 1:
        raise DataError(f"Choose one of the tables of {path}: {', '.join(p.name for p in found)}.")
    return found[0] if found else None


def _is_table(path: Path) -> bool:
    try:
        header, _ = read_table(path)
    except DataError:
        return False
    has_id = any(name in header for name in (*_ALIASES["id"], "clip_id"))
    return has_id and (
        any(name in header for name in _ALIASES["text"]) or any((path.parent / t).is_dir() for t in _TRANSCRIPTS)
    )


def _column(header: list[str], role: str, table: Path, named: str | None = None) -> int | None:
    if named is not None:
        if named.lower() not in header:
            raise DataError(f"Name a {role} column that {table.name} has: {named!r} is not among {', '.join(header)}.")
        return header.index(named.lower())
    return next((header.index(name) for name in _ALIASES[role] if name in header), None)


def _time(value: str, table: Path, line: int) -> float:
    try:
        seconds = number_of(value)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise DataError(f"Write start and stop in seconds: line {line} of {table.name} has {value!r}.")
    return seconds


def read_segments(table: Path, label: str | None = None, labels: bool = True) -> list[Segment]:
    """The rows of a table of segments; ``labels=False``: whatever its labels are, and whether or not it has some.

    Raises:
        DataError: A needed column is missing, or a cell cannot be read.
    """
    header, rows = read_table(table)
    twice = next((name for k, name in enumerate(header) if name and name in header[:k]), None)
    if twice is not None:
        raise DataError(f"Give every column of {table.name} its own name: {twice!r} occurs twice.")
    if label is not None and not labels and label.lower() not in header:
        label = None
    at = {role: _column(header, role, table, label if role == "label" else None) for role in _ALIASES}
    transcripts = next((table.parent / name for name in _TRANSCRIPTS if (table.parent / name).is_dir()), None)
    clip = header.index("clip_id") if "clip_id" in header and at["video"] is not None else None  # as MMSA's label.csv
    if (at["id"] is None and clip is None) or (at["text"] is None and transcripts is None):
        raise DataError(
            f"Give {table.name} the columns id and text (and split, label; start and stop where streams are cut by "
            f"time): it has {', '.join(header)}."
        )
    segments: list[Segment] = []
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise DataError(f"Give every line of {table.name} {len(header)} cells: line {line} has {len(row)}.")

        def cell(role: str, row: list[str] = row) -> str | None:
            column = at[role]
            return None if column is None else row[column].strip()

        name = cell("id") or ""
        if at["id"] is None and clip is not None:
            name = f"{cell('video')}$_${row[clip].strip()}"
        if not name:
            raise DataError(f"Give line {line} of {table.name} an id.")
        start, stop = cell("start"), cell("stop")
        span = (_time(start, table, line), _time(stop, table, line)) if start and stop else None
        if span is not None and span[1] < span[0]:
            raise DataError(f"Let no segment stop before it starts: line {line} of {table.name} has {start} to {stop}.")
        text, file = cell("text"), None
        if text is None and transcripts is not None:
            file = transcripts / f"{name}.txt"
            try:
                if file.parent != transcripts:
                    raise OSError("an id must not name a folder")
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"Add the transcript {transcripts.name}/{file.name} as UTF-8 text.") from error
        split = cell("split")
        segments.append(
            Segment(
                id=name,
                video=cell("video") or video_of(name),
                split=split_name(split) if split else ALL,
                span=span,
                label=_label(cell("label"), table, line) if labels else cell("label") or None,
                text=text or "",
                fold=cell("fold") or "",
                has_video=bool(cell("video")),
                transcript=file,
            )
        )
    if not segments:
        raise DataError(f"Add segments to {table.name}: it has a header only.")
    return segments


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


def class_names(labels: Sequence[float | str | None], where: str) -> tuple[str, ...] | None:
    """The sorted names of classes, or None where labels are scores.

    Raises:
        DataError: Some labels are scores and some are names.
    """
    known = [label for label in labels if label is not None]
    names = sorted({label for label in known if isinstance(label, str)})
    if not names:
        return None
    if len([1 for label in known if isinstance(label, str)]) != len(known):
        raise DataError(f"Make the labels of {where} all numbers or all names of classes: {names[0]!r} is a name.")
    return tuple(names)


def word_times(
    words: Sequence[str], heard: Sequence[str], times: np.ndarray, span: tuple[float, float]
) -> tuple[np.ndarray, int]:
    """Intervals (n, 2) of the words of a transcript, from the words heard in its segment; and how many had no partner.

    As many words as can be are paired in order. Those without a partner share the time between their neighbours evenly.
    """
    result = np.full((len(words), 2), np.nan)
    written, spoken = common_subsequence([w.lower() for w in words], [w.lower() for w in heard])
    result[written] = times[spoken]
    missing = np.isnan(result[:, 0])
    k = 0
    while k < len(words):
        if not missing[k]:
            k += 1
            continue
        end = k
        while end < len(words) and missing[end]:
            end += 1
        left = result[k - 1, 1] if k else span[0]
        right = max(left, result[end, 0] if end < len(words) else span[1])
        marks = np.linspace(left, right, end - k + 1)
        result[k:end] = np.stack([marks[:-1], marks[1:]], axis=1)
        k = end
    return result, int(missing.sum())


def segment_source(table: Path, request: DataRequest) -> Source:
    """A table of segments with the streams beside it.

    Raises:
        DataError: A column is missing, or which stream serves what cannot be told.
    """
    labels = request.labels
    segments = read_segments(table, request.label, labels)
    notes: list[str] = []
    dropped: dict[str, int] = {}
    classes: tuple[str, ...] | None = None
    if iemocap.recognise([(s.id, s.label) for s in segments]):
        kind = "IEMOCAP table"
        chosen, names, others = iemocap.select(segments)
        rotations = iemocap.rotations(chosen)  # the same with and without labels
        if labels:
            segments, classes, dropped = chosen, names, others
    else:
        kind = "table of segments"
        rotations = _column_of_folds(segments)
        if labels:
            classes = class_names([s.label for s in segments], table.name)
    assign = _splitter(table, rotations, request.folds, request.fold)
    if request.folds is not None and choose(rotations, request.folds) is None:
        rotations = {}  # of what a file names, which may be less than all
    # The table holds labels and text: label streams are not needed, and words only where they are named.
    assignment = Assignment(table.parent, request.visual, request.acoustic, request.words or "none", "none")
    assignment.describe(notes)
    index = {name: k for k, name in enumerate(classes)} if classes else {}
    groups: dict[str, list[Segment]] = {}
    for segment in segments:
        groups.setdefault(segment.video, []).append(segment)
    files = [table, *(s.transcript for s in segments if s.transcript), *assignment.files]
    budget = Budget(RATIO * sum(file.stat().st_size for file in files) + FLOOR)
    cutters = {m: Cutter(getattr(assignment, m), m, budget) for m in MODALITIES}
    widths = {m: cutter.width for m, cutter in cutters.items()}
    first, last = next(iter(groups), None), next(reversed(groups), None)

    def read(video: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        if video == first:
            for reason, count in dropped.items():
                report.drop(reason, count)
        told: tuple[list[str], np.ndarray] | None = None
        for segment in groups[video]:
            split = assign(segment)
            if split is None:
                report.drop(NO_FOLD)
                continue
            spoken = words_of(segment.text)
            if not spoken:
                report.drop("it has no text")
                continue
            times = None
            if assignment.words is not None:
                if segment.span is None:
                    raise DataError(f"Give {table.name} columns start and stop: words are cut by time.")
                if video not in assignment.words:
                    report.drop(f"its video is not in {assignment.words.name}")
                    continue
                if told is None:
                    budget.spend(ROW * assignment.words.rows(video))
                    told = assignment.words.read_words(video)
                heard, spans = words_within(*told, *segment.span)
                if len(spoken) * len(heard) > MOST_PAIRS:
                    raise DataError(
                        f"Cut {segment.id!r} into shorter segments: it has {len(spoken)} words, to be found among "
                        f"{len(heard)} of {assignment.words.name}."
                    )
                # Any number of segments may look through all words of a video.
                budget.spend(len(told[0]) // _LOOK + len(spoken) * len(heard) // _COMPARE)
                times, missing = word_times(spoken, heard, spans, segment.span)
                report.tally("words are not in the word stream; their times were interpolated", missing)
            # An id without a number is called a video's only because there is nothing to cut off.
            alone = segment.id == video and len(groups[video]) == 1 and not segment.has_video
            recording = None if alone else video
            frames: dict[str, np.ndarray] = {}
            for modality, cutter in cutters.items():
                if times is not None:
                    found = cutter.average(segment.id, recording, segment.span, times, report)
                else:
                    found = cutter.cut(segment.id, recording, segment.span, report)
                if widths[modality] and (found is None or not len(found)):
                    report.tally(f"examples have no {modality} frame", 1)
                frames[modality] = no_frames(widths[modality]) if found is None else found
            value = None
            if labels:
                value = index[segment.label] if isinstance(segment.label, str) else segment.label
            example = Example(segment.id, spoken, value, aligned=times is not None, **frames)
            budget.see(example)
            yield split, example
        for cutter in cutters.values():
            cutter.forget()
            if video == last:
                cutter.finish(report)

    return Source(
        name=table.parent.resolve().name,
        format=kind,
        path=table.parent,
        files=files,
        groups=list(groups),
        read=read,
        notes=notes,
        classes=classes,
        budget=budget,
        rotations=rotations,
    )


def _column_of_folds(segments: Sequence[Segment]) -> dict[str, Rotation]:
    """The folds of a table's own column, where it has enough of them: the next part validates."""
    parts = sorted({segment.fold for segment in segments if segment.fold})
    if len(parts) < 3:
        return {}
    with contextlib.suppress(ValueError):  # "10" comes after "9"
        parts.sort(key=int)
    place = {part: k for k, part in enumerate(parts)}
    valid = [(k + 1) % len(parts) for k in range(len(parts))]
    return {COLUMN: Rotation({s.id: place[s.fold] for s in segments if s.fold}, valid)}


def _splitter(
    table: Path, rotations: Mapping[str, Rotation], folds: str | None, fold: int | None
) -> Callable[[Segment], str | None]:
    """How a table's segments are split: by a file of folds, by folds of its own, or by its own splits."""
    if folds is None and fold is None:
        return lambda segment: segment.split
    chosen = choose(rotations, folds)
    if chosen is not None:
        return rotations[chosen].splitter(fold)
    if folds is not None:
        return read_folds(folds, fold).splitter
    raise DataError(f"Add a column fold with three folds or more to {table.name}, or leave out --fold.")
