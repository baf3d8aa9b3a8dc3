"""A folder of ``.csd`` files as the CMU-MultimodalSDK downloads them: labels, words, and streams of frames.

A segment is an interval of the label stream; its words and, averaged per word, its frames are cut by time. In sets that
the SDK aligned, the entries are segments already (``video[3]``).
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .csd import CsdStream
from .example import DataError, Example, ReadReport
from .folds import NO_FOLD, read_folds
from .segments import ALL
from .source import MODALITIES, Source, no_frames, video_of
from .streams import Assignment, Cutter, words_within

_ENTRY = re.compile(r".+\[\d+\]", re.DOTALL)  # an entry of an aligned set is one segment
MOSEI_LABELS = ("sentiment", "happy", "sad", "anger", "surprise", "disgust", "fear")  # columns of "All Labels"


def recognise(folder: Path) -> bool:
    """Whether a folder holds ``.csd`` files."""
    return folder.is_dir() and any(folder.glob("*.csd"))


def csd_source(
    folder: Path,
    *,
    visual: str | Sequence[str] = (),
    acoustic: str | Sequence[str] = (),
    words: str | None = None,
    label: str | None = None,
    folds: str | Path | None = None,
    fold: int | None = None,
) -> Source:
    """A set of ``.csd`` streams; frames are averaged per word.

    Raises:
        DataError: There is no stream of words or labels, or names alone do not decide.
    """
    column = label.lower() if label is not None else MOSEI_LABELS[0]
    known = column in MOSEI_LABELS or column.isdecimal()
    assignment = Assignment(folder, visual, acoustic, words, None if known else label)
    if assignment.words is None:
        raise DataError(f"Name the stream of words with --words NAME: {folder.name} has none that is called so.")
    if assignment.labels is None:
        raise DataError(
            f"Add the label stream (.csd), or a table segments.tsv (id, split, start, stop, label, text), to "
            f"{folder.name}."
        )
    spoken_in, labels = assignment.words, assignment.labels
    chosen = read_folds(folds, fold) if folds is not None else None
    if fold is not None and folds is None:
        raise DataError("Give the folds as a JSON file with --folds FILE.")
    notes: list[str] = []
    assignment.describe(notes)
    if chosen is None:
        notes.append("no folds were given: all examples are in one split; give the standard folds with --folds FILE")
    cutters = {m: Cutter(getattr(assignment, m), m) for m in MODALITIES}
    widths = {m: cutter.width for m, cutter in cutters.items()}
    last = next(reversed(list(labels)), None)

    def read(key: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        aligned_entry = _ENTRY.fullmatch(key) is not None
        video = video_of(key) if aligned_entry else key
        scores = labels.read(key)
        names = [key if aligned_entry else f"{key}[{number}]" for number in range(len(scores.features))]
        splits = [ALL if chosen is None else chosen.split_of(name, video) for name in names]
        if None in splits:
            report.drop(NO_FOLD, splits.count(None))
            if splits.count(None) == len(splits):
                return
        if key not in spoken_in:
            report.drop(f"its video is not in {spoken_in.name}", len(splits) - splits.count(None))
            return
        values = _column(scores.features, column if known else MOSEI_LABELS[0], labels)
        assert scores.intervals is not None
        heard, times = spoken_in.read_words(key)
        if aligned_entry and len(values) != 1:
            raise DataError(f"Repair {labels.name}: {key} is one segment but has {len(values)} labels.")
        for name, split, value, (start, stop) in zip(names, splits, values, scores.intervals, strict=True):
            if split is None:
                continue
            if aligned_entry:
                spoken, spans = heard, times
            else:
                spoken, spans = words_within(heard, times, float(start), float(stop))
            if not spoken:
                report.drop("no word is spoken in it")
                continue
            if not np.isfinite(value):
                report.drop("its label is not a number")
                continue
            frames: dict[str, np.ndarray] = {}
            for modality, cutter in cutters.items():
                found = cutter.average(key, video, (float(start), float(stop)), spans, report)
                if found is None and widths[modality]:
                    report.tally(f"examples have no {modality} frame", 1)
                frames[modality] = no_frames(widths[modality]) if found is None else found
            yield split, Example(name, tuple(spoken), float(value), aligned=True, **frames)
        for cutter in cutters.values():
            cutter.forget()
            if key == last:
                cutter.finish(report)

    return Source(
        name=folder.resolve().name,
        format="CMU-MultimodalSDK streams",
        path=folder,
        files=assignment.files,
        groups=list(labels),
        read=read,
        notes=notes,
    )


def _column(features: np.ndarray, name: str, labels: CsdStream) -> np.ndarray:
    """The labels of a video, from a column by number or by its name in MOSEI."""
    width = features.shape[1]
    if name.isdecimal() and int(name) < width:
        return features[:, int(name)]
    if width == 1 and name == MOSEI_LABELS[0]:
        return features[:, 0]
    if width == len(MOSEI_LABELS) and name in MOSEI_LABELS:
        return features[:, MOSEI_LABELS.index(name)]
    raise DataError(f"Choose one of the {width} columns of {labels.name} by its number, --label 0 to {width - 1}.")
