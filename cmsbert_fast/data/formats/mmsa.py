"""MMSA's pickles: ``aligned_50.pkl`` and ``unaligned_50.pkl`` of MOSI and MOSEI, and CH-SIMS.

A dictionary of splits, each a dictionary of stacked arrays. Unaligned files give the length of each sequence; the rest
is padding, whatever it holds. Aligned files have one frame a token, none at [CLS] and [SEP].
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data.example import Alignment, DataError, Example, frames_of, no_frames
from cmsbert_fast.data.folds import split_name
from cmsbert_fast.data.labels import class_names
from cmsbert_fast.data.pickled import splits_of
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.text import whole, words_of
from cmsbert_fast.data.untrusted import content
from cmsbert_fast.data.untrusted.records import Array

_MODALITY = {"visual": "vision", "acoustic": "audio"}
_CLASSES = 1000  # at most
_MIXED = "train_mix"  # of CH-SIMS v2: the training split again, and clips without labels
_LOOKED_AT = 32  # examples, to tell on which side a file is padded
SPLIT_NAMES = frozenset({"train", "valid", "val", "dev", "test"})
_SENTIMENTS = ("negative", "zero", "positive")  # classification_labels 0, 1, 2


def recognise(root: Any) -> bool:
    """Whether a pickle's content is MMSA's. Its later versions have more entries than splits ("config")."""
    return isinstance(root, dict) and bool(_splits(root)) and not SPLIT_NAMES & (root.keys() - _splits(root).keys())


def _splits(root: Mapping[Any, Any]) -> dict[str, Any]:
    """The entries that are splits."""
    return {
        name: part
        for name, part in root.items()
        if isinstance(name, str) and isinstance(part, dict) and "raw_text" in part and "id" in part
        if not (name == _MIXED and "train" in root)
    }


def mmsa_source(path: Path, root: Mapping[str, Any], request: DataRequest) -> Source:
    """The examples of an MMSA file.

    Raises:
        DataError: Its arrays do not fit one another, or there is no such label.
    """
    others = sorted(map(str, root.keys() - _splits(root).keys()))
    root = _splits(root)
    splits = splits_of(root, path)
    name = request.label or "regression_labels"
    labels = _Labels(path, root, name) if request.labels else None

    def read(split: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        values = None if labels is None else content.items_of(root[split][name])
        reading = content.Reading(path)
        part = _Part(path, split, root[split], values)
        for number, (utterance, text, value) in enumerate(
            zip(part.ids, part.texts, repeat(None) if values is None else values, strict=values is not None)
        ):
            words = words_of(reading.text_of(text))
            if not words:
                report.drop("it has no text")
                continue
            if isinstance(value, float) and not np.isfinite(value):
                report.drop("its label is not a number")
                continue
            frames = part.frames(number, report)
            alignment = part.alignment(frames, len(words))
            if alignment is Alignment.PIECES:
                report.tally("examples of this aligned file have as many frames as word pieces, not as words", 1)
            label = None if labels is None else labels.label_of(value)
            identity = content.text_of(utterance)
            yield split_name(split), Example(identity, words, label, frames["visual"], frames["acoustic"], alignment)

    kinds = {"aligned" if _is_aligned(part) else "unaligned" for part in root.values()}
    return Source(
        name=path.stem,
        format=f"MMSA, {' and '.join(sorted(kinds))}",
        path=path,
        files=[path],
        groups=splits,
        read=read,
        notes=[
            *([] if labels is None else [f"labels from {name}"]),
            *([f"entries that are no split, not read: {', '.join(others):.200}"] if others else []),
        ],
        classes=None if labels is None else labels.classes,
    )


class _Labels:
    """The labels of one name in all splits of a file: scores, or classes.

    Attributes:
        classes: Their names; None for scores.
    """

    def __init__(self, path: Path, root: Mapping[str, Any], name: str) -> None:
        self._name = name
        columns: dict[int, Any] = {}  # by identity: each is looked at once
        for part in root.values():
            if name not in part:
                keys = (key for key in part if isinstance(key, str))
                known = ", ".join(sorted(key for key in keys if "label" in key or key == "annotations"))
                raise DataError(f"Choose a label that {path.name} has with --label: {name!r} is none of {known}.")
            columns[id(part[name])] = part[name]
        self.classes = _SENTIMENTS if name == "classification_labels" else self._found(path, columns.values())
        self._index = {name: k for k, name in enumerate(self.classes or ())}

    def _found(self, path: Path, columns: Iterable[Any]) -> tuple[str, ...] | None:
        """The classes that occur in the file."""
        names: set[Any] = set()
        for column in columns:
            for value in content.items_of(column):
                names.add(whole(value) if isinstance(value, str) else None if value is None else 0.0)
                if len(names) > _CLASSES:
                    raise DataError(f"Choose another label than {self._name}: it has more than {_CLASSES} classes.")
        return class_names(list(names), path.name)

    def label_of(self, value: Any) -> float | int:
        """A score or the index of a class.

        Raises:
            DataError: It is neither.
        """
        if isinstance(value, str):
            return self._index[whole(value)]
        if not isinstance(value, int | float):  # and is not shown: an untrusted object may be of any size
            raise DataError(f"Choose another label than {self._name}: it holds a {type(value).__name__}, not a number.")
        if self.classes is None:
            return float(value)
        if value not in range(len(self.classes)):
            raise DataError(
                f"Choose another label than {self._name}: {value} is none of its {len(self.classes)} classes."
            )
        return int(value)


def _is_aligned(part: Mapping[str, Any]) -> bool:
    if "audio_lengths" in part or "vision_lengths" in part:
        return False
    arrays = [part[key] for key in ("vision", "audio") if isinstance(part.get(key), Array)]
    steps = {array.shape[1] for array in arrays if len(array.shape) == 3}
    tokens = [part[key] for key in ("text_bert", "text") if isinstance(part.get(key), Array)]
    return len(steps) == 1 and any(steps & set(array.shape[1:]) for array in tokens)


class _Part:
    """One split: its arrays, checked against one another; rows are views of the file."""

    def __init__(self, path: Path, split: str, part: Mapping[str, Any], labels: Any) -> None:
        self.ids, self.texts = content.items_of(part["id"]), content.items_of(part["raw_text"])
        self.aligned = _is_aligned(part)
        self._arrays: dict[str, np.ndarray] = {}
        self._lengths: dict[str, np.ndarray] = {}
        self._front: dict[str, bool] = {}
        self._mask: np.ndarray | None = None
        sizes = {
            "labels": len(self.ids if labels is None else labels),
            "id": len(self.ids),
            "raw_text": len(self.texts),
        }
        for modality, key in _MODALITY.items():
            if key not in part:
                continue
            array = self._arrays[modality] = content.array_of(part[key])
            if array.ndim != 3 or array.dtype.kind not in "fiu":
                raise DataError(f"Repair {path.name}: {split}/{key} has the shape {array.shape}, expected (N, T, d).")
            sizes[key] = len(array)
            if f"{key}_lengths" in part:
                lengths = content.array_of(part[f"{key}_lengths"])
                sizes[f"{key}_lengths"] = len(lengths) if lengths.ndim == 1 else -1
                if lengths.ndim == 1 and not ((lengths >= 0) & (lengths <= array.shape[1])).all():
                    raise DataError(
                        f"Repair {path.name}: {split}/{key}_lengths exceed the {array.shape[1]} frames held."
                    )
                self._lengths[modality] = lengths.astype(np.int64)
                if lengths.ndim == 1 and len(lengths) == len(array):
                    self._front[modality] = _padded_in_front(array, self._lengths[modality])
        if self.aligned and isinstance(part.get("text_bert"), Array):
            tokens = content.array_of(part["text_bert"])
            if tokens.ndim == 3 and tokens.shape[1] == 3:
                self._mask = tokens[:, 1]
                sizes["text_bert"] = len(tokens)
        if len(set(sizes.values())) != 1:
            found = ", ".join(f"{key} {size}" for key, size in sizes.items())
            raise DataError(f"Repair {path.name}: the parts of {split} differ in number of examples ({found}).")

    def frames(self, number: int, report: ReadReport) -> dict[str, np.ndarray]:
        """The frames of one example, without padding."""
        result = {modality: no_frames() for modality in _MODALITY}
        begin, end = 0, None
        if self.aligned:
            begin, end = self._token_range(number)
        for modality, array in self._arrays.items():
            rows = array[number]
            if modality in self._lengths:
                count = int(self._lengths[modality][number])
                if self._front[modality]:
                    rows = rows[len(rows) - count :]
                    report.note(f"{_MODALITY[modality]} is padded in front")
                else:
                    rows = rows[:count]
            elif self.aligned:
                rows = rows[begin:end]
            else:
                rows = rows[: _last_row([rows])]
            result[modality] = frames_of(rows, modality, report)
        return result

    def alignment(self, frames: Mapping[str, np.ndarray], words: int) -> Alignment:
        """What the frames of an example with so many words belong to.

        An aligned file has one frame a word piece. Where these are as many as words, each word is one piece, unless the
        file's tokenizer cut the text.
        """
        if not self.aligned:
            return Alignment.NONE
        longest = max(array.shape[1] for array in self._arrays.values()) - 2  # without [CLS] and [SEP]
        exact = all(len(rows) in (0, words) and len(rows) < longest for rows in frames.values())
        return Alignment.WORDS if exact else Alignment.PIECES

    def _token_range(self, number: int) -> tuple[int, int]:
        """Where the frames of an aligned example lie: after [CLS], before [SEP] and padding."""
        if self._mask is not None:  # frames of zeros before its end are frames
            return 1, max(1, int(np.count_nonzero(self._mask[number])) - 1)
        return 1, max(1, _last_row([array[number] for array in self._arrays.values()]))


def _padded_in_front(array: np.ndarray, lengths: np.ndarray) -> bool:
    """Whether padding comes before the frames, as MMSA-FET writes it with padding_location "start"."""
    steps = array.shape[1]
    short = np.flatnonzero((lengths > 0) & (lengths < steps))[:_LOOKED_AT].tolist()
    if any((array[k, : steps - int(lengths[k])] != 0).any() for k in short):
        return False
    return any((array[k, -1] != 0).any() for k in short)


def _last_row(arrays: list[np.ndarray]) -> int:
    """One past the last row in which any of the arrays is not zero."""
    rows = np.zeros(len(arrays[0]), dtype=bool)
    for array in arrays:
        rows |= (array != 0).any(axis=1)
    found = np.flatnonzero(rows)
    return int(found[-1]) + 1 if len(found) else 0
