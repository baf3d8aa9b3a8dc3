"""The folders of a command and its runs."""

import re
from contextlib import ExitStack
from pathlib import Path

from cmsbert_fast.training import distributed
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.errors import UsageError, os_reason
from cmsbert_fast.training.lock import locked
from cmsbert_fast.training.log import LOG
from cmsbert_fast.training.settings import TrainingSettings


def run_name(settings: TrainingSettings) -> Path:
    """The folder of a run, below that of its command."""
    number = f"seed-{settings.seed}" if settings.fold is None else f"fold-{settings.fold}-seed-{settings.seed}"
    return Path(settings.variant.replace("/", "-")) / number


def output_folder(given: Path | None, name: str, *, resume: bool, restarted: bool = False) -> Path:
    """The folder for a command's runs: ``given``, or a new one under ``runs`` named after the data.

    With ``resume``, or after a restart by ``torchrun``, the newest of those is used instead.

    Raises:
        UsageError: It already holds a run, there is none to resume, or it cannot be created.
    """
    name = re.sub(r"[^\w.-]+", "-", name).lstrip(".")[:100] or "data"  # ".." would lie beside runs
    if given is None:
        numbers = [1]
        for path in Path("runs").glob(f"{name}*"):
            if match := re.fullmatch(re.escape(name) + r"(?:-(\d+))?", path.name):
                numbers.append(int(match.group(1) or 1) + 1)
        last = max(numbers)
        if resume and last == 1:
            raise UsageError(f"There is no run of {name} to resume under runs; name its folder with --output.")
        if not (resume or (restarted and last > 1)):
            return _new_folder(name, last)
        last -= 1
        given = Path("runs") / (name if last == 1 else f"{name}-{last}")
    else:
        try:
            if resume and not restarted and not given.is_dir():
                raise UsageError(f"There is no folder {given} to resume; name the folder of the run with --output.")
            held = not (resume or restarted) and any(given.glob(f"*/*/{LOG}"))
        except (OSError, ValueError) as error:
            raise _unusable(given, error) from None
        if held:
            raise UsageError(f"{given} already holds a run; continue it with --resume, or choose another --output.")
    make_folder(given)
    return given


def _new_folder(name: str, number: int) -> Path:
    """Creates the first folder of a name, numbered from ``number`` on, that no other process has created."""
    make_folder(Path("runs"))
    while True:
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
        except (OSError, ValueError) as error:
            raise _unusable(folder, error) from None


def take_folder(folder: Path, locks: ExitStack, fresh: bool) -> None:
    """Creates the folder of a run and locks it.

    Args:
        folder: The folder.
        locks: Holds the lock.
        fresh: Whether there must be no run in it yet.

    Raises:
        UsageError: It cannot be created, another process trains in it, or one has meanwhile.
    """
    make_folder(folder)
    locks.enter_context(locked(folder))
    if (folder / LOG).exists() and not (folder / LOG).is_file():
        raise UsageError(f"{folder / LOG} is no file; remove it, or choose another --output.")
    if fresh and (folder / LOG).exists():
        raise UsageError(f"{folder} already holds a run; continue it with --resume, or choose another --output.")


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents.

    Raises:
        UsageError: It cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise _unusable(folder, error) from None


def _unusable(folder: Path, error: Exception) -> UsageError:
    name = str(folder) if str(folder).isprintable() else repr(str(folder))
    return UsageError(f"The folder {name:.200} cannot be created ({os_reason(error)}); choose another --output.")


def make_shared_folder(folder: Path, ranks: Ranks) -> None:
    """Creates a folder that every rank must see.

    Raises:
        UsageError: It cannot be created, or not every machine sees it.
    """
    distributed.from_main(lambda: make_folder(folder), ranks)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not visible on every machine; choose an --output on a shared disk.")
