"""UR-FUNNY as its authors give it: a folder of pickles, each a dictionary by segment.

``data_folds.pkl``: ids of train, dev and test. ``language_sdk.pkl``: the punchline as sentence and words.
``humor_label_sdk.pkl``: 1 is humour. ``covarep_features_sdk.pkl`` and ``openface_features_sdk.pkl``: a frame (81 and
371 features) for each word of the punchline. ``word_embedding_list.pkl`` (vectors) and contexts are not used. The first
version has ``word_embedding_indexes_sdk.pkl`` in place of the language: numbers of words in a list that others made of
it (``word_list.pkl``, as MISA's code reads it).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data.example import DataError, Example, no_frames
from cmsbert_fast.data.folds import split_name
from cmsbert_fast.data.pickled import HUMOUR, Parts, example_of, humour_of, splits_of
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.source import Source
from cmsbert_fast.data.untrusted import content, pickles
from cmsbert_fast.data.untrusted.limits import Budget, limit_of
from cmsbert_fast.data.untrusted.records import Array, LongText

_FOLDS, _LABELS = "data_folds.pkl", "humor_label_sdk.pkl"
_LANGUAGE, _INDEXES, _WORDS = "language_sdk.pkl", "word_embedding_indexes_sdk.pkl", "word_list.pkl"
_FRAMES = {"visual": "openface_features_sdk.pkl", "acoustic": "covarep_features_sdk.pkl"}
_OURS = (_FOLDS, _LABELS, _LANGUAGE, _INDEXES, *_FRAMES.values())


def recognise(path: Path) -> bool:
    """Whether a path is the folder.

    Raises:
        DataError: It is one of its files.
    """
    if path.is_file() and path.name in _OURS:
        raise DataError(f"Give the folder of {path.name}: UR-FUNNY's words, labels and frames are in several files.")
    return path.is_dir() and (path / _FOLDS).is_file() and ((path / _LANGUAGE).is_file() or (path / _INDEXES).is_file())


def ur_funny_sdk_source(path: Path, request: DataRequest) -> Source:
    """The punchlines of the folder.

    Raises:
        DataError: A file is missing, or one is no dictionary by segment.
    """
    request.check_one_label(path.name)
    reader = _Reader(path, request.labels)
    files = [path / name for name in reader.roots]
    return Source(
        name=path.resolve().name,
        format="UR-FUNNY, original",
        path=path,
        files=files,
        groups=splits_of(reader.roots[_FOLDS], path / _FOLDS),
        read=reader.read,
        notes=["the punchline is the utterance; contexts are not used", *reader.absent],
        classes=HUMOUR,
        budget=Budget(sum(map(limit_of, files))),
    )


class _Reader:
    """The files that are needed, and the examples in them.

    Attributes:
        roots: The content of each file, by its name.
        absent: A sentence for each modality without a file.

    Raises:
        DataError: A file is missing, or one is no dictionary by segment.
    """

    def __init__(self, path: Path, labels: bool) -> None:
        self._path, self._labels = path, labels
        if labels and not (path / _LABELS).is_file():
            raise DataError(f"Add {_LABELS} to {path.name}: the labels are in it.")
        self._first = not (path / _LANGUAGE).is_file()
        if self._first and not (path / _WORDS).is_file():
            raise DataError(
                f"Get UR-FUNNY's second version with {_LANGUAGE}, or add {_WORDS} to {path.name}: the first version "
                "has numbers of words, but no words, and BERT needs words."
            )
        self._language = _INDEXES if self._first else _LANGUAGE
        names = [_FOLDS, self._language, *([_WORDS] if self._first else []), *([_LABELS] if labels else [])]
        self._frames = {modality: name for modality, name in _FRAMES.items() if (path / name).is_file()}
        self.absent = [
            f"no {modality} stream: there is no {name}"
            for modality, name in _FRAMES.items()
            if modality not in self._frames
        ]
        self.roots: dict[str, Any] = {name: pickles.load(path / name) for name in [*names, *self._frames.values()]}
        for name, root in self.roots.items():
            if not isinstance(root, list if name == _WORDS else dict):
                raise DataError(f"Get {name} again: it is not UR-FUNNY's, which is by segment.")

    def read(self, split: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        """The examples of a split, with its name."""
        readings = {name: content.Reading(self._path / name) for name in self.roots}
        keys = content.items_of(self.roots[_FOLDS][split])
        readings[_FOLDS].spend(8 * len(keys))
        for key in keys:
            example = self._example(key, readings, report)
            if example is not None:
                yield split_name(split), example

    def _example(self, key: Any, readings: Mapping[str, content.Reading], report: ReadReport) -> Example | None:
        """The example of a segment; None, and counted, where it has no words or no label."""
        where = f"segment {key!s:.40} of {self._path.name}"
        language, text = self.roots[self._language], readings[self._language]
        if key not in language:
            report.drop(f"it is not in {self._language}")
            return None
        value = humour_of(self.roots[_LABELS].get(key, float("nan")), where) if self._labels else None
        words = _indexed(language[key], self.roots[_WORDS], text) if self._first else _words(language[key], text)
        rows = dict.fromkeys(_FRAMES, no_frames())
        for modality, name in self._frames.items():
            rows[modality] = _rows(self.roots[name].get(key), where, readings[name])
        parts = Parts(where, str(key) if isinstance(key, int) else key, words, rows["visual"], rows["acoustic"])
        return example_of(parts, value, self._labels, text, report)


def _words(entry: Mapping[str, Any], reading: content.Reading) -> list[str]:
    """The words of a punchline: as they were aligned, else those of its sentence."""
    words = entry.get("punchline_features")
    if isinstance(words, list | tuple) and words and isinstance(words[0], str | bytes):
        return reading.texts_of(words)
    sentence = entry["punchline_sentence"]
    if isinstance(sentence, str | bytes | memoryview | LongText):
        return reading.text_of(sentence).split()
    return reading.texts_of(content.items_of(sentence))


def _indexed(entry: Mapping[str, Any], known: list[Any], reading: content.Reading) -> list[str]:
    """The words of a punchline by their numbers."""
    places = content.items_of(entry["punchline_embedding_indexes"])
    reading.spend(16 * len(places))
    words = [known[int(place)] for place in places if 0 <= int(place) < len(known)]
    if len(words) < len(places):
        raise DataError(f"Use {_WORDS} and {_INDEXES} of one version: a word has a number beyond the {len(known)}.")
    return reading.texts_of(words)


def _rows(entry: Any, where: str, reading: content.Reading) -> np.ndarray:
    """The frames of a punchline (words, d), given as an array or as a list of rows."""
    value = None if entry is None else entry["punchline_features"]
    if value is None or isinstance(value, Array):
        return no_frames() if value is None else content.array_of(value)
    rows = []
    for row in content.items_of(value):
        reading.spend(8 * len(row))
        rows.append(content.array_of(row).reshape(-1))
    if not rows or len({len(row) for row in rows}) != 1:
        if rows:
            raise DataError(f"Repair {where}: its frames have different widths.")
        return no_frames()
    return np.stack(rows)
