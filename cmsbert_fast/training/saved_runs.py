"""The settings of runs in their folders, so that ``--resume FOLDER`` needs no others."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cmsbert_fast.training import checkpoint, report, strict_json
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.folders import run_name
from cmsbert_fast.training.settings import TrainingSettings, settings_from

FILE_NAME = "settings.json"


class SavedRuns(NamedTuple):
    """The runs of a folder.

    Attributes:
        root: The folder of their command.
        runs: Their settings.
    """

    root: Path
    runs: tuple[TrainingSettings, ...]


def save_settings(settings: TrainingSettings, folder: Path, fresh: bool) -> None:
    """Writes the settings of a run; those of a run that is resumed stay as they were."""
    if fresh or not (folder / FILE_NAME).exists():
        strict_json.write_json(folder / FILE_NAME, dataclasses.asdict(settings))


def saved_runs(folder: Path, changes: Mapping[str, Any]) -> SavedRuns:
    """The runs in a folder, in the order of their names.

    Args:
        folder: The folder of a command, or of one of its runs.
        changes: Settings that replace theirs.

    Raises:
        UsageError: There is no run, or its settings are damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder} to resume; name the folder of the run.")
    own = _settings(folder, changes) is not None
    root = folder.resolve().parents[1] if own else folder
    runs = []
    for run in [folder.resolve()] if own else sorted(folder.glob("*/*")):
        settings = _settings(run, changes)
        if settings is not None and root / run_name(settings) != run:
            raise UsageError(f"{run} was moved: its run belongs into {run_name(settings)} of a folder; put it there.")
        runs += [settings] if settings is not None else []
    if not runs:
        raise UsageError(f"There is no run in {folder} to resume; name the folder of the run.")
    return SavedRuns(root, tuple(runs))


def _settings(folder: Path, changes: Mapping[str, Any]) -> TrainingSettings | None:
    """The settings of the run in a folder; None if there is none."""
    values: Any = None
    if (folder / FILE_NAME).is_file():
        values = strict_json.read_object(folder / FILE_NAME, "remove it and resume with the settings of the run")
    elif (folder / report.RESULTS).is_file():  # of a version that did not save the settings
        values = (report.read_results(folder) or {})["settings"]
    elif (folder / checkpoint.FILE_NAME).is_file():
        values = (checkpoint.load(folder) or {})["settings"]
    return None if values is None else settings_from({**values, **changes})
