"""Trackers of experiments that a run's numbers go to besides its log: TensorBoard, Weights & Biases, MLflow.

Through each tracker's own client. accelerate's wrappers of the same clients do more than is wanted here: making their
state may set the number of threads of a process, which is part of a run's result, and pick its GPU.
"""

import dataclasses
import json
import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TRACKERS, TrainingSettings
from cmsbert_fast.training.strict_json import write_json

FILE_NAME = "trackers.json"  # in a run's folder: what its runs are called in the trackers, and what these have
PROJECT = "cmsbert"


class _Known(NamedTuple):
    """A run in a tracker: its name there, and how many records of the log it has or had, from the first."""

    id: str
    sent: int


class Tracker(Protocol):
    """A run in a tracker.

    Attributes:
        id: Its name there, by which it can be continued; None: it is in the run's folder.
    """

    id: str | None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve."""

    def close(self, finished: bool) -> None:
        """Ends the run, or the part of it that this process did."""


class _TensorBoard:
    """Event files in the run's folder; what was written after ``step`` is hidden."""

    id: str | None = None

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, finished: bool) -> None:
        self._writer.close()


class _WandB:
    """A run of the project WANDB_PROJECT (cmsbert); WANDB_MODE=offline works without network or account."""

    def __init__(self, settings: TrainingSettings, folder: Path, id: str | None) -> None:
        import wandb

        self.id: str | None = id or secrets.token_hex(4)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=_name(settings),
            id=self.id,
            resume="allow" if id else None,
            dir=str(folder),
            config=None if id else dataclasses.asdict(settings),
            settings=wandb.Settings(console="off", silent=True),
        )
        # W&B's own count of steps only grows, and what a resumed run repeats would be dropped.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _MLflow:
    """A run of the experiment MLFLOW_EXPERIMENT_NAME (cmsbert) at MLFLOW_TRACKING_URI, by default a local database."""

    def __init__(self, settings: TrainingSettings, id: str | None) -> None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, MlflowClient()
        if id is not None:
            self.id: str | None = id
            self._run_id = id
            self._client.update_run(id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        try:
            experiment = self._client.create_experiment(name)
        except Exception:  # it exists, perhaps since a moment ago
            known = self._client.get_experiment_by_name(name)
            if known is None:
                raise
            experiment = known.experiment_id
        self.id = self._run_id = self._client.create_run(experiment, run_name=_name(settings)).info.run_id
        params = [Param(key, str(value)) for key, value in dataclasses.asdict(settings).items()]
        self._client.log_batch(self._run_id, params=params)

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, metrics=[self._metric(k, v, now, step) for k, v in values.items()])

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "KILLED")


def check_trackers(names: Sequence[str]) -> None:
    """Finds trackers that are not installed.

    Raises:
        UsageError: One; the message has the command that installs it.
    """
    for name in names:
        if name in TRACKERS:
            found = find_spec(name)
            if found is None or found.origin is None:  # a folder of that name in the current one is no package
                raise UsageError(
                    f"--track {name} needs a package that is missing; install it with: pip install "
                    f"'cmsbert-fast[{name}]'."
                )


class Trackers:
    """The trackers of a run. One that fails is left out from then on, with a warning: it must not end the run.

    Args:
        settings: Of the run; ``settings.track`` names the trackers.
        folder: Its folder.
        step: The step to continue from; 0: a new run, which starts new runs in the trackers.
        kept: How many records of the log the run continues behind.
        cut: How many records of the log followed these. They are logged again, and are in the trackers already.

    Raises:
        UsageError: One cannot start.
    """

    def __init__(self, settings: TrainingSettings, folder: Path, step: int = 0, kept: int = 0, cut: int = 0) -> None:
        self._open: dict[str, Tracker] = {}
        self._skip: dict[str, int] = {}
        if not step:
            (folder / FILE_NAME).unlink(missing_ok=True)
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        known = _read_known(folder)
        for name in settings.track:
            if name not in TRACKERS:
                continue
            before = known.get(name)
            try:
                tracker = self._open[name] = _start(name, settings, folder, step, before and before.id)
            except Exception as error:
                self.close(False)
                raise UsageError(f"{_failure(name, error)}; {_ADVICE[name]}, or leave out --track {name}.") from None
            # TensorBoard hides what is repeated, and a run that is new to a tracker has nothing there. A run that was
            # stopped while it repeated records has a log with fewer of them than the tracker.
            sent = max(before.sent, kept + cut) if before else kept
            self._skip[name] = sent - kept
            if tracker.id is not None:
                known[name] = _Known(tracker.id, sent)
        if known:
            write_json(folder / FILE_NAME, {name: one._asdict() for name, one in known.items()})

    def log(self, event: str, values: Mapping[str, Any]) -> None:
        """The numbers of a record of the log, as curves ``event/name`` over "step"."""
        points = {
            f"{event}/{name}": float(value)
            for name, value in values.items()
            if name not in ("step", "epoch") and isinstance(value, (int, float))
        }
        for name, tracker in list(self._open.items()):
            if self._skip[name] > 0:
                self._skip[name] -= 1
                continue
            try:
                tracker.log(points, values["step"])
            except Exception as error:
                self._give_up(name, error)

    def close(self, finished: bool) -> None:
        """Ends the runs in the trackers."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.close(finished)
            except Exception as error:
                self._give_up(name, error)
        self._open = {}

    def _give_up(self, name: str, error: Exception) -> None:
        del self._open[name]
        print(f"warning: {_failure(name, error)}; the run goes on without it.", file=sys.stderr, flush=True)


_ADVICE = {
    "tensorboard": "free space in the run's folder",
    "wandb": "log in with 'wandb login', or set WANDB_MODE=offline",
    "mlflow": "set MLFLOW_TRACKING_URI",
}


def _name(settings: TrainingSettings) -> str:
    fold = "" if settings.fold is None else f" fold {settings.fold}"
    return f"{settings.variant}{fold} seed {settings.seed}"


def _start(name: str, settings: TrainingSettings, folder: Path, step: int, id: str | None) -> Tracker:
    if name == "tensorboard":
        return _TensorBoard(folder, step)
    return _WandB(settings, folder, id) if name == "wandb" else _MLflow(settings, id)


def _failure(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{name} failed ({reason:.200})"


def _read_known(folder: Path) -> dict[str, _Known]:
    """A run's runs in the trackers; where the file is damaged it says so, and new ones are started."""
    path, known = folder / FILE_NAME, {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for name in found.keys() & set(TRACKERS):
            one = _Known(**found[name])
            if type(one.id) is not str or type(one.sent) is not int:
                raise TypeError(name)
            known[name] = one
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, AttributeError):
        print(
            f"warning: {path} cannot be read in full; trackers that it does not name get new runs.",
            file=sys.stderr,
            flush=True,
        )
    return known
