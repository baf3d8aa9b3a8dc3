"""Wrappers of sources: guarded against untrusted content, without labels, with other folds, without a modality."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from cmsbert_fast.data.example import MODALITIES, DataError, Example, no_frames, with_frames
from cmsbert_fast.data.folds import NO_FOLD, choose, folds_of, video_of
from cmsbert_fast.data.mapped import Resident
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.source import Source


@contextmanager
def blaming(name: str, expected: str) -> Iterator[None]:
    """Turns what a reader raises into a `DataError` about the file: an untrusted file may hold anything anywhere."""
    try:
        yield
    except (MemoryError, RecursionError) as error:
        raise DataError(f"Do not use {name}: its parts are nested too deeply or are too large.") from error
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error!s:.200}"
        raise DataError(f"Do not use {name}: it is not built as {expected} files are ({what}).") from error


def guarded(source: Source, resident: Resident | None = None) -> Source:
    """A source whose reader raises only `DataError` and stays within its budget."""
    original = source.read

    def read(group: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        examples = original(group, report)
        while True:
            with blaming(source.path.name, source.format):
                found = next(examples, None)
            if found is None:
                return
            if source.budget is not None:  # here, before folds or left-out modalities drop any of it
                source.budget.see(found[1])
            yield found
            if resident is not None:  # stacked arrays are mostly float64
                resident.see(2 * (found[1].visual.nbytes + found[1].acoustic.nbytes))

    return replace(source, read=read)


def unlabelled(source: Source) -> Source:
    """A source whose examples have no labels."""
    original = source.read

    def read(group: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        return ((split, replace(example, label=None)) for split, example in original(group, report))

    return replace(source, read=read, classes=None, several=False)


def with_folds(source: Source, request: DataRequest) -> Source:
    """A source with the splits that a request names: folds of its own, or a file's; without any, its own splits.

    Raises:
        DataError: There are no such folds.
    """
    if request.folds is None and request.fold is None:
        return source
    original = source.read
    own = choose(source.rotations, request.folds)
    if own is not None:
        split_of = source.rotations[own].splitter(request.fold)
    else:
        folds = folds_of(request)
        assert folds is not None
        # Of what a file names, which may be less than all, there are no folds.
        source = replace(source, rotations={})

        def split_of(example: Example) -> str | None:
            return folds.split_of(example.id, video_of(example.id))

    def read(group: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        before = dict(report.non_finite), dict(report.tallies)
        for _, example in original(group, report):
            split = split_of(example)
            if split is None:
                report.drop(NO_FOLD)
                report.non_finite, report.tallies = before  # what is left out is not counted
            else:
                yield split, example
            before = dict(report.non_finite), dict(report.tallies)

    return replace(source, read=read)


def without(source: Source, modalities: list[str]) -> Source:
    """A source with some modalities left out."""
    if not modalities:
        return source
    original = source.read

    def read(group: str, report: ReadReport) -> Iterator[tuple[str, Example]]:
        for split, example in original(group, report):
            left = {m: no_frames() if m in modalities else getattr(example, m) for m in MODALITIES}
            yield split, with_frames(example, left["visual"], left["acoustic"])
        for modality in modalities:
            report.non_finite.pop(modality, None)

    return replace(source, read=read, notes=[*source.notes, f"left out: {', '.join(modalities)}"])
