"""What ``extraction.json`` says of features that `cmsbert_fast.extract` made: the command, versions and columns.

The file lies beside a table of segments, and is as untrusted as the rest of the folder. Features of another fingerprint
have another meaning, even where their sizes agree.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cmsbert_fast.data.example import MODALITIES, DataError, Extraction
from cmsbert_fast.data.untrusted.files import read_text

FILE = "extraction.json"
STREAMS = {"visual": "face", "acoustic": "voice"}  # the folders that the extractor writes
_LARGEST = 16 << 20  # bytes: it has a line for each video
_COLUMNS = 10_000
_FINGERPRINT = re.compile("[0-9a-f]{8,128}")


def read_extraction(folder: Path) -> dict[str, Extraction]:
    """The extraction of a folder, by modality; empty where the folder has no ``extraction.json``.

    Raises:
        DataError: The file is damaged.
    """
    if not (folder / FILE).exists():
        return {}
    with _reading(folder) as found:
        return {
            modality: checked(
                {
                    "fingerprint": found["fingerprint"],
                    "columns": columns,
                    "units": [found["units"][modality].get(column, "") for column in columns],
                }
            )
            for modality, columns in found["columns"].items()
            if modality in MODALITIES and columns
        }


def recordings(folder: Path) -> dict[str, Path]:
    """The recordings that a folder was extracted from, by the name that they have in it.

    Those that are still where they were, or beside the folder.

    Raises:
        DataError: ``extraction.json`` is damaged.
    """
    if not (folder / FILE).is_file():
        return {}
    with _reading(folder) as content:
        files = {name: folder / video["file"] for name, video in content.get("videos", {}).items()}
        places = {name: (file, folder.parent / file.name) for name, file in files.items()}
        found = {name: next((p for p in both if p.is_file()), None) for name, both in places.items()}
        return {name: file for name, file in found.items() if file is not None}


@contextmanager
def _reading(folder: Path) -> Iterator[Any]:
    """The content of ``extraction.json``; what goes wrong while it is used is its damage."""
    try:
        yield json.loads(read_text(folder / FILE, _LARGEST))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error!s:.200}"
        raise DataError(
            f"Extract the videos of {folder} again, or remove {FILE} if its features are no longer the extractor's: "
            f"{FILE} is damaged ({what})."
        ) from error


def checked(entry: Any) -> Extraction:
    """An entry as :func:`stored` makes it.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(entry, dict) or not {"fingerprint", "columns", "units"} <= entry.keys():
        raise ValueError("it lacks a fingerprint, columns or units")
    fingerprint, names, units = entry["fingerprint"], entry["columns"], entry["units"]
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        raise ValueError(f"the fingerprint is {fingerprint!r:.80}")
    for texts in (names, units):
        if not isinstance(texts, list) or len(texts) > _COLUMNS or not all(isinstance(text, str) for text in texts):
            raise ValueError("columns and units are lists of texts")
    if len(names) != len(units):
        raise ValueError(f"it has {len(names)} columns and {len(units)} units")
    return Extraction(fingerprint, tuple(names), tuple(units))


def stored(extraction: Mapping[str, Extraction]) -> dict[str, Any]:
    """As JSON holds it."""
    return {modality: one._asdict() for modality, one in extraction.items()}


class Named(Protocol):
    """A stream whose features have names."""

    name: str

    @property
    def columns(self) -> tuple[str, ...]: ...


def extraction_of(folder: Path, streams: Mapping[str, Sequence[Named]]) -> dict[str, Extraction]:
    """The extraction of the streams that are read, by modality; those of other origin are left out.

    Where only some columns are read (``--columns``), the fingerprint is of these.

    Args:
        folder: Of the streams.
        streams: The streams of each modality, with the names of those that were read.

    Raises:
        DataError: ``extraction.json`` is damaged, or the features are not those that it names.
    """
    found = {}
    for modality, one in read_extraction(folder).items():
        own = streams.get(modality, ())
        if [stream.name for stream in own] == [STREAMS[modality]]:
            found[modality] = _of_columns(one, own[0].columns, folder, STREAMS[modality])
    return found


def _of_columns(one: Extraction, names: tuple[str, ...], folder: Path, stream: str) -> Extraction:
    if not names or names == one.columns:
        return one
    strange = [name for name in names if name not in one.columns]
    if strange:
        raise DataError(
            f"Extract the videos of {folder} again: {stream} has a feature {strange[0]!r}, which {FILE} does not name."
        )
    digest = hashlib.sha256(json.dumps([one.fingerprint, *names]).encode()).hexdigest()
    unit = dict(zip(one.columns, one.units, strict=True))
    return Extraction(digest, names, tuple(unit[name] for name in names))
