"""What every reader is: a description and one streaming pass over the examples."""

import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from cmsbert_fast.data.example import MODALITIES, SPLITS, Corpus, DataError, Example, ReadReport, whole
from cmsbert_fast.data.request import DataRequest

if TYPE_CHECKING:
    from cmsbert_fast.data.folds import Rotation


_EXAMPLE = 600  # bytes of an example, its two arrays and its places, whatever it holds
_SPLITS = 64  # of a pickle, at most: any number of names can be given to one split

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
_SCRIPT = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_NUMBERED = re.compile(r"(.+?)(?:\$_\$|_|\[|-)\d+\]?", re.DOTALL)


def split_name(name: str) -> str:
    """The project's name of a split ("dev" is "valid"); other names stay as they are."""
    return _SPLIT_NAMES.get(name.strip().lower(), whole(name.strip()))


def splits_of(root: Mapping[str, Any], path: Path) -> list[str]:
    """The names of a pickle's splits.

    Raises:
        DataError: There are too many: each may be the same object, and each is read.
    """
    if len(root) > _SPLITS:
        raise DataError(f"Do not use {path.name}: it has {len(root)} splits, and no data set has more than {_SPLITS}.")
    return list(root)


def video_of(segment: str) -> str:
    """The video of a segment id: ``video_3``, ``video[3]``, ``video$_$3`` and ``video-3`` are segments of ``video``."""
    match = _NUMBERED.fullmatch(segment)
    return match.group(1) if match else segment


@dataclass(slots=True)
class Source:
    """One recognised source, before its examples are read.

    It falls into groups (videos, or splits of a file) that are read one after the other: ``read(group, report)``
    yields ``(split, example)`` and counts in the report what it drops or alters. Nothing of a group is held once it
    is read, so that conversion needs little memory and can continue after any group.
    """

    name: str
    format: str
    path: Path
    files: list[Path]
    groups: Sequence[str]
    read: Callable[[str, ReadReport], Iterator[tuple[str, Example]]]
    notes: list[str] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    budget: "Budget | None" = None  # of what is made from a stranger's file
    by_video: bool = False  # whether a group is a video
    rotations: "Mapping[str, Rotation]" = field(default_factory=dict)  # its own folds by name, the default first
    request: DataRequest | None = None  # what it was opened for

    def new_report(self) -> ReadReport:
        return ReadReport(source=f"{self.path.name or self.path} ({self.format})", notes=list(self.notes))


class Budget:
    """Bytes that all examples of a source together may hold, those that are left out afterwards included.

    What comes from a pickle, in which one array can be named a million times, or from streams in which any number of
    segments overlap, must stay in proportion to the files.
    """

    def __init__(self, limit: int) -> None:
        self.left = limit

    def reserve(self, size: int) -> None:
        """Look whether so many bytes are left.

        Raises:
            DataError: They are not.
        """
        if size > self.left:
            raise DataError("Do not use this file: its examples together are many times larger than it is.")

    def spend(self, size: int) -> None:
        """`reserve`, for good."""
        self.reserve(size)
        self.left -= size

    def see(self, example: Example) -> None:
        """Charge an example."""
        self.spend(_EXAMPLE + example.visual.nbytes + example.acoustic.nbytes + _text_size(example))


class Counter:
    """Keeps the counts of a report, and the widths consistent, while examples pass."""

    def __init__(self, report: ReadReport) -> None:
        self.report = report
        self.ids: set[str] = set()

    def see(self, split: str, example: Example) -> None:
        report = self.report
        if example.id in self.ids:
            raise DataError(f"Give every example its own id: {example.id[:200]!r} occurs twice.")
        self.ids.add(example.id)
        report.counts[split] = report.counts.get(split, 0) + 1
        for modality in MODALITIES:
            frames = getattr(example, modality)
            width = frames.shape[1]
            if not width:
                continue
            if report.widths.setdefault(modality, width) != width:
                raise DataError(
                    f"Give all examples frames of one width: {modality} of {example.id!r} has {width} features, "
                    f"earlier ones have {report.widths[modality]}."
                )
            report.frames[modality] = report.frames.get(modality, 0) + len(frames)

    def finish(self) -> None:
        """Order the splits as they are used."""
        counts = self.report.counts
        if not counts:
            reasons = "; ".join(f"{n} dropped: {reason}" for reason, n in self.report.dropped.items())
            raise DataError(f"No example could be read from {self.report.source}{': ' + reasons if reasons else '.'}")
        self.report.counts = ordered(counts)


def _text_size(example: Example) -> int:
    """Bytes that the id and words of an example take, in memory or as JSON, whichever is more."""
    return sum(56 + len(s) * (1 if s.isascii() and s.isprintable() else 6) for s in (example.id, *example.words))


def ordered(counts: dict[str, int]) -> dict[str, int]:
    """Splits in the order in which they are used."""
    order = [s for s in SPLITS if s in counts] + [s for s in counts if s not in SPLITS]
    return {split: counts[split] for split in order}


def frames_of(values: np.ndarray, modality: str, report: ReadReport) -> np.ndarray:
    """Frames as float32 (N, d), C order, with non-finite values replaced by 0 and counted."""
    with np.errstate(over="ignore", invalid="ignore"):
        frames = np.array(values, dtype=np.float32, order="C", copy=True)
    finite = np.isfinite(frames)
    if not finite.all():
        report.non_finite[modality] = report.non_finite.get(modality, 0) + int(finite.size - np.count_nonzero(finite))
        frames[~finite] = 0.0
    return frames


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text: split at white space, and each Chinese character by itself, as BERT's tokenizer does."""
    return tuple(_SCRIPT.sub(r" \1 ", text).split())


class Resident:
    """Keeps the part of a memory map that counts as this process's memory small.

    Pages that were read stay with the process until others need them; letting them go costs nothing while they are in
    the system's cache.
    """

    LIMIT = 64 << 20

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._read = 0

    def see(self, size: int) -> None:
        """Count bytes that were read through the map."""
        self._read += size
        if self._read > self.LIMIT and hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED)
            self._read = 0


def no_frames(width: int = 0) -> np.ndarray:
    return np.zeros((0, width), dtype=np.float32)


def collect(source: Source) -> Corpus:
    """Read a source into memory."""
    report = source.new_report()
    counter = Counter(report)
    splits: dict[str, list[Example]] = {}
    for group in tqdm(source.groups, desc=f"reading {source.name}", unit="group", delay=5, disable=None):
        for split, example in source.read(group, report):
            counter.see(split, example)
            splits.setdefault(split, []).append(example)
    counter.finish()
    for examples in splits.values():
        examples[:] = [_with_widths(example, report.widths) for example in examples]
    return Corpus(
        name=source.name,
        splits={split: splits[split] for split in report.counts},
        visual_size=report.widths.get("visual", 0),
        acoustic_size=report.widths.get("acoustic", 0),
        report=report,
        classes=source.classes,
    )


def _with_widths(example: Example, widths: dict[str, int]) -> Example:
    """An example whose empty modalities have the corpus's width."""
    sizes = {modality: widths.get(modality, 0) for modality in MODALITIES}
    if all(getattr(example, modality).shape[1] == size for modality, size in sizes.items()):
        return example
    return replace(
        example,
        visual=example.visual if len(example.visual) else no_frames(sizes["visual"]),
        acoustic=example.acoustic if len(example.acoustic) else no_frames(sizes["acoustic"]),
    )
