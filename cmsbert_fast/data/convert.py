"""Converting once: from whatever a source is to a form that opens at once and is read a row at a time.

The form is a folder:
    manifest.json           version, format, splits, widths, counts, statistics, and the SHA-256 of the source
    examples.jsonl          a line an example: id, split, words, label, frames of each modality
    visual.safetensors      all frames of a modality, float32 (frames, d), in the order of the lines
    acoustic.safetensors

safetensors, because the project needs it anyway, its header is plain JSON and its data plain rows: any range of frames
is a slice of a memory map, without a decoder (Arrow and HDF5 bring one) and without code (pickle). A new folder appears
under its name only when it is complete; until then it is ``NAME.partial``, from which a broken-off conversion goes on.
"""

import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from .example import Corpus, DataError, Example, ReadReport
from .folds import NO_FOLD, Folds
from .source import MODALITIES, Counter, Resident, Source, ordered, video_of

VERSION = 1
_MANIFEST, _EXAMPLES, _JOURNAL = "manifest.json", "examples.jsonl", "journal.json"
_HEADER = 512  # bytes of a safetensors header; JSON may be padded with spaces
_EVERY = 5.0  # seconds between two marks from which a conversion can continue


def is_converted(path: Path) -> bool:
    """Whether a path is a folder that `convert` wrote."""
    return (path / _MANIFEST).is_file() and (path / _EXAMPLES).is_file()


def source_hash(files: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of all files of a source."""
    total = hashlib.sha256()
    for file in sorted(files):
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            size = file.stat().st_size
            with tqdm(total=size, unit="B", unit_scale=True, desc=f"hashing {file.name}", delay=5, disable=None) as bar:
                while block := stream.read(1 << 22):
                    digest.update(block)
                    bar.update(len(block))
        total.update(f"{file.name}\0{digest.hexdigest()}\n".encode())
    return total.hexdigest()


class _Moments:
    """Mean and standard deviation per feature of frames that pass by, merged block by block in float64."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.count = state["count"] if state else 0
        self.mean = np.array(state["mean"]) if state else np.zeros(0)
        self.square = np.array(state["square"]) if state else np.zeros(0)

    def see(self, frames: np.ndarray) -> None:
        if not frames.size:
            return
        mean = frames.mean(axis=0, dtype=np.float64)
        square = ((frames - mean) ** 2).sum(axis=0)
        if not self.count:
            self.count, self.mean, self.square = len(frames), mean, square
            return
        total = self.count + len(frames)
        gap = mean - self.mean
        self.mean = self.mean + gap * (len(frames) / total)
        self.square = self.square + square + gap**2 * (self.count * len(frames) / total)
        self.count = total

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean.tolist(), "square": self.square.tolist()}

    def result(self) -> dict[str, Any]:
        return {
            "frames": self.count,
            "mean": self.mean.tolist(),
            "std": np.sqrt(self.square / max(1, self.count)).tolist(),
        }


