"""What labels are, and so what is predicted and measured: scores of a scale, one class, or several classes at once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from cmsbert_fast.data.example import SPLITS, Corpus, DataError, Example, Label, Outline, outlines

TASKS = ("classification", "regression")
_CLASSES = 1000  # made of numbers, at most
_LIKE_CLASSES = 20  # so many whole numbers, none negative, may be classes
_OUTLIER = 10.0  # interquartile ranges from the median
_ROUNDING = 1e-5  # labels are float32


class LabelKind(Enum):
    """A kind of label; its value says it in words."""

    SENTIMENT = "scores from -3 to 3, as MOSI and MOSEI have them"
    SIMS = "scores from -1 to 1, as CH-SIMS has them"
    SIGNED = "scores with a sign, of no scale with names for its steps"
    SCORE = "scores without a sign"
    CLASSES = "classes"
    SEVERAL = "several labels at once, each present or absent"


class Labels(NamedTuple):
    """What the labels of a corpus are.

    Attributes:
        kind: Decides which metrics mean something.
        classes: Names of the classes; empty for scores.
    """

    kind: LabelKind
    classes: tuple[str, ...] = ()


def labels_of(corpus: Corpus) -> Labels:
    """What the labels of a corpus are, from all of its splits."""
    if corpus.classes:
        return Labels(LabelKind.SEVERAL if corpus.several else LabelKind.CLASSES, corpus.classes)
    scores = _values(corpus, tuple(corpus.splits))
    if not scores.size or scores.min() >= 0 or scores.max() <= 0:
        return Labels(LabelKind.SCORE)
    largest = np.abs(scores).max() - _ROUNDING
    return Labels(LabelKind.SIMS if largest <= 1 else LabelKind.SENTIMENT if largest <= 3 else LabelKind.SIGNED)


def _values(corpus: Corpus, splits: Sequence[str]) -> np.ndarray:
    """All known scores or class indices of some splits, (n,)."""
    labels = [o.label for split in splits for o in outlines(corpus.splits.get(split, ()))]
    return np.array([label for label in labels if label is not None and not isinstance(label, tuple)], dtype=float)


def warnings_of(corpus: Corpus, task: str | None = None) -> list[str]:
    """What may be wrong with labels, a sentence each.

    Args:
        corpus: Splits of other names than those of training count as well.
        task: The task that was asked for; None: it follows from the labels.
    """
    if corpus.classes:
        return _absent_classes(corpus)
    scores = _values(corpus, tuple(corpus.splits))
    if not scores.size:
        return []
    found = []
    whole = np.unique(scores)
    if task is None and 2 <= len(whole) <= _LIKE_CLASSES and whole[0] >= 0 and (whole == np.rint(whole)).all():
        shown = ", ".join(f"{value:g}" for value in whole[:5]) + (", ..." if len(whole) > 5 else "")
        found.append(
            f"all labels are whole numbers ({shown}) and are predicted as scores; give --task classification if they "
            "are classes, or --task regression."
        )
    if len(whole) == 1 and len(scores) > 1:
        found.append(f"every label is {whole[0]:g}: there is nothing to learn and no correlation.")
    return found + outliers(corpus)


def _absent_classes(corpus: Corpus) -> list[str]:
    """Classes that are tested but not trained."""
    present = {}
    for split in SPLITS:
        labels = [o.label for o in outlines(corpus.splits.get(split, ())) if o.label is not None]
        if corpus.several:
            sets = [label for label in labels if isinstance(label, tuple)]
            present[split] = {k for label in sets for k, there in enumerate(label) if there}
        else:
            present[split] = {int(label) for label in labels if not isinstance(label, tuple)}
    if not all(corpus.splits.get(split) for split in SPLITS):
        return []
    names = corpus.classes or ()
    return [
        f"no example of the class {name!r} is in the train split, but the {' and '.join(where)} split has it."
        for k, name in enumerate(names)
        if k not in present["train"] and (where := [split for split in SPLITS[1:] if k in present[split]])
    ]


def outliers(corpus: Corpus) -> list[str]:
    """Labels far from all others, as a typing error makes them: a sentence, or none."""
    scores = _values(corpus, tuple(corpus.splits))
    if not scores.size:
        return []
    low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75])
    limit = _OUTLIER * (high - low)
    far = np.abs(scores - middle) > limit
    if not limit or not far.any():
        return []
    first = next(
        o
        for examples in corpus.splits.values()
        for o in outlines(examples)
        if o.label is not None and not isinstance(o.label, tuple) and abs(o.label - middle) > limit
    )
    return [
        f"{np.count_nonzero(far)} of {len(scores)} labels are far from all others, such as {first.label:g} of "
        f"{first.id!r:.80}; half of them lie from {low:g} to {high:g}."
    ]


def with_task(corpus: Corpus, task: str | None) -> Corpus:
    """A corpus whose labels are those of a task.

    Args:
        corpus: Its labels may be numbers or classes.
        task: "classification": whole numbers become classes, in order, and numbers from 0 become the classes absent (0)
            and present; "regression": labels must be numbers; None: labels stay what they are.

    Raises:
        DataError: There is no such task, or the labels do not allow it.
    """
    if task is None:
        return corpus
    if task not in TASKS:
        raise DataError(f"Choose --task among {' and '.join(TASKS)}: {task!r} is neither.")
    if task == "regression":
        if corpus.classes:
            raise DataError(f"Leave out --task regression: the labels of {corpus.name} are names of classes.")
        return corpus
    scores = _values(corpus, tuple(corpus.splits))
    if corpus.classes or not scores.size:
        return corpus
    if (scores == np.rint(scores)).all() and len(values := np.unique(scores)) <= _CLASSES:
        place = {value: k for k, value in enumerate(values.tolist())}
        return _relabelled(corpus, tuple(str(int(value)) for value in values), place)
    if scores.min() == 0:
        corpus.report.note("labels are strengths: the class absent is 0, the class present all above")
        return _relabelled(
            corpus, ("absent", "present"), {value: int(value > 0) for value in np.unique(scores).tolist()}
        )
    raise DataError(
        f"Leave out --task classification: the labels of {corpus.name} are neither names, nor whole numbers, nor "
        f"strengths from 0 on, but {scores.min():g} to {scores.max():g}."
    )


def _relabelled(corpus: Corpus, classes: tuple[str, ...], place: dict[float, int]) -> Corpus:
    splits = {split: _Relabelled(examples, place) for split, examples in corpus.splits.items()}
    return replace(corpus, splits=splits, classes=classes)


class _Relabelled(Sequence[Example]):
    """Examples with classes in place of numbers; frames are read on access, as from what is below."""

    def __init__(self, examples: Sequence[Example], place: dict[float, int]) -> None:
        self._examples, self._place = examples, place

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Relabelled(self._examples[index], self._place)
        example = self._examples[index]
        return replace(example, label=self._class(example.label))

    def __iter__(self) -> Iterator[Example]:
        return (self[k] for k in range(len(self)))

    def outlines(self) -> Iterator[Outline]:
        """The examples without their frames."""
        return (outline._replace(label=self._class(outline.label)) for outline in outlines(self._examples))

    def _class(self, label: Label | None) -> int | None:
        return None if label is None or isinstance(label, tuple) else self._place[float(label)]
