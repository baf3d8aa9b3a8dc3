"""Converting once: from whatever a source is to a form that opens at once (`cmsbert_fast.data.formats.converted`).

A new folder appears under its name only when it is complete; until then it is ``NAME.partial``. A conversion that was
broken off continues from the journal in it.
"""

import fcntl
import hashlib
import json
import math
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from cmsbert_fast import atomic
from cmsbert_fast.data.example import MODALITIES, DataError, Example
from cmsbert_fast.data.extraction import stored
from cmsbert_fast.data.folds import video_of
from cmsbert_fast.data.formats.converted import EXAMPLES, MANIFEST, VERSION, words_file
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.source import Counter, Source
from cmsbert_fast.data.statistics import Moments
from cmsbert_fast.data.text import printable
from cmsbert_fast.data.untrusted.files import open_regular, read_text
from cmsbert_fast.progress import Progress, tracked

_JOURNAL = "journal.json"
_DRAFTS = [atomic.draft_of(Path(name)).name for name in (_JOURNAL, MANIFEST)]
_FRAMES = {modality: f"{modality}.safetensors" for modality in MODALITIES}
_WORDS = {modality: words_file(modality) for modality in MODALITIES}
_OURS = {MANIFEST, EXAMPLES, _JOURNAL, *_DRAFTS, *_FRAMES.values(), *_WORDS.values()}
_LONGEST = 64 << 20  # bytes of a journal
_BLOCK = 1 << 22  # bytes hashed at a time
_HEADER = 512  # bytes of a safetensors header; JSON may be padded with spaces
_EVERY = 5.0  # seconds between two marks from which a conversion can continue


