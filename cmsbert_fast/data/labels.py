"""Labels: the columns of MOSEI, and classes by name."""

from collections.abc import Sequence

from cmsbert_fast.data.example import DataError

MOSEI_LABELS = ("sentiment", "happy", "sad", "anger", "surprise", "disgust", "fear")  # columns, in order


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
