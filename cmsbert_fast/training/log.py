"""The log of a run: ``log.jsonl``, the trackers that its numbers also go to, and a table of its epochs."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cmsbert_fast.training.errors import UsageError, os_reason
from cmsbert_fast.training.settings import TrainingSettings
from cmsbert_fast.training.strict_json import finite
from cmsbert_fast.training.trackers import Trackers

LOG = "log.jsonl"


class RunLog:
    """``log.jsonl``, one JSON object per line, and the trackers of the settings.

    A resumed run's log is cut to its length at the checkpoint, so no step is logged twice; nor is one tracked twice.

    Args:
        folder: The folder of the run.
        length: Bytes of ``log.jsonl`` to keep (from :meth:`length` at the checkpoint).
        step: The step to continue from.
        settings: Name the trackers; None: there are none.

    Raises:
        UsageError: ``log.jsonl`` cannot be written, or a tracker cannot start.
    """

    def __init__(self, folder: Path, length: int = 0, step: int = 0, settings: TrainingSettings | None = None):
        try:
            self._file = open(folder / LOG, "a+b")  # noqa: SIM115 - lives as long as the run
            kept, before, cut = _lines(self._file, length)
        except OSError as error:
            raise _not_written(folder, error) from None
        # Before the log is cut: the trackers note what they have.
        self._trackers = None if settings is None else Trackers(settings, folder, step if kept else 0, before, cut)
        try:
            self._file.truncate(kept)
        except OSError as error:
            raise _not_written(folder, error) from None
        self._file.seek(0, os.SEEK_END)

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Appends one line. ``values`` must hold "step"; its numbers go to the trackers as ``event/name``."""
        line = json.dumps(finite({"event": event, **values}), allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        if self._trackers is not None:
            self._trackers.log(event, values)

    def length(self) -> int:
        """The length of ``log.jsonl`` in bytes, once all of it is on disk."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self, finished: bool = True) -> None:
        """Closes the file and ends the runs in the trackers; again: nothing."""
        self._file.close()
        if self._trackers is not None:
            self._trackers.close(finished)


def _lines(file: IO[bytes], length: int) -> tuple[int, int, int]:
    """What to keep of a log: ``length`` bytes, or less where the file was cut within a line before it: then up to where
    its last line ends. Also, how many lines these are, and how many follow.
    """
    file.seek(0)
    content = file.read()
    kept = length if len(content) >= length else content.rfind(b"\n") + 1
    lines = content.count(b"\n", 0, kept)
    return kept, lines, content.count(b"\n") - lines


def _not_written(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"{folder / LOG} cannot be written ({os_reason(error)}); free space, or choose another --output.")
