"""Converting once: from whatever a source is to a form that opens at once and is read a row at a time.

The form is a folder:
    manifest.json           version, format, splits, widths, counts, statistics, the SHA-256 of the source, and for each
                            way of making folds the part that validates in every fold
    examples.jsonl          a line an example: id, split, words, label, frames of each modality; its video where the id
                            does not tell it, how many of its values were not finite and what else was counted of it,
                            where there was something, and its part in each way of making folds that the source has
    visual.safetensors      all frames of a modality, float32 (frames, d), in the order of the lines
    acoustic.safetensors

safetensors, because the project needs it anyway, its header is plain JSON and its data plain rows: any range of frames
is a slice of a memory map, without a decoder (Arrow and HDF5 bring one) and without code (pickle). A new folder appears
under its name only when it is complete; until then it is ``NAME.partial``, from which a broken-off conversion goes on.
"""

import fcntl
import hashlib
import json
import math
import mmap
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from cmsbert_fast.data.example import MODALITIES, Corpus, DataError, Example, Outline, ReadReport, whole
from cmsbert_fast.data.folds import NO_FOLD, choose, read_folds, split_by_part
from cmsbert_fast.data.formats import iemocap
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.source import Counter, Resident, Source, ordered, video_of

VERSION = 2
_MANIFEST, _EXAMPLES, _JOURNAL = "manifest.json", "examples.jsonl", "journal.json"
_DRAFT = _JOURNAL + ".new"
_OURS = {_MANIFEST, _EXAMPLES, _JOURNAL, _DRAFT, *(f"{modality}.safetensors" for modality in MODALITIES)}
_HEADER = 512  # bytes of a safetensors header; JSON may be padded with spaces
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a character, or of a pair that is one
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

    def __init__(self, folder: Path, source: Source) -> None:
        self.folder = folder
        self.report = source.new_report()
        self.counter = Counter(self.report)
        self._budget = source.budget
        self.moments = {modality: _Moments() for modality in MODALITIES}
        self.done = 0
        # Cheap and enough to tell another or an altered source from the one that was begun.
        self._source = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in source.files] + [_choices(source)]
        self._rotations = source.rotations
        self._source.append({name: list(rotation.valid) for name, rotation in source.rotations.items()})
        self._before = dict(self.report.non_finite), dict(self.report.tallies)
        self.files: dict[str, IO[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        folder = self.folder
        journal = self._journal()
        sizes = journal["sizes"] if journal else {}
        if journal is None:
            _clear(folder)
            self._note({})  # from here on the folder is known to be ours
        for name in (*MODALITIES, _EXAMPLES):
            path = folder / (name if name == _EXAMPLES else f"{name}.safetensors")
            path.touch()
            file = self.files[name] = path.open("r+b")
            begin = 0 if name == _EXAMPLES else 8 + _HEADER
            file.truncate(max(begin, sizes.get(name, begin)))
            file.seek(0, os.SEEK_END)
        if journal is not None and journal["done"]:
            self._restore(journal)

    def _journal(self) -> dict[str, Any] | None:
        journal = _read_journal(self.folder)
        known = journal is not None and journal["version"] == VERSION and journal["source"] == self._source
        return journal if known else None

    def _restore(self, journal: dict[str, Any]) -> None:
        self.done = journal["done"]
        for name, value in journal["report"].items():
            setattr(self.report, name, value)
        self.moments = {modality: _Moments(journal["moments"][modality]) for modality in MODALITIES}
        with (self.folder / _EXAMPLES).open(encoding="utf-8") as lines:
            self.counter.ids = {json.loads(line)["id"] for line in lines}
        if self._budget is not None:
            self._budget.left = journal["left"]
        self._before = dict(self.report.non_finite), dict(self.report.tallies)

    def write(self, split: str, example: Example, video: str | None) -> None:
        self.counter.see(split, example)
        now = dict(self.report.non_finite), dict(self.report.tallies)
        altered, tallies = (
            {what: n - before.get(what, 0) for what, n in after.items() if n != before.get(what, 0)}
            for after, before in zip(now, self._before, strict=True)
        )
        self._before = now
        line: dict[str, Any] = {"id": example.id, "split": split, "label": example.label, "words": example.words}
        line |= {"aligned": example.aligned}
        if video is not None and video != video_of(example.id):
            line["video"] = video
        if altered:
            line["non_finite"] = altered
        if tallies:
            line["tallies"] = tallies
        parts = {name: r.part_of[example.id] for name, r in self._rotations.items() if example.id in r.part_of}
        if parts:
            line["parts"] = parts
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
        self._note({name: file.tell() for name, file in self.files.items()})

    def _note(self, sizes: dict[str, int]) -> None:
        journal = {
            "version": VERSION,
            "source": self._source,
            "done": self.done,
            "sizes": sizes,
            "report": asdict(self.report),
            "moments": {modality: moments.state() for modality, moments in self.moments.items()},
            "left": None if self._budget is None else self._budget.left,
        }
        draft = self.folder / _DRAFT
        _write_synced(draft, json.dumps(journal))
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
            "standardise": True,  # no format says otherwise yet
            "report": asdict(self.report),
            "folds": {name: list(rotation.valid) for name, rotation in source.rotations.items()},
            "statistics": {m: self.moments[m].result() for m in self.report.widths},
            "source": {
                "format": source.format,
                "files": [f.name for f in source.files],
                "sha256": source_hash(source.files),
            },
        }
        _write_synced(self.folder / _MANIFEST, json.dumps(manifest, indent=1))
        _sync(self.folder)

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        os.close(self._lock)  # and with it the lock goes


def _choices(source: Source) -> dict[str, Any]:
    """What the source was opened with, as JSON gives it back."""
    return {} if source.request is None else json.loads(json.dumps(source.request.choices()))


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the names in a folder outlast a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(folder: Path) -> int:
    """A handle of a folder, held by this process alone until it is closed."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), os.stat(folder)):  # another process finished and renamed it
            raise BlockingIOError
    except BaseException as error:
        os.close(handle)
        if isinstance(error, BlockingIOError | FileNotFoundError):
            raise DataError(f"Wait: another conversion writes {folder}.") from error
        raise
    return handle


def _read_journal(folder: Path) -> dict[str, Any] | None:
    """The journal of a conversion that was broken off; None where there is none of ours."""
    try:
        journal = json.loads((folder / _JOURNAL).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    needed = {"version", "source", "done", "sizes", "report", "moments", "left"}
    return journal if isinstance(journal, dict) and needed <= journal.keys() else None


def _clear(folder: Path) -> None:
    """Empty a folder in which a conversion was broken off.

    Raises:
        DataError: It holds what no conversion wrote.
    """
    names = {path.name for path in folder.iterdir()}
    if not (names <= {_DRAFT} or (names <= _OURS and _read_journal(folder) is not None)):
        raise DataError(f"Move {folder} away or choose another target: it holds files that no conversion wrote.")
    for name in sorted(names - {_JOURNAL}) + sorted(names & {_JOURNAL}):  # the proof that it is ours goes last
        (folder / name).unlink()


def convert(source: Source, target: Path) -> ReadReport:
    """Write a source as a folder that `open_converted` maps; continue where an interrupted conversion stopped.

    Args:
        source: From `cmsbert_fast.data.open_source`. One that was opened with other choices begins anew.
        target: The folder to make; it must not exist.

    Raises:
        DataError: The target exists or cannot be written, another process converts to it, or the source cannot be read.
    """
    try:
        return _convert(source, target)
    except OSError as error:
        raise DataError(f"Choose another folder than {target} or make room there: {error}.") from error


def _convert(source: Source, target: Path) -> ReadReport:
    if target.exists():
        raise DataError(f"Choose another folder or remove this one: {target} exists.")
    partial = target.with_name(target.name + ".partial")
    writer = _Writer(partial, source)
    try:
        if target.exists():  # by a conversion that was faster
            raise DataError(f"Choose another folder or remove this one: {target} exists.")
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
                writer.write(split, example, group if source.by_video else None)
            writer.done += 1
            if time.monotonic() - marked > _EVERY:
                writer.mark()
                marked = time.monotonic()
        writer.finish(source)
        partial.rename(target)
        (target / _JOURNAL).unlink(missing_ok=True)
        _sync(target)
        _sync(target.parent)
    finally:
        writer.close()
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
        for modality, rows in parts.items():  # here: to look at all of them takes long
            if not np.isfinite(rows).all():
                raise DataError(f"Convert the data again: not all {modality} values of {line.id!r} are finite.")
        return Example(line.id, line.words, line.label, parts["visual"], parts["acoustic"], line.aligned)

    def __iter__(self) -> Iterator[Example]:
        return (self[k] for k in range(len(self)))

    def outlines(self) -> Iterator[Outline]:
        """The examples without their frames: a start of training that makes an array of each takes a second longer."""
        visual, acoustic = (len(self._frames[modality]) > 0 for modality in MODALITIES)
        for line in self._lines:
            (_, seen), (_, heard) = line.frames
            yield Outline(
                line.id, line.words, line.label, line.aligned, seen if visual else 0, heard if acoustic else 0
            )


class _Line:
    """One line of ``examples.jsonl``.

    Raises:
        ValueError: It is not of the form that `convert` writes.
    """

    __slots__ = ("aligned", "frames", "id", "label", "non_finite", "parts", "tallies", "video", "words")

    def __init__(self, entry: dict[str, Any], begins: dict[str, int], classes: int | None) -> None:
        self.id: str = _typed(entry["id"], str)
        self.words: tuple[str, ...] = tuple(_typed(entry["words"], list))
        if not set(map(type, self.words)) <= {str}:  # at once: a call for every word takes long
            raise ValueError("a word is no text")
        if not self.words:
            raise ValueError("an example has no words")
        self.label: float | int | None = entry["label"]
        if self.label is not None and classes is None:
            if not math.isfinite(_typed(self.label, int, float)):
                raise ValueError(f"a label is {self.label}")
        elif self.label is not None and not 0 <= _typed(self.label, int) < (classes or 0):
            raise ValueError(f"a label is {self.label}, but there are {classes} classes")
        self.aligned = _typed(entry["aligned"], bool)
        self.frames = tuple((begins[modality], _count(entry[modality])) for modality in MODALITIES)
        if self.aligned and not {count for _, count in self.frames} <= {0, len(self.words)}:
            raise ValueError("an aligned example has not as many frames as words")
        self.video: str = _typed(entry["video"], str) if "video" in entry else video_of(self.id)
        self.non_finite: dict[str, int] | None = _counts(entry["non_finite"]) if "non_finite" in entry else None
        self.tallies: dict[str, int] | None = _counts(entry["tallies"]) if "tallies" in entry else None
        self.parts: dict[str, int] | None = _counts(entry["parts"]) if "parts" in entry else None


def _parse(text: str) -> Any:
    value = json.loads(text)
    return json.loads(whole(json.dumps(value, ensure_ascii=False))) if _HALF.search(text) else value


def _typed(value: Any, *types: type) -> Any:
    if type(value) not in types:
        raise ValueError(f"expected {types[0].__name__}, found {type(value).__name__}")
    return value


def _count(value: Any) -> int:
    if _typed(value, int) < 0:
        raise ValueError(f"a number is {value}, less than 0")
    return value


def _counts(value: Any) -> dict[str, int]:
    return {key: _count(number) for key, number in _typed(value, dict).items()}


def _report(entry: dict[str, Any]) -> ReadReport:
    """The report of a manifest, whatever a stranger wrote into it.

    Raises:
        ValueError: Its parts are of another type.
    """
    report = ReadReport(**_typed(entry, dict))
    _typed(report.source, str)
    for note in _typed(report.notes, list):
        _typed(note, str)
    for counts in (report.counts, report.non_finite, report.dropped, report.widths, report.frames, report.tallies):
        _counts(counts)
    if not set(MODALITIES) >= report.widths.keys() >= report.frames.keys():
        raise ValueError("it has widths of what is no modality")
    return report


def _statistics(entry: Any, widths: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation by modality, where the training split has frames."""
    found = {}
    for modality, values in _typed(entry, dict).items():
        if not _count(values["frames"]):
            continue
        rows = []
        for name in ("mean", "std"):
            for value in _typed(values[name], list):
                _typed(value, float, int)
            row = np.array(values[name], dtype=np.float64)
            if row.shape != (widths[modality],) or not np.isfinite(row).all():
                raise ValueError(f"the {name} of {modality} is not {widths[modality]} numbers")
            rows.append(row)
        if (rows[1] < 0).any():
            raise ValueError(f"a standard deviation of {modality} is negative")
        found[modality] = (rows[0], rows[1])
    return found


class _Frames:
    """The frames of a modality, a read-only map of its file; none where it has no file."""

    def __init__(self, path: Path | None = None, width: int = 0, count: int = 0) -> None:
        self._all = np.zeros((0, width), dtype=np.float32)
        self._resident: Resident | None = None
        if path is None:
            return
        with safe_open(path, framework="np") as tensors:
            if list(tensors.keys()) != ["frames"]:
                raise ValueError(f"{path.name} does not hold frames alone")
            part = tensors.get_slice("frames")
            shape, kind = tuple(part.get_shape()), part.get_dtype()
        if shape != (count, width) or kind != "F32":
            raise ValueError(f"{path.name} holds {shape} of {kind}, expected {(count, width)} of F32")
        if count:
            with path.open("rb") as file:
                begin = 8 + int.from_bytes(file.read(8), "little")
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._resident = Resident(data)
            self._all = np.frombuffer(data, dtype="<f4", count=count * width, offset=begin).reshape(count, width)

    def __len__(self) -> int:
        return len(self._all)

    def rows(self, begin: int, count: int) -> np.ndarray:
        """Frames ``begin`` to ``begin + count``, read from disk when they are used."""
        found = self._all[begin : begin + count]
        if self._resident is not None:
            self._resident.see(found.nbytes)
        return found


def open_converted(request: DataRequest) -> Corpus:
    """A converted corpus; frames stay on disk until they are asked for.

    The folds of the request are a JSON file or folds that the source had; they replace the splits.

    Raises:
        DataError: The folder is damaged or of another version, there is no such fold, or the folds name none of its
            examples.
    """
    path, without = request.path, request.left_out("converted")
    try:
        manifest = _parse((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != VERSION:
            raise DataError(f"Convert {path} again: it has version {manifest['version']}, this is version {VERSION}.")
        name, standardise = _typed(manifest["name"], str), _typed(manifest["standardise"], bool)
        classes = manifest["classes"]
        if classes is not None:
            classes = tuple(_typed(one, str) for one in _typed(classes, list))
        report = _report(manifest["report"])
        widths = {modality: int(report.widths.get(modality, 0)) for modality in MODALITIES}
        frames = {
            modality: _Frames(path / f"{modality}.safetensors", width, report.frames.get(modality, 0))
            if width
            else _Frames()
            for modality, width in widths.items()
        }
        report.counts = {split: count for split, count in report.counts.items() if count}
        splits: dict[str, list[_Line]] = {split: [] for split in report.counts}
        ids: set[str] = set()
        everything: list[_Line] = []
        begins = dict.fromkeys(MODALITIES, 0)
        with (path / _EXAMPLES).open(encoding="utf-8") as lines:
            for text in lines:
                entry = _parse(text)
                line = _Line(entry, begins, None if classes is None else len(classes))
                if not request.labels:
                    line.label = None
                if line.id in ids:
                    raise ValueError(f"two examples are {line.id!r:.80}")
                ids.add(line.id)
                splits[entry["split"]].append(line)
                everything.append(line)
                for modality in MODALITIES:
                    begins[modality] += entry[modality]
        rotations = {
            found: [_count(part) for part in _typed(valid, list)]
            for found, valid in _typed(manifest.get("folds", {}), dict).items()
        }
        known = _statistics(manifest["statistics"], widths)
        statistics = {modality: found for modality, found in known.items() if modality not in without}
        counted = {split: len(lines) for split, lines in splits.items()}
        if counted != report.counts or any(begins[m] != report.frames.get(m, 0) for m in MODALITIES if widths[m]):
            raise ValueError("its parts do not fit one another")
        if not everything:
            raise ValueError("it has no examples")
    except (
        *(AttributeError, IndexError, KeyError, MemoryError, OSError, OverflowError, RecursionError),
        *(SafetensorError, TypeError, ValueError),
    ) as error:
        what = f"{type(error).__name__}: {error!s:.200}"
        raise DataError(f"Convert {path} again: it is damaged ({what}).") from error
    split_of = _splitter(request, rotations)
    if split_of is not None:
        splits = _resplit(path, everything, split_of, report)
    for modality in without:
        widths[modality], frames[modality] = 0, _Frames()
        for counts in (report.widths, report.frames, report.non_finite):
            counts.pop(modality, None)
        report.tallies = {what: n for what, n in report.tallies.items() if f" {modality} frame" not in what}
        report.note(f"left out: {modality}")
    return Corpus(
        name=name,
        splits={split: Mapped(lines, frames) for split, lines in splits.items()},
        visual_size=widths["visual"],
        acoustic_size=widths["acoustic"],
        report=report,
        classes=classes if request.labels else None,
        standardise=standardise,
        statistics=statistics if split_of is None else None,
    )


def _splitter(request: DataRequest, rotations: Mapping[str, Sequence[int]]) -> Callable[[_Line], str | None] | None:
    """How lines are split, as on the source: by its own folds or by a file; None where their own splits hold."""
    folds, fold = request.folds, request.fold
    if folds is None and fold is None:
        return None
    chosen = choose(rotations, folds)
    if chosen is not None:
        split = split_by_part(rotations[chosen], fold)
        return lambda line: split(line.parts.get(chosen) if line.parts else None)
    if folds is None or (folds in iemocap.ROTATIONS and not Path(folds).exists()):
        raise DataError(
            f"Give a JSON file of folds with --folds FILE, or convert the source again: no such folds of its own were "
            f"stored in {request.path}."
        )
    return read_folds(folds, fold).splitter


def _sum(counts: Iterable[dict[str, int] | None]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for what, n in (one or {}).items():
            total[what] = total.get(what, 0) + n
    return total


def _resplit(
    path: Path, everything: list[_Line], split_of: Callable[[_Line], str | None], report: ReadReport
) -> dict[str, list[_Line]]:
    again: dict[str, list[_Line]] = {}
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
    for k, modality in enumerate(MODALITIES):
        if modality in report.frames:
            report.frames[modality] = sum(line.frames[k][1] for line in kept)
    report.non_finite = _sum(line.non_finite for line in kept)
    report.tallies = _sum(line.tallies for line in kept)
    return {split: again[split] for split in report.counts}
