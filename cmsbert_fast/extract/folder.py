"""The folder of extracted features: what the reader of tables of segments takes, and what is known of each video.

segments.tsv        id, video, start, stop, text; columns that a user added stay with their texts
words.csd           the words with their times (``--words words``)
face/ID.csv         measures of the face
voice/ID.csv        the voice
extraction.json     fingerprint, versions, columns with units, and the outcome of each video
parts/ID.json       what came of a video; written last, so that an interrupted one is done again
"""

import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cmsbert_fast.atomic import link, replace_file
from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.extraction import FILE as MANIFEST
from cmsbert_fast.extract.added import Added

TABLE, WORDS, PARTS = "segments.tsv", "words.csd", "parts"
COLUMNS = ("id", "video", "start", "stop", "text")
_LONGEST = 200  # bytes of a word in words.csd


def fingerprint_of(columns: Mapping[str, Sequence[str]], extractors: Mapping[str, Any]) -> str:
    """A digest of all that decides what the numbers mean; equal for folders that one model may read."""
    content = json.dumps({"columns": columns, "extractors": extractors}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class Folder:
    """The folder that a command writes.

    Attributes:
        unreadable: Videos of earlier commands whose part cannot be read: they have no rows in the table.
        cut_words: How many are longer than the table of words takes.

    Raises:
        DataError: It holds something else, or features of another fingerprint, or cannot be written.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.unreadable: list[str] = []
        self.cut_words = 0
        try:
            (path / PARTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"Choose another --output: {path} cannot be written ({error.strerror}).") from error
        manifest = path / MANIFEST
        if manifest.exists():
            found = _json(manifest).get("fingerprint")
            if found != fingerprint:
                raise DataError(
                    f"Choose another --output: {path} holds features of other extractors or options, whose numbers do "
                    f"not compare (fingerprint {str(found)[:12]}, now {fingerprint[:12]})."
                )
        elif (path / TABLE).exists():
            raise DataError(f"Choose another --output: {path} holds a {TABLE} that was not extracted.")
        Added(path / TABLE, COLUMNS)  # a table that cannot be read is found before any work

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other commands out; the system releases the lock when the process ends."""
        with open(self.path / ".lock", "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"Wait, or choose another --output: another command extracts to {self.path}.") from None
            except OSError:  # a file system without locks
                pass
            yield

    def part(self, video: str) -> dict[str, Any]:
        """What is kept of a video; empty where there is nothing."""
        path = self.path / PARTS / f"{video}.json"
        if not path.exists():
            return {}
        try:
            found = _json(path)
        except DataError:
            found = {}
        if _is_part(found):
            return found
        if video not in self.unreadable:
            self.unreadable.append(video)
        return {}

    def keep(self, video: str, part: Mapping[str, Any]) -> None:
        """Keeps what came of a video."""
        content = json.dumps(part)  # ASCII: a file may be called what is no UTF-8
        replace_file(self.path / PARTS / f"{video}.json", lambda draft: draft.write_text(content, encoding="utf-8"))

    def finish(self, about: Mapping[str, Any]) -> Path | None:
        """Writes the table, the words and the manifest from the parts of all videos, also of earlier commands.

        Returns:
            A copy of the table as it was, if cells that a user added belong to no segment any more.
        """
        self.unreadable = []
        names = sorted(videos_of(self.path))
        copy = self._write_table(names)
        self._write_words(names)
        videos = {}
        for name in names:
            part = self.part(name)
            if not part:
                continue
            videos[name] = {key: value for key, value in part.items() if key not in ("segments", "key")}
            videos[name]["segments"] = len(part["segments"])
        content = json.dumps({**about, "videos": videos}, indent=1)
        replace_file(self.path / MANIFEST, lambda draft: draft.write_text(content, encoding="utf-8"))
        return copy

    def _write_table(self, names: Sequence[str]) -> Path | None:
        table = self.path / TABLE
        added = Added(table, COLUMNS)

        def write(draft: Path) -> None:
            with open(draft, "w", encoding="utf-8", newline="") as file:
                file.write("\t".join([*COLUMNS, *added.columns]) + "\n")
                for name in names:
                    segments = self.part(name).get("segments", ())
                    own = added.cells(name, [segment["text"] for segment in segments])
                    for k, (segment, cells) in enumerate(zip(segments, own, strict=True)):
                        times = f"{segment['start']:.3f}", f"{segment['stop']:.3f}"
                        file.write("\t".join([f"{name}_{k}", name, *times, segment["text"], *cells]) + "\n")
            if added.lost:
                link(table, copy)

        numbers = (self.path / f"{TABLE}.{number}.bak" for number in itertools.count(1))
        copy = next(path for path in numbers if not path.exists())
        replace_file(table, write)
        return copy if added.lost else None

    def _write_words(self, names: Sequence[str]) -> None:
        spoken = False

        def write(draft: Path) -> None:
            nonlocal spoken
            self.cut_words = 0
            with h5py.File(draft, "w") as file:
                data = file.create_group("words/data")
                for name in names:
                    words = [word for segment in self.part(name).get("segments", ()) for word in segment["words"]]
                    if words:
                        spoken = True
                        entry = data.create_group(name)
                        texts = [_shortened(word[0]) for word in words]
                        self.cut_words += sum(text != word[0].encode() for text, word in zip(texts, words, strict=True))
                        entry["features"] = np.array(texts, dtype="S")[:, None]
                        entry["intervals"] = np.array([word[1:] for word in words], dtype=np.float64)

        replace_file(self.path / WORDS, write)
        if not spoken:
            (self.path / WORDS).unlink()


def _is_part(found: Mapping[str, Any]) -> bool:
    """Whether it is what :meth:`Folder.keep` is given, as far as it is read."""
    segments = found.get("segments")
    if type(found.get("file")) is not str or type(segments) is not list:
        return False
    return all(type(segment) is dict and {"text", "start", "stop", "words"} <= segment.keys() for segment in segments)


def _shortened(word: str) -> bytes:
    """A word of at most as many bytes as a cell has, of whole characters."""
    return word.encode()[:_LONGEST].decode(errors="ignore").encode()


def videos_of(folder: Path) -> set[str]:
    """The ids of the videos of which something is kept in a folder."""
    return {path.stem for path in (folder / PARTS).glob("*.json")}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
        return found
    except (OSError, ValueError) as error:
        raise DataError(f"Remove {path}, or its folder: it cannot be read ({error}).") from error


def size_and_time(path: Path) -> tuple[int, int]:
    """By which a file is recognised as unchanged."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
