"""The log of a run: ``log.jsonl``, and TensorBoard's event files."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cmsbert_fast.training.errors import UsageError, os_reason
from cmsbert_fast.training.strict_json import finite

LOG = "log.jsonl"


class RunLog:
    """``log.jsonl``, one JSON object per line, and TensorBoard event files if tensorboard is installed.

    A resumed run's log is cut to its length at the checkpoint, so no step is logged twice.

    Args:
        folder: The folder of the run.
        length: Bytes of ``log.jsonl`` to keep (from :meth:`length` at the checkpoint).
        step: The step to continue from; TensorBoard hides what was logged after it. If nothing is kept, earlier
            TensorBoard files are removed.

    Raises:
        UsageError: ``log.jsonl`` cannot be written.
    """

    def __init__(self, folder: Path, length: int = 0, step: int = 0):
        try:
            self._file = open(folder / LOG, "a+b")  # noqa: SIM115 - lives as long as the run
            self._file.truncate(_whole_lines(self._file, length))
        except OSError as error:
            raise UsageError(f"{folder / LOG} cannot be written ({os_reason(error)}); remove it.") from None
        self._file.seek(0, os.SEEK_END)
        if self._file.tell() == 0:
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self._board = _summary_writer(folder / "tensorboard", step)

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Appends one line. ``values`` must hold "step"; its numbers go to TensorBoard as ``event/name``."""
        line = json.dumps(finite({"event": event, **values}), allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if name not in ("step", "epoch") and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{event}/{name}", value, values["step"])

    def length(self) -> int:
        """The length of ``log.jsonl`` in bytes, once all of it is on disk."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _whole_lines(file: IO[bytes], length: int) -> int:
    """``length``, or less where the file was cut within a line before it: then where its last line ends."""
    file.seek(0)
    kept = file.read(length)
    return length if len(kept) == length else kept.rfind(b"\n") + 1


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an optional extra
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
