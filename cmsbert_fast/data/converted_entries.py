"""What the manifest and the lines of converted data say (:mod:`cmsbert_fast.data.formats.converted`), checked.

Both are untrusted: every entry has its type and range, or a ValueError says which has not.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from cmsbert_fast.data.example import MODALITIES, Alignment, Label
from cmsbert_fast.data.folds import video_of
from cmsbert_fast.data.report import ReadReport


class Range(NamedTuple):
    """Rows of a file of frames."""

    begin: int
    length: int


class Ranges(NamedTuple):
    """The rows of an example."""

    visual: Range
    acoustic: Range


class Line:
    """One line of ``examples.jsonl``.

    Raises:
        ValueError: It is not of the form that `convert` writes.
    """

    __slots__ = (
        "alignment",
        "checksums",
        "frames",
        "id",
        "label",
        "non_finite",
        "parts",
        "tallies",
        "timed",
        "video",
        "words",
    )

    def __init__(self, entry: dict[str, Any], begins: dict[str, int], classes: int | None, several: bool) -> None:
        self.id: str = typed(entry["id"], str)
        self.words: tuple[str, ...] = tuple(typed(entry["words"], list))
        if not set(map(type, self.words)) <= {str}:  # at once: a call for every word is slow
            raise ValueError("a word is not text")
        if not self.words:
            raise ValueError("an example has no words")
        self.label: Label | None = None if entry["label"] is None else _label(entry["label"], classes, several)
        self.alignment = _alignment(entry)
        self.frames = Ranges(*(Range(begins[modality], count(entry[modality])) for modality in MODALITIES))
        self.timed = typed(entry.get("timed", False), bool)
        lengths = {rows.length for rows in self.frames} - {0}
        if self.alignment is Alignment.WORDS and not lengths <= {len(self.words)}:
            raise ValueError("an aligned example has a different number of frames than words")
        if self.alignment is Alignment.PIECES and len(lengths) > 1:
            raise ValueError("an aligned example has more frames of one modality than of the other")
        self.video: str = typed(entry["video"], str) if "video" in entry else video_of(self.id)
        self.non_finite: dict[str, int] | None = counts(entry["non_finite"]) if "non_finite" in entry else None
        self.tallies: dict[str, int] | None = counts(entry["tallies"]) if "tallies" in entry else None
        self.checksums: dict[str, int] = counts(entry.get("crc32", {}))  # of the frames' bytes, by modality
        self.parts: dict[str, int] | None = counts(entry["parts"]) if "parts" in entry else None


def _label(value: Any, classes: int | None, several: bool) -> Label:
    """A label as `convert` writes it.

    Raises:
        ValueError: It is of another type or out of range.
    """
    if several:
        present = tuple(count(one) for one in typed(value, list))
        if len(present) != classes or not set(present) <= {0, 1}:
            raise ValueError(f"a label is not {classes} of 0 and 1")
        return present
    if classes is None:
        if not math.isfinite(typed(value, int, float)):
            raise ValueError(f"a label is {value}")
    elif not 0 <= typed(value, int) < classes:
        raise ValueError(f"a label is {value}, but there are {classes} classes")
    return value


def _alignment(entry: dict[str, Any]) -> Alignment:
    """What frames belong to; until version 3 a word, or nothing."""
    if "aligned" in entry:
        return Alignment.WORDS if typed(entry["aligned"], bool) else Alignment.NONE
    return Alignment(entry["alignment"])


def typed(value: Any, *types: type) -> Any:
    if type(value) not in types:
        raise ValueError(f"expected {types[0].__name__}, found {type(value).__name__}")
    return value


def count(value: Any) -> int:
    if typed(value, int) < 0:
        raise ValueError(f"a number is {value}, less than 0")
    return value


def counts(value: Any) -> dict[str, int]:
    return {key: count(number) for key, number in typed(value, dict).items()}


def checked_report(entry: dict[str, Any]) -> ReadReport:
    """The report of a manifest, checked: a manifest is untrusted.

    Raises:
        ValueError: Its parts are of another type.
    """
    report = ReadReport(**typed(entry, dict))
    typed(report.source, str)
    for note in typed(report.notes, list):
        typed(note, str)
    for names in [*typed(report.columns, dict).values(), *typed(report.features, dict).values()]:
        for name in typed(names, list):
            typed(name, str)
    for numbers in (report.counts, report.non_finite, report.dropped, report.widths, report.frames, report.tallies):
        counts(numbers)
    if not set(MODALITIES) >= report.widths.keys() >= report.frames.keys():
        raise ValueError("it has the width of an unknown modality")
    return report


def checked_statistics(entry: Any, widths: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation by modality, where the training split has frames."""
    found = {}
    for modality, values in typed(entry, dict).items():
        if not count(values["frames"]):
            continue
        rows = []
        for name in ("mean", "std"):
            for value in typed(values[name], list):
                typed(value, float, int)
            row = np.array(values[name], dtype=np.float64)
            if row.shape != (widths[modality],) or not np.isfinite(row).all():
                raise ValueError(f"the {name} of {modality} is not {widths[modality]} numbers")
            rows.append(row)
        if (rows[1] < 0).any():
            raise ValueError(f"a standard deviation of {modality} is negative")
        found[modality] = (rows[0], rows[1])
    return found
