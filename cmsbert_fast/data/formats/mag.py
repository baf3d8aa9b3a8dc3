"""MAG-BERT's pickles: ``{"train", "dev", "test": [((words, visual, acoustic), label, segment), ...]}``.

There is one frame a word.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data.example import DataError, Example, ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.source import Source, frames_of, no_frames, split_name, splits_of
from cmsbert_fast.data.untrusted import pickles

_COLUMNS = 64  # of a label, at most


def recognise(root: Any) -> bool:
    """Whether a pickle's content is MAG-BERT's."""
    if not isinstance(root, dict) or not root:
        return False
    firsts = [part[0] for part in root.values() if isinstance(part, list) and part]
    return (
        all(isinstance(part, list) for part in root.values())
        and bool(firsts)
        and all(
            isinstance(first, tuple | list)
            and len(first) == 3
            and isinstance(first[0], tuple | list)
            and len(first[0]) == 3
            and isinstance(first[0][0], list | tuple | pickles.Array)
            for first in firsts
        )
    )


def mag_source(path: Path, root: Mapping[str, Any], request: DataRequest) -> Source:
    """The examples of a MAG-BERT file."""
    labels = request.labels
    if request.label is not None:
        raise DataError(f"Leave out --label: {path.name} has one label an example.")

    def read(split: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        reading = pickles.Reading(path)
        for number, item in enumerate(root[split]):
            where = f"{split}[{number}] of {path.name}"
            (words, visual, acoustic), value, segment = unpack(item, (3,), where)
            score = score_of(value, where) if labels else None
            yield from one(split_name(split), segment, words, visual, acoustic, score, report, where, reading, labels)

    return Source(name=path.stem, format="MAG-BERT", path=path, files=[path], groups=splits_of(root, path), read=read)


def unpack(item: Any, inner: tuple[int, ...], where: str) -> tuple[Any, Any, Any]:
    """The three parts of an example whose first part has one of the lengths ``inner``.

    Raises:
        DataError: It is built differently.
    """
    if not isinstance(item, tuple | list) or len(item) != 3:
        raise DataError(f"Repair {where}: it is no triple of features, label and segment.")
    features, value, segment = item
    if not isinstance(features, tuple | list) or len(features) not in inner:
        raise DataError(f"Repair {where}: its features have not {' or '.join(map(str, inner))} parts.")
    return features, value, segment


def score_of(value: Any, where: str, column: int | None = None) -> float | None:
    """A label, given as a number or as an array of one row; None where it is NaN.

    Args:
        value: The label.
        where: Its example, for errors.
        column: Which of several it is; None: there is but one.

    Raises:
        DataError: It is no number, has no such column, or has several and none was chosen.
    """
    flat = pickles.few_of(value, _COLUMNS)
    if flat is None or flat.dtype.kind not in "fiu" or not (flat.size == 1 if column is None else column < flat.size):
        size = f"{flat.size} columns" if flat is not None else "too many columns"
        chosen = "one number" if column is None else f"a number in column {column}"
        raise DataError(f"Choose another file or --label: the label of {where} is not {chosen}, it has {size}.")
    score = float(flat[column or 0])
    return score if np.isfinite(score) else None


def one(
    split: str,
    segment: Any,
    words: Any,
    visual: Any,
    acoustic: Any,
    value: float | int | None,
    report: ReadReport,
    where: str,
    reading: pickles.Reading,
    labels: bool = True,
) -> Iterator[tuple[str, Example]]:
    """An example of words and arrays (frames, d), unless it has no words, or no label though ``labels`` are wanted."""
    if labels and value is None:  # first: what is dropped leaves nothing to charge, and must cost nothing
        report.drop("its label is not a number")
        return
    spoken = tuple(reading.texts_of(pickles.items_of(words)))
    if not spoken:
        report.drop("it has no text")
        return
    frames = {"visual": rows_of(visual, where), "acoustic": rows_of(acoustic, where)}
    aligned = all(len(rows) in (0, len(spoken)) for rows in frames.values())
    if not aligned:
        report.tally("examples have not as many frames as words, and count as not aligned", 1)
    cleaned = {m: frames_of(rows, m, report) if rows.size else no_frames(rows.shape[1]) for m, rows in frames.items()}
    yield split, Example(pickles.text_of(segment), spoken, value, aligned=aligned, **cleaned)


def rows_of(value: Any, where: str) -> np.ndarray:
    """Frames (n, d); one frame may come as a vector.

    Raises:
        DataError: They are no such array.
    """
    rows = value if isinstance(value, np.ndarray) else pickles.array_of(value)
    if rows.ndim == 1 and rows.size:
        rows = rows[None]
    if rows.size == 0 and rows.ndim == 1:
        return no_frames()
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise DataError(f"Repair {where}: its frames have the shape {rows.shape}, expected (frames, features).")
    return rows
