"""Splits and folds: which videos or utterances belong to which split."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.text import whole
from cmsbert_fast.data.untrusted.files import read_text

ALL = "all"  # the split of a source without splits: enough for prediction
NO_FOLD = "the folds name neither it nor its video"
COLUMN = "fold"  # the rotation of a table's own column
NAMED = ("speaker", "random")  # the rotations of IEMOCAP, the default first; --folds takes these names too
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NAMED_IDS = 5  # of those that name no example
_LARGEST = 8 << 20  # bytes of a file of folds: hundreds of thousands of ids
_NUMBERED = re.compile(r"(.+?)(?:\$_\$|_|\[|-)\d+\]?", re.DOTALL)


def split_name(name: str) -> str:
    """The project's name of a split ("dev" is "valid"); other names stay as they are."""
    return _SPLIT_NAMES.get(name.strip().lower(), whole(name.strip()))


def video_of(segment: str) -> str:
    """The video of a segment id: ``video_3``, ``video[3]``, ``video$_$3`` and ``video-3`` are segments of ``video``."""
    match = _NUMBERED.fullmatch(segment)
    return match.group(1) if match else segment


class Folds:
    """Splits by video or utterance id.

    Args:
        splits: Ids by split; a video id covers all its segments.
    """

    def __init__(self, splits: Mapping[str, Sequence[str]]) -> None:
        self._split: dict[str, str] = {}
        for name, ids in splits.items():
            for key in ids:
                if self._split.setdefault(key, split_name(name)) != split_name(name):
                    raise DataError(f"Put {key!r} into one split only: the folds name it twice.")

    @property
    def ids(self) -> frozenset[str]:
        """All ids that are named."""
        return frozenset(self._split)

    def splitter(self, segment: Any) -> str | None:
        """The split of anything that has an ``id`` and a ``video``."""
        return self.split_of(segment.id, segment.video)

    def split_of(self, segment: str, video: str) -> str | None:
        """The split of a segment, by its own id, else by that of its video; None where the folds name neither."""
        return self._split.get(segment) or self._split.get(video)


def absent_note(ids: frozenset[str], found: Collection[str], file: str) -> list[str]:
    """What to say of the ids of a file of folds that name no example: a sentence, or none.

    Args:
        ids: Those of the file.
        found: Ids and videos of all examples.
        file: Its name.
    """
    absent = sorted(ids.difference(found))
    if not absent:
        return []
    named = ", ".join(name[:60] for name in absent[:_NAMED_IDS]) + (", ..." if len(absent) > _NAMED_IDS else "")
    return [f"{len(absent)} of {len(ids)} ids of {file} name no example: {named}"]


def folds_of(request: DataRequest) -> Folds | None:
    """The folds that a request names, for sources without folds of their own; None where it names none.

    Raises:
        DataError: They cannot be read, or only the number of a fold was given.
    """
    if request.folds is not None:
        return read_folds(request.folds, request.fold)
    if request.fold is not None:
        raise DataError("Give the folds as a JSON file with --folds FILE.")
    return None


def read_folds(path: str | Path, fold: int | None = None) -> Folds:
    """Folds from a JSON file: ``{"train": [ids], "valid": [ids], "test": [ids]}``, or a list of such for several folds.

    Raises:
        DataError: The file is missing or not of this form, or ``fold`` (counted from 1) is not in it.
    """
    path = Path(path)
    try:
        content = json.loads(read_text(path, _LARGEST), object_pairs_hook=_once)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"Give --folds a JSON file of ids by split: {path} cannot be read ({error}).") from error
    if isinstance(content, list):
        if fold is None or not 1 <= fold <= len(content):
            raise DataError(f"Choose one of the {len(content)} folds of {path.name} with --fold 1 to {len(content)}.")
        content = content[fold - 1]
    elif fold is not None:
        raise DataError(f"Leave out --fold: {path.name} holds one set of splits only.")
    if not isinstance(content, dict) or not all(
        isinstance(ids, list) and all(isinstance(key, str) for key in ids) for ids in content.values()
    ):
        raise DataError(f'Write {path.name} as {{"train": [ids], "valid": [ids], "test": [ids]}}.')
    return Folds(content)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; Python would keep the last of two splits of one name, and drop the ids of the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a split is named twice")
    return found


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cross-validation: in every fold one part tests, one validates, the others train.

    Attributes:
        part_of: The part of an utterance, counted from 0, by its id. An utterance without a part is in no fold.
        valid: For each fold, the part that validates; part k tests in fold k + 1.
    """

    part_of: Mapping[str, int]
    valid: Sequence[int]

    def splitter(self, fold: int | None) -> Callable[[Any], str | None]:
        """A function from anything with an ``id`` to its split.

        Raises:
            DataError: There is no such fold.
        """
        split = split_by_part(self.valid, fold)
        return lambda item: split(self.part_of.get(item.id))


def split_by_part(valid: Sequence[int], fold: int | None) -> Callable[[int | None], str | None]:
    """A function from a part to its split in a fold (counted from 1); None stays None.

    Raises:
        DataError: There is no such fold.
    """
    if fold is None or not 1 <= fold <= len(valid):
        raise DataError(f"Choose a fold from 1 to {len(valid)} with --fold.")
    splits = {valid[fold - 1]: "valid", fold - 1: "test"}
    return lambda part: None if part is None else splits.get(part, "train")


def choose(rotations: Mapping[str, Any], folds: str | None) -> str | None:
    """The name of the rotation that is meant: the first, or the one that ``folds`` names; None where it names none."""
    if folds is None:
        return next(iter(rotations), None)
    return folds if folds in rotations and folds != COLUMN else None
