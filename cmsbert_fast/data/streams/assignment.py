"""Which streams of a folder are frames, words and labels: found, recognised by name, and assigned."""

import re
from collections.abc import Sequence
from pathlib import Path

from cmsbert_fast.data.example import MODALITIES, DataError
from cmsbert_fast.data.streams.columns import choose_columns
from cmsbert_fast.data.streams.csd import CsdStream, verify
from cmsbert_fast.data.streams.feature_files import SUFFIXES, FileStream

Stream = CsdStream | FileStream

# Files that may hold frames but are no streams; recordings (.mp4, .wav) and pictures are none.
_HOLD_FRAMES = (".npy", ".npz", ".pt", ".pth", ".mat", ".h5", ".hdf5", ".pkl", ".pickle", ".parquet", ".feather")

# The order matters: "TimestampedWordVectors" are embeddings, not words.
_KINDS = (
    ("ignored", ("wordvector", "glove", "bert", "embedding", "phone", "raw_text", "transcript")),
    ("labels", ("label", "sentiment", "emotion")),
    ("words", ("word",)),
    ("visual", ("facet", "openface", "visual", "vision", "video", "face", "landmark", "clip")),
    ("acoustic", ("covarep", "opensmile", "acoustic", "audio", "voice", "egemaps", "mfcc", "librosa", "wav2vec")),
)


def kind_of(name: str) -> str | None:
    """What a stream holds, by its name: visual, acoustic, words, labels or ignored; None where it does not say."""
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


def unread(folder: Path) -> dict[Path, str]:
    """What a folder holds that may be frames but cannot be read, and what each has: no stream is left out unsaid."""
    found, streams = {}, find_streams(folder)
    for path in sorted(folder.iterdir()):
        named = kind_of(path.stem) in MODALITIES and not path.name.startswith(".")
        if not path.is_dir():
            if path.suffix.lower() in _HOLD_FRAMES and not path.name.startswith("."):
                found[path] = f"a single {path.suffix.lower()} file"
            continue
        inside = sorted({p.suffix.lower() or "without suffix" for p in path.iterdir() if p.is_file()})
        if path in streams or not named:
            inside = [suffix for suffix in inside if suffix in _HOLD_FRAMES and suffix not in SUFFIXES]
        if inside:
            found[path] = f"files {', '.join(inside[:5])}{', ...' * (len(inside) > 5)}"
        elif named and path not in streams:
            found[path] = "only folders" if any(path.iterdir()) else "nothing"
    return found


def open_stream(path: Path, rate: float | None = None) -> Stream:
    return FileStream(path, rate) if path.is_dir() else CsdStream(path)


def _names(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


class Assignment:
    """Which stream of a folder serves as visual and acoustic frames, words and labels.

    Args:
        folder: Where the streams lie.
        visual, acoustic: Names of streams; empty to recognise them by name; "none" for an absent modality.
        words, labels: Name of the stream of words and of labels; None to recognise it; "none" for no such stream.
        columns: Patterns of names of features, with commas between; None: all features.

    Raises:
        DataError: A named stream does not exist, names alone do not decide, or a pattern matches no feature.
    """

    def __init__(
        self,
        folder: Path,
        visual: str | Sequence[str] = (),
        acoustic: str | Sequence[str] = (),
        words: str | None = None,
        labels: str | None = None,
        columns: str | None = None,
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
        self._unread = unread(folder)
        chosen = {role: self._resolve(role, names) for role, names in asked.items()}
        unknown = [p for p in self._paths if self._kinds[p] is None and p not in self._taken]
        for role in asked:
            if chosen[role] is None:
                chosen[role] = self._recognise(role)
                self._check_read(role, chosen[role])
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
        self._chosen = [] if columns is None else choose_columns([*self.visual, *self.acoustic], columns)

    def _check_read(self, role: str, found: list[tuple[Path, float | None]] | None) -> None:
        """Refuses a set whose only frames of a modality cannot be read; beside others, and recordings, are noted."""
        for path, why in self._unread.items():
            holds = any(word in why for word in (*_HOLD_FRAMES, "nothing", "only folders"))
            if not found and holds and kind_of(path.stem) == role:
                self._refuse(role, path)

    def _refuse(self, role: str, path: Path) -> None:
        """Refuses frames that cannot be read."""
        raise DataError(
            f"Save the frames of {path.name} in a folder, as a file {', '.join(SUFFIXES)} for each segment or video, "
            f"or leave them out with --{role} none: it has {self._unread[path]}."
        )

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
        cannot = [p for p in self._unread if p.name.lower() == Path(stem).name.lower()]
        if not found and cannot:
            self._refuse(role, cannot[0])
        if len(found) != 1:
            here = ", ".join(p.name for p in self._paths) or "none"
            what = "fits several streams" if found else "is not a stream of this folder"
            raise DataError(f"Choose the {role} stream among: {here}; {name!r} {what}.")
        if rate is not None and not found[0].is_dir():
            raise DataError(f"Leave out @{hertz}: {found[0].name} has times of its own.")
        if found[0] in self._taken:
            raise DataError(f"Name the stream {found[0].name} once: it is one of {self._taken[found[0]]} already.")
        self._taken[found[0]] = role
        return found[0], rate

    def _recognise(self, role: str) -> list[tuple[Path, float | None]]:
        found = [p for p in self._paths if self._kinds[p] == role and p not in self._taken]
        if len(found) > 1:
            option = {"words": "--words", "labels": "--label"}.get(role, f"--{role}")
            name = "NAME (or NAME.COLUMN)" if role == "labels" else "NAME"
            raise DataError(
                f"Choose one {role} stream with {option} {name}: {', '.join(p.name for p in found)} would all do."
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
        """Append to the notes which stream serves as what."""
        for role in MODALITIES:
            streams = getattr(self, role)
            names = ", ".join(stream.name for stream in streams)
            notes.append(f"{role} frames from {names}" if names else f"no {role} stream")
        notes += self._chosen
        if self.words is not None:
            notes.append(f"words from {self.words.name}")
        if self.labels is not None:
            notes.append(f"labels from {self.labels.name}")
        notes += [f"not read: {path.name}, which has {why}" for path, why in self._unread.items()]
        if self.ignored:
            notes.append(f"not used: {', '.join(p.name for p in self.ignored)}")