class _Writer:
    """The folder while it is written, group by group, and the journal from which it can continue."""

    def __init__(self, folder: Path, source: Source, asked: dict[str, Any]) -> None:
        self.folder = folder
        self.report = source.new_report()
        self.counter = Counter(self.report, source.limit)
        self.moments = {modality: _Moments() for modality in MODALITIES}
        self.done = 0
        # Cheap and enough to tell another or an altered source from the one that was begun.
        self._source = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in source.files] + [asked]
        journal = self._journal()
        sizes = journal["sizes"] if journal else {}
        if journal is None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.files: dict[str, IO[bytes]] = {}
        for name in (*MODALITIES, _EXAMPLES):
            path = folder / (name if name == _EXAMPLES else f"{name}.safetensors")
            path.touch()
            file = self.files[name] = path.open("r+b")
            begin = 0 if name == _EXAMPLES else 8 + _HEADER
            file.truncate(max(begin, sizes.get(name, begin)))
            file.seek(0, os.SEEK_END)
        if journal is not None:
            self._restore(journal)

    def _journal(self) -> dict[str, Any] | None:
        try:
            journal = json.loads((self.folder / _JOURNAL).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return journal if journal.get("version") == VERSION and journal.get("source") == self._source else None

    def _restore(self, journal: dict[str, Any]) -> None:
        self.done = journal["done"]
        for name, value in journal["report"].items():
            setattr(self.report, name, value)
        self.moments = {modality: _Moments(journal["moments"][modality]) for modality in MODALITIES}
        with (self.folder / _EXAMPLES).open(encoding="utf-8") as lines:
            self.counter.ids = {json.loads(line)["id"] for line in lines}
        if self.counter.left is not None:
            self.counter.left = journal["left"]

    def write(self, split: str, example: Example) -> None:
        self.counter.see(split, example)
        line: dict[str, Any] = {"id": example.id, "split": split, "label": example.label, "words": example.words}
        line |= {"aligned": example.aligned}
        for modality in MODALITIES:
            frames = np.ascontiguousarray(getattr(example, modality), dtype="<f4")
            line[modality] = len(frames)
            self.files[modality].write(frames.tobytes())
            if split == "train":
                self.moments[modality].see(frames)
        self.files[_EXAMPLES].write(json.dumps(line).encode() + b"\n")

    def mark(self) -> None:
        """Make everything written so far the point from which to continue."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        journal = {
            "version": VERSION,
            "source": self._source,
            "done": self.done,
            "sizes": {name: file.tell() for name, file in self.files.items()},
            "report": asdict(self.report),
            "moments": {modality: moments.state() for modality, moments in self.moments.items()},
            "left": self.counter.left,
        }
        draft = self.folder / (_JOURNAL + ".new")
        draft.write_text(json.dumps(journal), encoding="utf-8")
        draft.replace(self.folder / _JOURNAL)

    def finish(self, source: Source) -> None:
        self.counter.finish()
        for modality in MODALITIES:
            file, width = self.files[modality], self.report.widths.get(modality, 0)
            if width:
                count = self.report.frames[modality]
                header = {"frames": {"dtype": "F32", "shape": [count, width], "data_offsets": [0, 4 * count * width]}}
                file.seek(0)
                file.write(_HEADER.to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER))
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for modality in MODALITIES:
            if not self.report.widths.get(modality, 0):
                (self.folder / f"{modality}.safetensors").unlink()
        manifest = {
            "version": VERSION,
            "name": source.name,
            "classes": source.classes,
            "standardise": source.standardise,
            "report": asdict(self.report),
            "statistics": {m: self.moments[m].result() for m in self.report.widths},
            "source": {
                "format": source.format,
                "files": [f.name for f in source.files],
                "sha256": source_hash(source.files),
            },
        }
        (self.folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        (self.folder / _JOURNAL).unlink(missing_ok=True)

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def convert(source: Source, target: Path, asked: dict[str, Any] | None = None) -> ReadReport:
    """Write a source as a folder that `open_converted` maps; continue where an interrupted conversion stopped.

    Args:
        source: From `cmsbert_fast.data.open_source`.
        target: The folder to make; it must not exist.
        asked: The choices that ``source`` was opened with: a conversion with others begins anew.

    Raises:
        DataError: The target exists, or the source cannot be read.
    """
    if target.exists():
        raise DataError(f"Choose another folder or remove this one: {target} exists.")
    partial = target.with_name(target.name + ".partial")
    writer = _Writer(partial, source, json.loads(json.dumps(asked or {}, default=str)))
    try:
        marked = time.monotonic()
        groups = tqdm(
            source.groups[writer.done :],
            initial=writer.done,
            total=len(source.groups),
            desc=f"converting {source.name}",
            unit="group",
            disable=None,
        )
        for group in groups:
            for split, example in source.read(group, writer.report):
                writer.write(split, example)
            writer.done += 1
            if time.monotonic() - marked > _EVERY:
                writer.mark()
                marked = time.monotonic()
        writer.finish(source)
    finally:
        writer.close()
    partial.rename(target)
    return writer.report


class Mapped(Sequence[Example]):
    """The examples of a split; frames are read from the memory map when an example is asked for."""

    def __init__(self, lines: list["_Line"], frames: dict[str, "_Frames"]) -> None:
        self._lines = lines
        self._frames = frames

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Mapped(self._lines[index], self._frames)
        line = self._lines[index]
        parts = {
            modality: self._frames[modality].rows(begin, count)
            for modality, (begin, count) in zip(MODALITIES, line.frames, strict=True)
        }
        return Example(line.id, line.words, line.label, parts["visual"], parts["acoustic"], line.aligned)

    def __iter__(self) -> Iterator[Example]:
        return (self[k] for k in range(len(self)))


class _Line:
    """One line of ``examples.jsonl``."""

    __slots__ = ("aligned", "frames", "id", "label", "words")

    def __init__(self, entry: dict[str, Any], begins: dict[str, int]) -> None:
        self.id: str = entry["id"]
        self.words = tuple(entry["words"])
        self.label: float | int | None = entry["label"]
        self.aligned: bool = entry["aligned"]
        self.frames = tuple((begins[modality], entry[modality]) for modality in MODALITIES)


class _Frames:
    """The frames of a modality, a read-only map of its file; none where it has no file."""

    def __init__(self, path: Path | None = None, width: int = 0, count: int = 0) -> None:
        self._all = np.zeros((0, width), dtype=np.float32)
        self._resident: Resident | None = None
        if path is None:
            return
        with safe_open(path, framework="np") as tensors:
            shape = tuple(tensors.get_slice("frames").get_shape())
        if shape != (count, width):
            raise ValueError(f"{path.name} holds {shape}, expected {(count, width)}")
        if count:
            with path.open("rb") as file:
                begin = 8 + int.from_bytes(file.read(8), "little")
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._resident = Resident(data)
            self._all = np.frombuffer(data, dtype="<f4", count=count * width, offset=begin).reshape(count, width)

    def rows(self, begin: int, count: int) -> np.ndarray:
        """Frames ``begin`` to ``begin + count``, read from disk when they are used."""
        found = self._all[begin : begin + count]
        if self._resident is not None:
            self._resident.see(found.nbytes)
        return found


def open_converted(path: Path, folds: Folds | None = None, without: Sequence[str] = ()) -> Corpus:
    """A converted corpus; frames stay on disk until they are asked for.

    Args:
        path: The folder that `convert` wrote.
        folds: Splits in place of its own.
        without: Modalities to leave out.

    Raises:
        DataError: The folder is damaged or of another version.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != VERSION:
            raise DataError(f"Convert {path} again: it has version {manifest['version']}, this is version {VERSION}.")
        report = ReadReport(**manifest["report"])
        widths = {modality: int(report.widths.get(modality, 0)) for modality in MODALITIES}
        frames = {
            modality: _Frames(path / f"{modality}.safetensors", width, report.frames.get(modality, 0))
            if width
            else _Frames()
            for modality, width in widths.items()
        }
        splits: dict[str, list[_Line]] = {split: [] for split in report.counts}
        begins = dict.fromkeys(MODALITIES, 0)
        with (path / _EXAMPLES).open(encoding="utf-8") as lines:
            for text in lines:
                entry = json.loads(text)
                splits[entry["split"]].append(_Line(entry, begins))
                for modality in MODALITIES:
                    begins[modality] += entry[modality]
        statistics = {
            modality: (np.array(entry["mean"], dtype=np.float64), np.array(entry["std"], dtype=np.float64))
            for modality, entry in manifest["statistics"].items()
            if modality not in without
        }
        found = {split: len(lines) for split, lines in splits.items()}
        if found != report.counts or any(begins[m] != report.frames.get(m, 0) for m in MODALITIES if widths[m]):
            raise ValueError("its parts do not fit one another")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise DataError(f"Convert {path} again: it is damaged ({error}).") from error
    if folds is not None:
        splits = _resplit(splits, folds, report)
    for modality in without:
        widths[modality], frames[modality] = 0, _Frames()
        for counts in (report.widths, report.frames, report.non_finite):
            counts.pop(modality, None)
        report.note(f"left out: {modality}")
    return Corpus(
        name=manifest["name"],
        splits={split: Mapped(lines, frames) for split, lines in splits.items()},
        visual_size=widths["visual"],
        acoustic_size=widths["acoustic"],
        report=report,
        classes=tuple(manifest["classes"]) if manifest["classes"] is not None else None,
        standardise=manifest["standardise"],
        statistics=statistics if folds is None else None,
    )


def _resplit(splits: dict[str, list[_Line]], folds: Folds, report: ReadReport) -> dict[str, list[_Line]]:
    again: dict[str, list[_Line]] = {}
    for lines in splits.values():
        for line in lines:
            split = folds.split_of(line.id, video_of(line.id))
            if split is None:
                report.drop(NO_FOLD)
            else:
                again.setdefault(split, []).append(line)
    report.counts = ordered({split: len(lines) for split, lines in again.items()})
    return {split: again[split] for split in report.counts}
