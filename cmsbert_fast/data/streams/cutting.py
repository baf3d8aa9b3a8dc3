"""The streams of a folder: found, recognised by name, assigned to modalities, and cut per segment or per word."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cmsbert_fast.data.align import TOLERANCE, Track, interval_means, overlapping
from cmsbert_fast.data.example import MODALITIES, DataError, ReadReport
from cmsbert_fast.data.source import Budget, frames_of
from cmsbert_fast.data.streams.csd import CsdStream, verify
from cmsbert_fast.data.streams.feature_files import SUFFIXES, FileStream

Stream = CsdStream | FileStream
_LOOK = 16  # frames that are looked through for a segment cost a byte of the budget

# The order matters: "TimestampedWordVectors" are embeddings, not words.
_KINDS = (
    ("ignored", ("wordvector", "glove", "bert", "embedding", "phone", "raw_text", "transcript")),
    ("labels", ("label", "sentiment", "emotion")),
    ("words", ("word",)),
    ("visual", ("facet", "openface", "visual", "vision", "video", "face", "landmark", "clip")),
    ("acoustic", ("covarep", "opensmile", "acoustic", "audio", "voice", "egemaps", "mfcc", "librosa", "wav2vec")),
)


def kind_of(name: str) -> str | None:
    """What a stream's name speaks of: visual, acoustic, words, labels, ignored; None where it does not say."""
    lower = name.lower().replace("_", "").replace("-", "").replace(" ", "")
    for kind, marks in _KINDS:
        if any(mark.replace("_", "") in lower for mark in marks):
            return kind
    return None


def find_streams(folder: Path) -> list[Path]:
    """The ``.csd`` files of a folder, and its sub-folders of ``.npy`` or ``.csv`` files."""
    found = sorted(folder.glob("*.csd"))
    for child in sorted(folder.iterdir()):
        if child.is_dir() and any(p.suffix.lower() in SUFFIXES for p in child.iterdir()):
            found.append(child)
    return found


def open_stream(path: Path, rate: float | None = None) -> Stream:
    return FileStream(path, rate) if path.is_dir() else CsdStream(path)


