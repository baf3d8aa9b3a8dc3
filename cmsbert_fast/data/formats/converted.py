"""The converted form: a corpus that opens at once and is read a row at a time.

It is a folder:
    manifest.json           version, format, splits, widths, counts, statistics, of which extraction the frames are, the
                            SHA-256 of the source, and for each way of making folds the part that validates in every
                            fold
    examples.jsonl          a line an example: id, split, words, label, frames of each modality and the CRC-32 of their
                            bytes; its video where the id does not tell it, how many of its values were not finite and
                            what else was counted of it, where there was something, and its part in each way of making
                            folds that the source has
    visual.safetensors      all frames of a modality, float32 (frames, d), in the order of the lines
    acoustic.safetensors
    visual_words.safetensors, acoustic_words.safetensors
                            the word of each frame, int32 (frames,), where examples have `frame_words`

safetensors, because the project needs it anyway, its header is plain JSON and its data plain rows: any range of frames
is a slice of a memory map, without a decoder (Arrow and HDF5 bring one) and without code (pickle).
`cmsbert_fast.data.convert` writes it.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from cmsbert_fast.data.converted_entries import Line, Range, checked_report, checked_statistics, count, typed
from cmsbert_fast.data.example import (
    MODALITIES,
    Corpus,
    DataError,
    Example,
    FrameWords,
    Outline,
    no_frames,
)
from cmsbert_fast.data.extraction import checked
from cmsbert_fast.data.folds import NAMED, NO_FOLD, absent_note, choose, read_folds, split_by_part
from cmsbert_fast.data.mapped import MappedRows
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.source import ordered
from cmsbert_fast.data.text import whole
from cmsbert_fast.data.untrusted.files import read_text, text_lines

VERSION = 3
READABLE = (2, VERSION)
_LARGEST = 4 << 20  # bytes of a manifest and of a line of examples: of JSON, 20 times as much can be made
MANIFEST, EXAMPLES = "manifest.json", "examples.jsonl"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a character, or of a pair that is one


def is_converted(path: Path) -> bool:
    """Whether a path is a folder that `convert` wrote."""
    return (path / MANIFEST).is_file() and (path / EXAMPLES).is_file()


def words_file(modality: str) -> str:
    """The name of the file that tells the word of each frame."""
    return f"{modality}_words.safetensors"


class _Frames:
    """The frames of a modality, and their words where these are known; none where it has no file."""

    def __init__(self, folder: Path, modality: str, width: int, count: int, timed: bool) -> None:
        self.width = width
        self._frames = self._words = None
        if width:
            self._frames = MappedRows(folder / f"{modality}.safetensors", "frames", "F32", (count, width))
        if width and timed:
            self._words = MappedRows(folder / words_file(modality), "words", "I32", (count,))

    def __len__(self) -> int:
        return 0 if self._frames is None else len(self._frames)

    def rows(self, place: Range) -> np.ndarray:
        return no_frames(self.width) if self._frames is None else self._frames.rows(*place)

    def words(self, place: Range) -> np.ndarray:
        return np.zeros(0, dtype=np.int32) if self._words is None else self._words.rows(*place)


class Mapped(Sequence[Example]):
    """The examples of a split; frames are read from the memory map on access."""

    def __init__(self, lines: list[Line], frames: dict[str, _Frames]) -> None:
        self._lines = lines
        self._frames = frames

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Mapped(self._lines[index], self._frames)
        line = self._lines[index]
        places = dict(zip(MODALITIES, line.frames, strict=True))
        parts = {modality: self._frames[modality].rows(place) for modality, place in places.items()}
        for modality, rows in parts.items():  # here: to check all of them on opening is slow
            if not np.isfinite(rows).all():
                raise DataError(f"Convert the data again: not all {modality} values of {line.id!r} are finite.")
            known = line.checksums.get(modality) if rows.shape[1] else None
            if known is not None and zlib.crc32(np.ascontiguousarray(rows).data) != known:
                raise DataError(f"Convert the data again: the {modality} frames of {line.id!r} are damaged.")
        words = None
        if line.timed:
            words = FrameWords(*(self._frames[modality].words(place) for modality, place in places.items()))
            if not all(_may_be_words(found, len(line.words)) for found in words):
                raise DataError(f"Convert the data again: frames of {line.id!r} belong to words that it does not have.")
        return Example(line.id, line.words, line.label, parts["visual"], parts["acoustic"], line.alignment, words)

    def __iter__(self) -> Iterator[Example]:
        return (self[k] for k in range(len(self)))

    def outlines(self) -> Iterator[Outline]:
        """The examples without their frames; making an array of each would delay the start of training by a second."""
        visual, acoustic = (len(self._frames[modality]) > 0 for modality in MODALITIES)
        for line in self._lines:
            seen = line.frames.visual.length if visual else 0
            heard = line.frames.acoustic.length if acoustic else 0
            yield Outline(line.id, line.words, line.label, line.alignment, seen, heard, line.timed)


def _may_be_words(words: np.ndarray, count: int) -> bool:
    """Whether frames may belong to these words of ``count``: -1 or a word, ascending."""
    known = words[words >= 0]
    return bool((words >= -1).all() and (known < count).all() and (np.diff(known) >= 0).all())


def _parse(text: str) -> Any:
    value = json.loads(text)
    return json.loads(whole(json.dumps(value, ensure_ascii=False))) if _HALF.search(text) else value


def open_converted(request: DataRequest) -> Corpus:
    """A converted corpus; frames stay on disk until they are used.

    The folds of the request are a JSON file or folds that the source had; they replace the splits.

    Raises:
        DataError: The folder is damaged or of another version, there is no such fold, or the folds name none of its
            examples.
    """
    path, without = request.path, request.left_out("converted")
    try:
        stored = _Stored(path, request.labels)
    except (
        *(AttributeError, IndexError, KeyError, MemoryError, OSError, OverflowError, RecursionError),
        *(SafetensorError, TypeError, ValueError),
    ) as error:
        what = f"{type(error).__name__}: {error!s:.200}"
        raise DataError(f"Convert {path} again: it is damaged ({what}).") from error
    report, splits = stored.report, stored.splits
    statistics = {modality: found for modality, found in stored.statistics.items() if modality not in without}
    split_of, listed = _splitter(request, stored.rotations)
    if split_of is not None:
        splits = _resplit(path, stored.lines, split_of, report)
    if listed:
        found = {line.id for line in stored.lines} | {line.video for line in stored.lines}
        for sentence in absent_note(listed, found, Path(str(request.folds)).name):
            report.note(sentence)
    for modality in without:
        stored.widths[modality], stored.frames[modality] = 0, _Frames(path, modality, 0, 0, False)
        for counts in (report.widths, report.frames, report.non_finite):
            counts.pop(modality, None)
        report.tallies = {what: n for what, n in report.tallies.items() if f" {modality} frame" not in what}
        report.note(f"left out: {modality}")
    return Corpus(
        name=stored.name,
        splits={split: Mapped(lines, stored.frames) for split, lines in splits.items()},
        visual_size=stored.widths["visual"],
        acoustic_size=stored.widths["acoustic"],
        report=report,
        classes=stored.classes if request.labels else None,
        several=stored.several and request.labels,
        standardise=stored.standardise,
        statistics=statistics if split_of is None else None,
        extraction={modality: one for modality, one in stored.extraction.items() if modality not in without},
    )


class _Stored:
    """The parts of a folder, checked against one another.

    Raises:
        DataError: It is of another version.
        ValueError, or another of the errors that `open_converted` expects: It is damaged.
    """

    def __init__(self, path: Path, labels: bool) -> None:
        manifest = _parse(read_text(path / MANIFEST, _LARGEST))
        if manifest["version"] not in READABLE:
            raise DataError(f"Convert {path} again: it has version {manifest['version']}, this is version {VERSION}.")
        self.name, self.standardise = typed(manifest["name"], str), typed(manifest["standardise"], bool)
        classes = manifest["classes"]
        self.classes = None if classes is None else tuple(typed(one, str) for one in typed(classes, list))
        self.several = typed(manifest.get("several", False), bool)
        self.report = checked_report(manifest["report"])
        self.widths = {modality: int(self.report.widths.get(modality, 0)) for modality in MODALITIES}
        self.timed = typed(manifest.get("timed", False), bool)
        self.frames = {
            modality: _Frames(path, modality, width, self.report.frames.get(modality, 0), self.timed)
            for modality, width in self.widths.items()
        }
        self.report.counts = {split: count for split, count in self.report.counts.items() if count}
        self.splits: dict[str, list[Line]] = {split: [] for split in self.report.counts}
        self.lines: list[Line] = []  # of all splits, in the order of the source
        ends = self._read_lines(path, labels)
        self.rotations = {
            found: [count(part) for part in typed(valid, list)]
            for found, valid in typed(manifest.get("folds", {}), dict).items()
        }
        self.statistics = checked_statistics(manifest["statistics"], self.widths)
        extraction = typed(manifest.get("extraction", {}), dict)
        self.extraction = {modality: checked(extraction[modality]) for modality in MODALITIES if modality in extraction}
        counted = {split: len(lines) for split, lines in self.splits.items()}
        frames = self.report.frames
        if counted != self.report.counts or any(ends[m] != frames.get(m, 0) for m in MODALITIES if self.widths[m]):
            raise ValueError("its parts do not fit one another")
        if not self.lines:
            raise ValueError("it has no examples")

    def _read_lines(self, path: Path, labels: bool) -> dict[str, int]:
        """Reads the examples; returns how many frames of each modality they have."""
        ids: set[str] = set()
        begins = dict.fromkeys(MODALITIES, 0)
        for text in text_lines(path / EXAMPLES, _LARGEST):
            entry = _parse(text)
            line = Line(entry, begins, None if self.classes is None else len(self.classes), self.several)
            if line.timed and not self.timed:
                raise ValueError("a line gives the words of its frames, but the folder has no file of them")
            if not labels:
                line.label = None
            if line.id in ids:
                raise ValueError(f"two examples are {line.id!r:.80}")
            ids.add(line.id)
            self.splits[entry["split"]].append(line)
            self.lines.append(line)
            for modality in MODALITIES:
                begins[modality] += entry[modality]
        return begins


def _splitter(
    request: DataRequest, rotations: Mapping[str, Sequence[int]]
) -> tuple[Callable[[Line], str | None] | None, frozenset[str]]:
    """How lines are split, as on the source: by its own folds or by a file; None where their own splits hold.

    Also the ids of the file.
    """
    folds, fold = request.folds, request.fold
    if folds is None and fold is None:
        return None, frozenset()
    chosen = choose(rotations, folds)
    if chosen is not None:
        split = split_by_part(rotations[chosen], fold)
        return lambda line: split(line.parts.get(chosen) if line.parts else None), frozenset()
    if folds is None or (folds in NAMED and not Path(folds).exists()):
        raise DataError(
            f"Give a JSON file of folds with --folds FILE, or convert the source again: no such folds of its own were "
            f"stored in {request.path}."
        )
    found = read_folds(folds, fold)
    return found.splitter, found.ids


def _sum(counts: Iterable[dict[str, int] | None]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for what, n in (one or {}).items():
            total[what] = total.get(what, 0) + n
    return total


def _resplit(
    path: Path, everything: list[Line], split_of: Callable[[Line], str | None], report: ReadReport
) -> dict[str, list[Line]]:
    again: dict[str, list[Line]] = {}
    for line in everything:  # in the order of the source, whatever its own splits are
        split = split_of(line)
        if split is None:
            report.drop(NO_FOLD)
        else:
            again.setdefault(split, []).append(line)
    if not again:
        raise DataError(f"Choose other folds: they name none of the examples of {path}.")
    report.counts = ordered({split: len(lines) for split, lines in again.items()})
    kept = [line for lines in again.values() for line in lines]
    for modality in MODALITIES:
        if modality in report.frames:
            report.frames[modality] = sum(getattr(line.frames, modality).length for line in kept)
    report.non_finite = _sum(line.non_finite for line in kept)
    report.tallies = _sum(line.tallies for line in kept)
    return {split: again[split] for split in report.counts}
