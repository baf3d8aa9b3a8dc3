"""MISA's pickles: ``train.pkl``, ``dev.pkl`` and ``test.pkl``.

Each is a list of ``((word ids, visual, acoustic, words), label, segment)``. The variant of MMIM adds the lengths of
both sequences to the inner tuple; frames beyond them are padding. MISA's cache of UR-FUNNY has no segments: the ids of
its pairs are their split and position.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data.example import DataError, Example
from cmsbert_fast.data.folds import split_name
from cmsbert_fast.data.labels import MOSEI_LABELS, LabelChoice, choice_of
from cmsbert_fast.data.pickled import Parts, example_of, label_of, rows_of, unpack
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.untrusted import content, pickles
from cmsbert_fast.data.untrusted.limits import Budget, limit_of

_FILES = {"train": ("train.pkl",), "valid": ("dev.pkl", "valid.pkl", "val.pkl"), "test": ("test.pkl",)}


def find(path: Path) -> dict[str, Path]:
    """The files of the splits at a path: those of the folder, or the one file; empty where there are none so called.

    Raises:
        DataError: Several files may be one split.
    """
    if path.is_file():
        return {split: path for split, several in _FILES.items() if path.name in several}
    present = {split: [path / n for n in several if (path / n).is_file()] for split, several in _FILES.items()}
    for split, several_files in present.items():
        if len(several_files) > 1:
            names_found = ", ".join(file.name for file in several_files)
            raise DataError(f"Keep one of {names_found} in {path}: each may be its {split} split.")
    return {split: files[0] for split, files in present.items() if files}


def recognise(root: Any) -> bool:
    """Whether a pickle's content is a split of MISA's."""
    if not isinstance(root, list) or not root or not isinstance(root[0], tuple | list) or len(root[0]) not in (2, 3):
        return False
    return isinstance(root[0][0], tuple | list) and len(root[0][0]) in (4, 6)


def misa_source(path: Path, files: dict[str, Path], request: DataRequest) -> Source:
    """The examples of MISA's three files; the label asked for is a column of MOSEI's labels, or several.

    Labels of seven columns are sentiment and six emotions, those of six the emotions.

    Raises:
        DataError: There is no such label.
    """
    choice, labels = _choice(request.label), request.labels

    def read(split: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        root = pickles.load(files[split])
        if not recognise(root):
            raise DataError(f"Put MISA's own file in place of {files[split].name}: it is built differently.")
        reading = content.Reading(files[split])
        for number, item in enumerate(root):
            where = f"{files[split].name}[{number}]"
            if isinstance(item, tuple | list) and len(item) == 2:
                item = (*item, f"{split}[{number}]")
            features, value, segment = unpack(item, (4, 6), where)
            _, visual, acoustic, words = features[:4]
            label = label_of(value, where, choice) if labels else None
            if len(features) == 6 and (label is not None or not labels):  # what is dropped is not looked at
                visual, acoustic = (
                    _cut(rows, length, where, reading)
                    for rows, length in zip((visual, acoustic), features[4:], strict=True)
                )
            parts = Parts(where, segment, words, visual, acoustic)
            example = example_of(parts, label, labels, reading, report)
            if example is not None:
                yield split_name(split), example

    return Source(
        name=(path if path.is_dir() else path.parent).resolve().name,
        format="MISA",
        path=path,
        files=list(files.values()),
        groups=list(files),
        read=read,
        classes=choice.classes if labels else None,
        several=choice.several and labels,
        budget=Budget(sum(map(limit_of, files.values()))),
    )


def _choice(label: str | None) -> LabelChoice:
    """The columns that a label names."""
    choice = choice_of(label)
    if choice.stream is not None:
        raise DataError(f"Choose the label among {', '.join(MOSEI_LABELS)} or by its number: {label!r} is neither.")
    return choice


def _cut(value: Any, length: Any, where: str, reading: content.Reading) -> np.ndarray:
    rows = rows_of(value, where)
    reading.spend(rows.nbytes)  # nothing may be left of them
    count = content.few_of(length, 1)
    if count is None or count.size != 1 or count.dtype.kind not in "fiu" or not 0 <= count[0] <= len(rows):
        raise DataError(f"Repair {where}: its length does not fit its {len(rows)} frames.")
    return rows[: int(count[0])]