def source_hash(files: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of all files of a source."""
    total = hashlib.sha256()
    for file in sorted(files):
        digest = hashlib.sha256()
        with open_regular(file) as stream:
            size = file.stat().st_size
            with Progress(
                printable(f"hashing {file.name:.60}"), -(-size // _BLOCK), "blocks", delay=5, plain=False
            ) as progress:
                while block := stream.read(_BLOCK):
                    digest.update(block)
                    progress.advance()
        total.update(f"{file.name}\0{digest.hexdigest()}\n".encode())
    return total.hexdigest()


class _Writer:
    """The folder while it is written, group by group, and the journal from which it can continue."""

    def __init__(self, folder: Path, source: Source) -> None:
        self.folder = folder
        self.report = source.new_report()
        self.counter = Counter(self.report)
        self._budget = source.budget
        self.moments = {modality: Moments() for modality in MODALITIES}
        self.done = 0
        self.timed = False  # whether any example tells the words of its frames
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
        for name in (EXAMPLES, *_FRAMES.values(), *_WORDS.values()):
            path = folder / name
            path.touch()
            file = self.files[name] = path.open("r+b")
            begin = 0 if name == EXAMPLES else 8 + _HEADER
            file.truncate(max(begin, sizes.get(name, begin)))
            file.seek(0, os.SEEK_END)
        if journal is not None and journal["done"]:
            self._restore(journal)

    def _journal(self) -> dict[str, Any] | None:
        journal = _read_journal(self.folder)
        if journal is None or journal["version"] != VERSION or "timed" not in journal:
            return None
        return journal if journal["source"] == self._source else None

    def _restore(self, journal: dict[str, Any]) -> None:
        self.done, self.timed = journal["done"], journal["timed"]
        for name, value in journal["report"].items():
            setattr(self.report, name, value)
        self.moments = {modality: Moments(journal["moments"][modality]) for modality in MODALITIES}
        with (self.folder / EXAMPLES).open(encoding="utf-8") as lines:
            for line in map(json.loads, lines):
                self.counter.ids.add(line["id"])
                self.counter.videos.add(line.get("video", video_of(line["id"])))
        if self._budget is not None:
            self._budget.left = journal["left"]
        self._before = dict(self.report.non_finite), dict(self.report.tallies)

    def write(self, split: str, example: Example, video: str | None) -> None:
        """Append an example; ``video`` is its video where that is known."""
        self.counter.see(split, example, video)
        now = dict(self.report.non_finite), dict(self.report.tallies)
        altered, tallies = (
            {what: n - before.get(what, 0) for what, n in after.items() if n != before.get(what, 0)}
            for after, before in zip(now, self._before, strict=True)
        )
        self._before = now
        line: dict[str, Any] = {"id": example.id, "split": split, "label": example.label, "words": example.words}
        line["alignment"] = example.alignment.value
        if example.frame_words is not None:
            line["timed"] = self.timed = True
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
            line.setdefault("crc32", {})[modality] = zlib.crc32(frames.data)
            self.files[_FRAMES[modality]].write(frames.tobytes())
            if example.frame_words is None:
                words = np.full(len(frames), -1, dtype="<i4")
            else:
                words = np.ascontiguousarray(getattr(example.frame_words, modality), dtype="<i4")
            self.files[_WORDS[modality]].write(words.tobytes())
            if split == "train":
                self.moments[modality].see(frames)
        self.files[EXAMPLES].write(json.dumps(line).encode() + b"\n")

    def mark(self) -> None:
        """Make everything written so far the point from which to continue."""
        self._sync_files()
        self._note({name: file.tell() for name, file in self.files.items()})

    def _sync_files(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())

    def _note(self, sizes: dict[str, int]) -> None:
        journal = {
            "version": VERSION,
            "source": self._source,
            "done": self.done,
            "timed": self.timed,
            "sizes": sizes,
            "report": asdict(self.report),
            "moments": {modality: moments.state() for modality, moments in self.moments.items()},
            "left": None if self._budget is None else self._budget.left,
        }
        atomic.replace_file(self.folder / _JOURNAL, lambda path: path.write_text(json.dumps(journal), encoding="utf-8"))

    def finish(self, source: Source) -> None:
        """Write headers and manifest; all that is left is the folder's name."""
        self.counter.finish(source)
        for modality in MODALITIES:
            width, count = self.report.widths.get(modality, 0), self.report.frames.get(modality, 0)
            self._finish_file(_FRAMES[modality], ("frames", "F32", [count, width]), bool(width))
            self._finish_file(_WORDS[modality], ("words", "I32", [count]), bool(width) and self.timed)
        self._sync_files()
        for file in self.files.values():
            file.close()
        manifest = {
            "version": VERSION,
            "name": source.name,
            "classes": source.classes,
            "several": source.several,
            "standardise": True,  # no format says otherwise yet
            "timed": self.timed,
            "report": asdict(self.report),
            "extraction": stored(source.extraction),
            "folds": {name: list(rotation.valid) for name, rotation in source.rotations.items()},
            "statistics": {modality: _statistics(self.moments[modality]) for modality in self.report.widths},
            "source": {
                "format": source.format,
                "files": [f.name for f in source.files],
                "sha256": source_hash(source.files),
            },
        }
        text = json.dumps(manifest, indent=1)
        atomic.replace_file(self.folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))

    def _finish_file(self, name: str, tensor: tuple[str, str, list[int]], needed: bool) -> None:
        """Writes the header of a tensor of 4-byte numbers (name, dtype, shape), or removes its file."""
        if not needed:
            self.files.pop(name).close()
            (self.folder / name).unlink()
            return
        what, kind, shape = tensor
        header = {what: {"dtype": kind, "shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}}
        self.files[name].seek(0)
        self.files[name].write(_HEADER.to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER))

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        os.close(self._lock)  # which also lifts the lock


def _statistics(moments: Moments) -> dict[str, Any]:
    return {"frames": moments.count, "mean": moments.mean.tolist(), "std": moments.std.tolist()}


def _choices(source: Source) -> dict[str, Any]:
    """What the source was opened with, as JSON gives it back."""
    return {} if source.request is None else json.loads(json.dumps(source.request.choices()))


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
        journal = json.loads(read_text(folder / _JOURNAL, _LONGEST))
    except (OSError, ValueError, RecursionError):
        return None
    needed = {"version", "source", "done", "sizes", "report", "moments", "left"}
    return journal if isinstance(journal, dict) and needed <= journal.keys() else None


def _clear(folder: Path) -> None:
    """Empty a folder in which a conversion was broken off.

    Raises:
        DataError: It holds what no conversion wrote.
    """
    names = {path.name for path in folder.iterdir()}
    if not (names <= set(_DRAFTS) or (names <= _OURS and _read_journal(folder) is not None)):
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
        title = printable(f"converting {source.name:.60}")
        for group in tracked(source.groups[writer.done :], title, "groups", done=writer.done, plain=False):
            for split, example in source.read(group, writer.report):
                writer.write(split, example, group if source.by_video else None)
            writer.done += 1
            if time.monotonic() - marked > _EVERY:
                writer.mark()
                marked = time.monotonic()
        writer.finish(source)
        partial.rename(target)
        (target / _JOURNAL).unlink(missing_ok=True)
        atomic.sync(target)
        atomic.sync(target.parent)
    finally:
        writer.close()
    return writer.report