def _names(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


class Assignment:
    """Which stream of a folder serves what.

    Args:
        folder: Where the streams lie.
        visual, acoustic: Names of streams; empty to recognise them by name; "none" for an absent modality.
        words, labels: Name of the stream of words and of labels; None to recognise it; "none" for no such stream.

    Raises:
        DataError: A named stream does not exist, or names alone do not decide.
    """

    def __init__(
        self,
        folder: Path,
        visual: str | Sequence[str] = (),
        acoustic: str | Sequence[str] = (),
        words: str | None = None,
        labels: str | None = None,
    ) -> None:
        self._paths = find_streams(folder)
        self._kinds = {path: kind_of(path.stem) for path in self._paths}
        self._taken: dict[Path, str] = {}
        asked = {
            "visual": _names(visual),
            "acoustic": _names(acoustic),
            "words": _names(words),
            "labels": _names(labels),
        }
        chosen = {role: self._resolve(role, names) for role, names in asked.items()}
        unknown = [p for p in self._paths if self._kinds[p] is None and p not in self._taken]
        for role in asked:
            if chosen[role] is None:
                chosen[role] = self._recognise(role)
        if unknown and not (asked["visual"] and asked["acoustic"]):
            raise DataError(
                f"Say what these streams are with --visual NAME or --acoustic NAME (or 'none'): "
                f"{', '.join(p.name for p in unknown)}."
            )
        verify([path for found in chosen.values() for path, _ in found or [] if path.is_file()])
        self.visual = [open_stream(path, rate) for path, rate in chosen["visual"] or []]
        self.acoustic = [open_stream(path, rate) for path, rate in chosen["acoustic"] or []]
        self.words = self._only("words", chosen["words"])
        self.labels = self._only("labels", chosen["labels"])
        used = {path for found in chosen.values() for path, _ in found or []}
        self.ignored = [path for path in self._paths if path not in used]

    def _resolve(self, role: str, names: list[str]) -> list[tuple[Path, float | None]] | None:
        if not names:
            return None
        if [name.lower() for name in names] == ["none"]:
            return []
        return [self._find(role, name) for name in names]

    def _find(self, role: str, name: str) -> tuple[Path, float | None]:
        stem, _, hertz = name.partition("@")
        rate = None
        if hertz:
            if not re.fullmatch(r"\d+(\.\d+)?", hertz) or float(hertz) == 0:
                raise DataError(f"Write the rate of {stem} as NAME@HZ, for example {stem}@30.")
            rate = float(hertz)
        wanted = Path(stem).name.lower().removesuffix(".csd")
        found = [p for p in self._paths if p.stem.lower() == wanted or p.name.lower() == wanted]
        found = found or [p for p in self._paths if wanted in p.name.lower()]
        if len(found) != 1:
            here = ", ".join(p.name for p in self._paths) or "none"
            what = "fits several streams" if found else "is no stream of this folder"
            raise DataError(f"Choose the {role} stream among: {here}; {name!r} {what}.")
        if rate is not None and not found[0].is_dir():
            raise DataError(f"Leave out @{hertz}: {found[0].name} has times of its own.")
        self._taken[found[0]] = role
        return found[0], rate

    def _recognise(self, role: str) -> list[tuple[Path, float | None]]:
        found = [p for p in self._paths if self._kinds[p] == role and p not in self._taken]
        if len(found) > 1:
            option = {"words": "--words", "labels": "--label"}.get(role, f"--{role}")
            raise DataError(
                f"Choose one {role} stream with {option} NAME: {', '.join(p.name for p in found)} would all do."
            )
        return [(path, None) for path in found]

    @staticmethod
    def _only(role: str, found: list[tuple[Path, float | None]] | None) -> CsdStream | None:
        if not found:
            return None
        stream = open_stream(found[0][0])
        if not isinstance(stream, CsdStream):
            raise DataError(f"Name a .csd file for the {role}: {stream.name} is a folder.")
        return stream

    @property
    def files(self) -> list[Path]:
        streams = [*self.visual, *self.acoustic, self.words, self.labels]
        return [path for stream in streams if stream is not None for path in stream.files]

    def describe(self, notes: list[str]) -> None:
        """Say which stream serves what."""
        for role in MODALITIES:
            streams = getattr(self, role)
            names = ", ".join(stream.name for stream in streams)
            notes.append(f"{role} frames from {names}" if names else f"no {role} stream")
        if self.words is not None:
            notes.append(f"words from {self.words.name}")
        if self.labels is not None:
            notes.append(f"labels from {self.labels.name}")
        if self.ignored:
            notes.append(f"not used: {', '.join(p.name for p in self.ignored)}")


class Cutter:
    """Cuts the streams of one modality per segment or averages them per word, one video in memory at a time.

    Several streams of a modality are joined along the features: per word, or on the frames of the first of them.
    """

    def __init__(self, streams: Iterable[Stream], modality: str, budget: Budget) -> None:
        self._streams = list(streams)
        self._modality = modality
        self._budget = budget
        self._held: dict[int, tuple[str, Track]] = {}
        self._widths: dict[int, int] = {}

    def _track(self, number: int, key: str, report: ReadReport) -> Track:
        held = self._held.get(number)
        if held is None or held[0] != key:
            stream = self._streams[number]
            track = stream.read(key)
            width = self._width(number)
            if not len(track.features):
                track = Track(np.zeros((0, width)), track.intervals)
            if track.features.shape[1] != width:
                raise DataError(
                    f"Repair {stream.name}: {key} has {track.features.shape[1]} features, others have {width}."
                )
            if isinstance(stream, FileStream) and stream.left_out:
                report.note(f"{stream.name}: no features are the columns {', '.join(sorted(stream.left_out))}")
            # Replaced and counted once for the whole video, before anything is averaged.
            clean = frames_of(track.features, self._modality, report)
            held = (key, Track(clean, track.intervals))
            self._held[number] = held
        # Any number of segments may overlap, each of them all of a video.
        self._budget.spend(len(held[1].features) // _LOOK)
        return held[1]

    def _find(
        self, number: int, segment: str, video: str | None, span: tuple[float, float] | None, report: ReadReport
    ) -> tuple[Track, bool] | None:
        """The track that holds a segment, on the video's clock, and whether it holds nothing else."""
        stream = self._streams[number]
        if not self._width(number):
            return None
        if segment in stream and segment != video and (video is not None or isinstance(stream, FileStream)):
            track = self._track(number, segment, report)
            # A file of one's own begins when its segment does; the times of a .csd are the video's throughout.
            if isinstance(stream, FileStream) and track.intervals is not None and span is not None:
                track = Track(track.features, track.intervals + span[0])
            return track, True
        key = video or segment
        return (self._track(number, key, report), span is None and segment == key) if key in stream else None

    def _frames(
        self, number: int, segment: str, video: str | None, span: tuple[float, float] | None, report: ReadReport
    ) -> Track | None:
        found = self._find(number, segment, video, span, report)
        if found is None:
            return None
        track, own = found
        if own:
            return track
        if track.intervals is None:
            raise DataError(
                f"Give the frames of {self._streams[number].name} times (a timestamp column, or the rate as "
                f"{self._streams[number].name}@HZ): the file of {video or segment} holds a whole video."
            )
        if span is None:
            raise DataError(
                f"Give the table columns start and stop: frames of {video or segment} must be cut per segment."
            )
        inside = overlapping(track.intervals, *span)
        return Track(track.features[inside], track.intervals[inside])

    def cut(
        self, segment: str, video: str | None, span: tuple[float, float] | None, report: ReadReport
    ) -> np.ndarray | None:
        """The frames of a segment, float32 (n, d); None where no stream knows the segment or its video.

        Args:
            segment: Its id.
            video: Its video; None where the segment is a recording by itself, whose files hold nothing else.
            span: Start and stop in the video, in seconds.
            report: Counts what is altered or missing.
        """
        tracks = [self._frames(k, segment, video, span, report) for k in range(len(self._streams))]
        if not tracks or tracks[0] is None:
            return None
        if len(tracks) == 1:
            return np.ascontiguousarray(tracks[0].features)
        parts = [tracks[0].features]
        for track in tracks[1:]:
            if track is None:
                return None
            if track.intervals is None or tracks[0].intervals is None:
                if len(track.features) != len(parts[0]):
                    raise DataError(
                        f"Give the frames of {segment} times, or as many frames in every {self._modality} stream."
                    )
                parts.append(track.features)
            else:
                means, _ = interval_means(track.features, track.intervals, tracks[0].intervals)
                parts.append(means.astype(np.float32))
        return np.ascontiguousarray(np.concatenate(parts, axis=1))

    def average(
        self,
        segment: str,
        video: str | None,
        span: tuple[float, float] | None,
        times: np.ndarray,
        report: ReadReport,
    ) -> np.ndarray | None:
        """One frame a word, float32 (words, d): the mean of the frames that overlap it, 0 where there is none.

        Args: as `cut`; ``times`` (words, 2) are seconds in the video. Words without a frame are counted.
        """
        parts: list[np.ndarray] = []
        bare = np.zeros(len(times), dtype=bool)
        self._budget.reserve(8 * len(times) * self.width)
        for number in range(len(self._streams)):
            found = self._find(number, segment, video, span, report)
            if found is None:
                return None
            track, own = found
            if track.intervals is None:
                raise DataError(f"Give the frames of {self._streams[number].name} times: they are averaged per word.")
            rows = _rows_of(track.intervals, times) if own else None
            if rows is not None:
                parts.append(track.features[rows])
                continue
            means, counts = interval_means(track.features, track.intervals, times)
            parts.append(means.astype(np.float32))
            bare |= counts == 0
        if not parts:
            return None
        report.tally(self._bare, int(bare.sum()))
        return np.concatenate(parts, axis=1)

    @property
    def _bare(self) -> str:
        return f"words have no {self._modality} frame; theirs are zeros"

    def finish(self, report: ReadReport) -> None:
        """Look back when all examples are read.

        Raises:
            DataError: Not one of them has a frame, although there are streams.
        """
        if not self._streams or not report.counts:
            return
        if report.frames.get(self._modality, 0) == report.tallies.get(self._bare, 0):
            names = ", ".join(stream.name for stream in self._streams)
            raise DataError(
                f"Name the files or entries of {names} by ids or videos of the table and give both the same clock, or "
                f"leave the stream out with --{self._modality} none: no example has a frame of it."
            )

    def forget(self) -> None:
        """Let go of the last video."""
        self._held.clear()

    @property
    def width(self) -> int:
        """Features of a frame, all streams of the modality together."""
        return sum(map(self._width, range(len(self._streams))))

    def _width(self, number: int) -> int:
        """Features of a frame of one stream: of the first that there is."""
        if number not in self._widths:
            stream = self._streams[number]
            tracks = (stream.read(key) for key in stream)
            self._widths[number] = next((t.features.shape[1] for t in tracks if len(t.features)), 0)
        return self._widths[number]


def _rows_of(intervals: np.ndarray, times: np.ndarray) -> list[int] | None:
    """The frames whose intervals are those of the words, in order; None where a word has none.

    Such frames are averages already (the SDK's alignment). To average them again would mix words that overlap by the
    rounding of their times, and lose those without duration.
    """
    if not len(times) or len(intervals) < len(times):
        return None
    rows: list[int] = []
    at = 0
    stamps = intervals.tolist()
    for start, stop in times.tolist():
        while at < len(stamps) and max(abs(stamps[at][0] - start), abs(stamps[at][1] - stop)) > TOLERANCE:
            at += 1
        if at == len(stamps):
            return None
        rows.append(at)
        at += 1
    return rows


def words_within(words: list[str], times: np.ndarray, start: float, stop: float) -> tuple[list[str], np.ndarray]:
    """The words that overlap [start, stop] by more than a millisecond, with their intervals."""
    margin = max(TOLERANCE, 1e-3)  # word stamps are rounded to milliseconds; neighbours would slip in
    inside = np.flatnonzero((times[:, 0] < stop - margin) & (times[:, 1] > start + margin))
    return [words[k] for k in inside], times[inside]
