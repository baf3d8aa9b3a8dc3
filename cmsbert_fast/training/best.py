"""The best model of a run so far, and the one before it, for when a disk damages the best.

Both are whole Hugging Face checkpoints. ``best-before`` takes as much room as ``best``; files that did not change
between the two are kept once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from transformers.utils import SAFE_WEIGHTS_NAME

from cmsbert_fast import atomic
from cmsbert_fast.training import checksums

BEST = "best"
BEFORE = "best-before"
CHECKSUMS = "CHECKSUMS.json"  # of its weights; in capitals, so that it is replaced before them


class Best(NamedTuple):
    """The best model that there is.

    Attributes:
        folder: Its folder.
        epoch: Its epoch, from 1; None where that is not known.
        lost: Where the best is damaged and this is the one before, a sentence about that.
    """

    folder: Path
    epoch: int | None = None
    lost: str | None = None


def save(run: Path, epoch: int, write: Callable[[Path], None]) -> None:
    """Replaces the best model of the run in a folder; the present one becomes the one before.

    Args:
        run: The folder.
        epoch: The epoch of the new one.
        write: Writes it into a folder.
    """
    best = run / BEST

    def write_all(draft: Path) -> None:
        write(draft)
        text = checksums.text(draft / SAFE_WEIGHTS_NAME, best / CHECKSUMS, epoch)
        (draft / CHECKSUMS).write_text(text, encoding="utf-8")

    if best.is_dir():
        atomic.replace_folder(run / BEFORE, lambda draft: _link_all(best, draft))
    atomic.replace_folder(best, write_all)


def find(run: Path) -> Best:
    """The best model of the run in a folder: the one before where the best is damaged and that is not."""
    fault, epoch = _examined(run / BEST)
    if fault is None:
        return Best(run / BEST, epoch)
    fault_before, before = _examined(run / BEFORE)
    if fault_before is not None:
        return Best(run / BEST)
    lost = f"{run / BEST} is damaged ({fault}): the best model is lost. In its place is the best before it"
    lost += f", of epoch {before}" if before is not None else ""
    return Best(run / BEFORE, before, f"{lost} ({run / BEFORE}).")


def _examined(folder: Path) -> tuple[str | None, int | None]:
    """What is wrong with the weights in a folder, None where nothing is known to be; and their epoch, if known."""
    weights, sums = folder / SAFE_WEIGHTS_NAME, folder / CHECKSUMS
    if not weights.is_file():
        return f"it has no {SAFE_WEIGHTS_NAME}", None
    known = checksums.known(sums)
    if not known:
        return None, None
    found = checksums.digest(weights)
    return None if found in known else "the checksum of its weights is another", checksums.epochs(sums).get(found)


def _link_all(folder: Path, draft: Path) -> None:
    """Gives all files of a folder names in another."""
    for path in folder.rglob("*"):
        if path.is_file():
            (draft / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            atomic.link(path, draft / path.relative_to(folder))
