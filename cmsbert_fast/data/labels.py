"""Labels: which columns of several they are, and classes by name."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cmsbert_fast.data.example import DataError, Label

EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")  # of MOSEI, in order
MOSEI_LABELS = ("sentiment", *EMOTIONS)
_NAMED = {len(names): names for names in (MOSEI_LABELS, EMOTIONS)}  # columns that have names, by how many there are
_ALL_EMOTIONS = "emotions"


class LabelChoice(NamedTuple):
    """What ``--label`` chooses among labels of several columns.

    Attributes:
        stream: The name of their stream, where several streams are labels.
        columns: Names or numbers, in lower case; empty: not chosen.
    """

    stream: str | None
    columns: tuple[str, ...] = ()

    @property
    def several(self) -> bool:
        """Whether several labels are wanted at once: of each, whether it is present."""
        return len(self.columns) > 1

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of several labels."""
        return self.columns if self.several else None

    def labels_of(self, row: np.ndarray, where: str) -> Label | None:
        """The label in a row of columns, or of several labels, which are present: 1 where a value is above 0.

        Args:
            row: (width,).
            where: What has the row, for errors.

        Returns:
            None where a value is NaN or infinite.

        Raises:
            DataError: There is no such column, none was chosen among several, or one of several is negative.
        """
        values = row[[_place(name, len(row), where, self.stream) for name in self.columns or ("0",)]].astype(float)
        if not self.columns and len(row) != 1:
            raise DataError(f"Choose {advice(len(row), self.stream)}: {where} has {len(row)} labels.")
        if not np.isfinite(values).all():
            return None
        if not self.several:
            return float(values[0])
        if (values < 0).any():
            raise DataError(
                f"Choose one --label or only emotions: {where} has a negative value, and of several labels each must "
                "be the strength of an emotion, 0 where it is absent."
            )
        return tuple(int(value > 0) for value in values)


def choice_of(label: str | None) -> LabelChoice:
    """What ``[STREAM.]COLUMN`` names: a column by number or, of MOSEI, by name; or several, "happy,sad".

    "emotions" are all six of MOSEI. Anything else is the name of a stream.
    """
    if label is None:
        return LabelChoice(None)
    columns = _columns(label)
    if columns:
        return LabelChoice(None, columns)
    stream, _, rest = label.rpartition(".")
    columns = _columns(rest)
    return LabelChoice(stream, columns) if stream and columns else LabelChoice(label)


def _columns(text: str) -> tuple[str, ...]:
    """The columns that a text names; empty where it names something else."""
    names = text.lower().split(",")
    names = list(EMOTIONS) if names == [_ALL_EMOTIONS] else [name.strip() for name in names]
    known = all(name in MOSEI_LABELS or name.isdecimal() for name in names)
    return tuple(dict.fromkeys(names)) if known else ()


def _place(name: str, width: int, where: str, stream: str | None) -> int:
    """Where a column is, among ``width``."""
    if name.isdecimal() and int(name) < width:
        return int(name)
    if name in _NAMED.get(width, ()):
        return _NAMED[width].index(name)
    if name == MOSEI_LABELS[0] and width == 1:
        return 0
    raise DataError(f"Choose {advice(width, stream)}: {where} has no label {name!r}.")


def advice(width: int, stream: str | None = None) -> str:
    """How to name one of ``width`` columns."""
    prefix = f"{stream}." if stream else ""
    names = _NAMED.get(width)
    by_name = f" (or {', '.join(names)}; several with commas)" if names else ""
    return f"one of the {width} columns with --label {prefix}0 to {width - 1}{by_name}"


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
