"""Examples that a pickle holds as tuples of words, arrays and a label: MAG-BERT's, MISA's and UR-FUNNY's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmsbert_fast.data.example import Alignment, DataError, Example, Label, frames_of, no_frames
from cmsbert_fast.data.labels import LabelChoice
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.untrusted import content

HUMOUR = ("no humour", "humour")  # the classes of UR-FUNNY
_COLUMNS = 64  # of a label, at most
_SPLITS = 64  # of a pickle, at most: any number of names can be given to one split


class Parts(NamedTuple):
    """The parts of an example as the pickle holds them; ``where`` names it in errors."""

    where: str
    segment: Any
    words: Any
    visual: Any
    acoustic: Any


def splits_of(root: Mapping[str, Any], path: Path) -> list[str]:
    """The names of a pickle's splits.

    Raises:
        DataError: There are too many: each may be the same object, and each is read.
    """
    if len(root) > _SPLITS:
        raise DataError(f"Do not use {path.name}: it has {len(root)} splits, and no data set has more than {_SPLITS}.")
    return list(root)


def unpack(item: Any, inner: tuple[int, ...], where: str) -> tuple[Any, Any, Any]:
    """The features, label and segment of an example whose features have one of the lengths ``inner``.

    Raises:
        DataError: It is built differently.
    """
    if not isinstance(item, tuple | list) or len(item) != 3:
        raise DataError(f"Repair {where}: it is not a triple of features, label and segment.")
    features, value, segment = item
    if not isinstance(features, tuple | list) or len(features) not in inner:
        raise DataError(f"Repair {where}: its features do not have {' or '.join(map(str, inner))} parts.")
    return features, value, segment


def label_of(value: Any, where: str, choice: LabelChoice) -> Label | None:
    """A label, given as a number or as an array of one row; None where it is NaN.

    Args:
        value: The label.
        where: Its example, for errors.
        choice: Which of several it is.

    Raises:
        DataError: It is not a number, has no such column, or has several and none was chosen.
    """
    flat = content.few_of(value, _COLUMNS)
    if flat is None or flat.dtype.kind not in "fiu" or not flat.size:
        raise DataError(f"Choose another file: the label of {where} is not a number or a row of at most {_COLUMNS}.")
    return choice.labels_of(flat, where)


def score_of(value: Any, where: str) -> float | None:
    """A label that is one number; None where it is NaN.

    Raises:
        DataError: It is not one number.
    """
    flat = content.few_of(value, _COLUMNS)
    if flat is None or flat.dtype.kind not in "fiu" or flat.size != 1:
        size = f"{flat.size} columns" if flat is not None else "too many columns"
        raise DataError(f"Choose another file: the label of {where} is not one number, it has {size}.")
    score = float(flat[0])
    return score if np.isfinite(score) else None


def humour_of(value: Any, where: str) -> int | None:
    """A label of UR-FUNNY, an index of `HUMOUR`; None where it is NaN.

    Raises:
        DataError: It is another number, or not one number.
    """
    score = score_of(value, where)
    if score not in (None, 0.0, 1.0):
        raise DataError(f"Repair {where}: its label is {score}, expected 0 or 1.")
    return None if score is None else int(score)


def example_of(
    parts: Parts, label: Label | None, labels: bool, reading: content.Reading, report: ReadReport
) -> Example | None:
    """An example from its parts.

    Args:
        parts: The arrays are frames (n, d).
        label: Its label; None where it is not a number.
        labels: Whether labels are wanted; then an example without one is dropped.
        reading: Charges its texts.
        report: Counts what is dropped or altered.

    Returns:
        The example; None where it was dropped: it has no words, or no label.

    Raises:
        DataError: A part is of the wrong type or shape.
    """
    if labels and label is None:  # first: a dropped example is not charged, so it must cost nothing
        report.drop("its label is not a number")
        return None
    spoken = tuple(reading.texts_of(content.items_of(parts.words)))
    if not spoken:
        report.drop("it has no text")
        return None
    frames = {"visual": rows_of(parts.visual, parts.where), "acoustic": rows_of(parts.acoustic, parts.where)}
    aligned = all(len(rows) in (0, len(spoken)) for rows in frames.values())
    if not aligned:
        report.tally("examples have a different number of frames than words, and count as not aligned", 1)
    cleaned = {m: frames_of(rows, m, report) if rows.size else no_frames(rows.shape[1]) for m, rows in frames.items()}
    alignment = Alignment.WORDS if aligned else Alignment.NONE
    return Example(content.text_of(parts.segment), spoken, label, cleaned["visual"], cleaned["acoustic"], alignment)


def rows_of(value: Any, where: str) -> np.ndarray:
    """Frames (n, d); one frame may come as a vector.

    Raises:
        DataError: They are not such an array.
    """
    rows = value if isinstance(value, np.ndarray) else content.array_of(value)
    if rows.ndim == 1 and rows.size:
        rows = rows[None]
    if rows.size == 0 and rows.ndim == 1:
        return no_frames()
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise DataError(f"Repair {where}: its frames have the shape {rows.shape}, expected (frames, features).")
    return rows
