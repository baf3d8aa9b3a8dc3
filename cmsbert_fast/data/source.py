"""A source: what every reader returns, a description and one streaming pass over the examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cmsbert_fast.data.example import MODALITIES, SPLITS, Corpus, DataError, Example, Extraction, no_frames
from cmsbert_fast.data.folds import Rotation, absent_note, video_of
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.text import printable
from cmsbert_fast.data.untrusted.limits import Budget
from cmsbert_fast.progress import tracked


@dataclass(slots=True)
class Source:
    """A recognised source, before its examples are read.

    Attributes:
        name: A short name, for logs and results.
        format: The name of its format.
        path: Where it is.
        files: Everything that is read; other content is another source.
        groups: Its videos, or the splits of a file, which are read one after the other.
        read: ``read(group, report)`` yields ``(split, example)`` and counts in the report what it drops or alters. It
            keeps nothing of a group, so that conversion needs little memory and can continue after any group.
        notes: Sentences for the report.
        classes: Names of the classes; None for regression.
        several: Whether an example may have several of the classes at once, or none.
        budget: Limits what is made of the files.
        by_video: Whether a group is a video.
        rotations: Its own folds by name, the default first.
        request: What it was opened for.
        listed: The ids of the file of folds, if there is one.
        extraction: Of which extraction its frames are, by modality.
        dropped: Examples that are left out before any is read, by reason.
    """

    name: str
    format: str
    path: Path
    files: list[Path]
    groups: Sequence[str]
    read: Callable[[str, ReadReport], Iterator[tuple[str, Example]]]
    notes: list[str] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    several: bool = False
    budget: Budget | None = None
    by_video: bool = False
    rotations: Mapping[str, Rotation] = field(default_factory=dict)
    request: DataRequest | None = None
    listed: frozenset[str] = frozenset()
    extraction: Mapping[str, Extraction] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    def new_report(self) -> ReadReport:
        """A report before any example is read."""
        name = f"{self.path.name or self.path} ({self.format})"
        return ReadReport(source=name, notes=list(self.notes), dropped=dict(self.dropped))


class Counter:
    """Counts examples in a report and checks that ids are unique and widths consistent.

    Attributes:
        ids: Those of all examples.
        videos: The videos of all examples.
    """

    def __init__(self, report: ReadReport) -> None:
        self.report = report
        self.ids: set[str] = set()
        self.videos: set[str] = set()

    def see(self, split: str, example: Example, video: str | None) -> None:
        """Count an example; its video is told by its id where it is None.

        Raises:
            DataError: Its id occurred before, or its frames have another width than earlier ones.
        """
        report = self.report
        if example.id in self.ids:
            raise DataError(f"Give every example its own id: {example.id[:200]!r} occurs twice.")
        self.ids.add(example.id)
        self.videos.add(video_of(example.id) if video is None else video)
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

    def finish(self, source: Source) -> None:
        """Put the splits in order, and note which ids of a file of folds name no example.

        Raises:
            DataError: There was no example.
        """
        counts = self.report.counts
        if not counts:
            reasons = "; ".join(f"{n} dropped: {reason}" for reason, n in self.report.dropped.items())
            why = f" ({reasons})" if reasons else ""
            raise DataError(f"Check the data: no example could be read from {self.report.source}{why}.")
        self.report.counts = ordered(counts)
        if source.listed and source.request is not None:
            file = Path(str(source.request.folds)).name
            for sentence in absent_note(source.listed, self.ids | self.videos, file):
                self.report.note(sentence)


def ordered(counts: dict[str, int]) -> dict[str, int]:
    """Splits in order: train, valid, test, then any others."""
    order = [s for s in SPLITS if s in counts] + [s for s in counts if s not in SPLITS]
    return {split: counts[split] for split in order}


def collect(source: Source) -> Corpus:
    """Read a source into memory."""
    report = source.new_report()
    counter = Counter(report)
    splits: dict[str, list[Example]] = {}
    title = printable(f"reading {source.name:.60}")
    for group in tracked(source.groups, title, "groups", delay=5, plain=False):
        for split, example in source.read(group, report):
            counter.see(split, example, group if source.by_video else None)
            splits.setdefault(split, []).append(example)
    counter.finish(source)
    for examples in splits.values():
        examples[:] = [_with_widths(example, report.widths) for example in examples]
    return Corpus(
        name=source.name,
        splits={split: splits[split] for split in report.counts},
        visual_size=report.widths.get("visual", 0),
        acoustic_size=report.widths.get("acoustic", 0),
        report=report,
        classes=source.classes,
        several=source.several,
        extraction=source.extraction,
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
