"""A folder of ``.csd`` files as the CMU-MultimodalSDK downloads them: labels, words, and streams of frames.

A segment is an interval of the label stream; its words and, averaged per word, its frames are cut by time. In sets that
the SDK aligned, the entries are segments already (``video[3]``). For prediction there may be no label stream: then
every entry of the word stream is one utterance.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmsbert_fast.data.example import MODALITIES, DataError, Example, ReadReport, whole
from cmsbert_fast.data.folds import NO_FOLD, folds_of
from cmsbert_fast.data.formats.segments import ALL
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.source import Budget, Source, no_frames, video_of
from cmsbert_fast.data.streams.csd import FLOOR, RATIO, ROW, CsdStream
from cmsbert_fast.data.streams.cutting import Assignment, Cutter, words_within

_ENTRY = re.compile(r".+\[\d+\]", re.DOTALL)  # an entry of an aligned set is one segment
MOSEI_LABELS = ("sentiment", "happy", "sad", "anger", "surprise", "disgust", "fear")  # columns of "All Labels"


def recognise(folder: Path) -> bool:
    """Whether a folder holds ``.csd`` files."""
    return folder.is_dir() and any(folder.glob("*.csd"))


def csd_folder_source(folder: Path, request: DataRequest) -> Source:
    """A set of ``.csd`` streams; frames are averaged per word.

    Without labels wanted a label stream only says where segments lie, and need not be there.

    Raises:
        DataError: There is no stream of words or labels, or names alone do not decide.
    """
    label, labels = request.label, request.labels
    column = label.lower() if label is not None else MOSEI_LABELS[0]
    known = column in MOSEI_LABELS or column.isdecimal()
    assignment = Assignment(folder, request.visual, request.acoustic, request.words, None if known else label)
    if assignment.words is None:
        raise DataError(f"Name the stream of words with --words NAME: {folder.name} has none that is called so.")
    spoken_in, cut_by = assignment.words, assignment.labels
    if labels and cut_by is None:
        raise DataError(
            f"Add the label stream (.csd), or a table segments.tsv (id, split, start, stop, label, text), to "
            f"{folder.name}."
        )
    chosen = folds_of(request)
    notes: list[str] = []
    assignment.describe(notes)
    if chosen is None:
        notes.append("no folds were given: all examples are in one split; give the standard folds with --folds FILE")
    budget = Budget(sum(RATIO * path.stat().st_size for path in assignment.files) + FLOOR)
    cutters = {m: Cutter(getattr(assignment, m), m, budget) for m in MODALITIES}
    widths = {m: cutter.width for m, cutter in cutters.items()}
    keys = list(spoken_in if cut_by is None else cut_by)
    if cut_by is None:
        notes.append(
            f"no label stream: every entry of {spoken_in.name} is one utterance; to cut it, add a table segments.tsv "
            "(id, start, stop, text)"
        )
    else:
        more = [key for key in spoken_in if key not in cut_by]
        keys += (segments := [key for key in more if _ENTRY.fullmatch(key)])
        if videos := len(more) - len(segments):
            notes.append(f"{videos} entries of {spoken_in.name} are left out: no segment of theirs is in {cut_by.name}")
    # Segments of one video are read together: a stream may hold its frames in one entry.
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(video_of(key) if _ENTRY.fullmatch(key) else key, []).append(key)
    last = next(reversed(groups), None)

    def examples(key: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        # Segments may overlap: what is made of a video can grow with the product of its words and labels.
        budget.spend(ROW * sum(s.rows(key) for s in (spoken_in, cut_by) if s is not None and key in s))
        scores = cut_by.read(key) if cut_by is not None and key in cut_by else None
        aligned_entry = _ENTRY.fullmatch(key) is not None
        if scores is not None and not len(scores.features):
            if not aligned_entry:
                return  # a video without segments
            scores = None
        entire = aligned_entry or scores is None
        video = video_of(key) if aligned_entry else key
        count = 1 if scores is None else len(scores.features)
        names = [whole(key) if entire else whole(f"{key}[{number}]") for number in range(count)]
        splits = [ALL if chosen is None else chosen.split_of(name, video) for name in names]
        if None in splits:
            report.drop(NO_FOLD, splits.count(None))
            if splits.count(None) == len(splits):
                return
        if key not in spoken_in:
            report.drop(f"its video is not in {spoken_in.name}", len(splits) - splits.count(None))
            return
        if labels and scores is None and cut_by is not None:
            report.drop(f"it has no label in {cut_by.name}")
            return
        heard, times = spoken_in.read_words(key)
        intervals, values = np.array([[times.min(initial=np.inf), times.max(initial=-np.inf)]]), np.full(count, np.nan)
        if scores is not None and cut_by is not None:
            assert scores.intervals is not None
            intervals = scores.intervals
            if aligned_entry and count != 1:
                raise DataError(f"Repair {cut_by.name}: {key} is one segment but has {count} labels.")
            if labels:
                values = _column(scores.features, column if known else MOSEI_LABELS[0], cut_by)
        for name, split, value, (start, stop) in zip(names, splits, values, intervals, strict=True):
            if split is None:
                continue
            if entire:
                spoken, spans = heard, times
            else:
                budget.spend(len(heard) // 8)  # all are looked through, whether or not any is found
                spoken, spans = words_within(heard, times, float(start), float(stop))
            if not spoken:
                report.drop("no word is spoken in it")
                continue
            if labels and not np.isfinite(value):
                report.drop("its label is not a number")
                continue
            frames: dict[str, np.ndarray] = {}
            for modality, cutter in cutters.items():
                found = cutter.average(key, video, (float(start), float(stop)), spans, report)
                if found is None and widths[modality]:
                    report.tally(f"examples have no {modality} frame", 1)
                frames[modality] = no_frames(widths[modality]) if found is None else found
            found_one = Example(name, tuple(spoken), float(value) if labels else None, aligned=True, **frames)
            budget.see(found_one)
            yield split, found_one

    def read(video: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        for key in groups[video]:
            yield from examples(key, report)
        for cutter in cutters.values():
            cutter.forget()
            if video == last:
                cutter.finish(report)

    return Source(
        name=folder.resolve().name,
        format="CMU-MultimodalSDK streams",
        path=folder,
        files=assignment.files,
        groups=list(groups),
        read=read,
        notes=notes,
        budget=budget,
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
