"""A process that does one run of the plan and ends."""

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import traceback
from dataclasses import replace
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from cmsbert_fast.data.example import DataError
from cmsbert_fast.experiments.plan import Run
from cmsbert_fast.training import checkpoint, distributed, folders, lock, preflight, runs, text_features
from cmsbert_fast.training.best import BEFORE, BEST
from cmsbert_fast.training.errors import Interrupted, NotFinite, UsageError
from cmsbert_fast.training.signals import StopRequest

EXIT_BUSY = 75  # EX_TEMPFAIL: another process trains in the folder
EXIT_FAILED = 1
LOG = "worker.log"


class Job(NamedTuple):
    """What a worker is to do.

    Attributes:
        run: The run.
        root: The output folder.
        threads: CPU threads, unless the run's settings or its checkpoint name a number.
    """

    run: Run
    root: Path
    threads: int


def main(job: Job, sentence: Connection) -> None:
    """Does a job; the exit status is that of ``train.py``, or ``EXIT_BUSY``. Sends why it failed.

    Output goes to ``worker.log`` in the run's folder.
    """
    folder = job.root / job.run.folder
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOG, "a", buffering=1, encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    stop, status = StopRequest(), 0
    try:
        with stop:
            threading.Thread(target=_stop_with_parent, daemon=True).start()
            with lock.locked(folder):
                _run(job, folder, stop)
    except lock.Locked:
        status = EXIT_BUSY
    except (UsageError, DataError) as error:
        status = runs.EXIT_USAGE
        sentence.send(str(error))
    except NotFinite as error:
        status = runs.EXIT_NOT_FINITE
        sentence.send(str(error))
    except (Interrupted, KeyboardInterrupt):
        status = 128 + (stop.signal or signal.SIGINT)
    except BaseException as error:
        traceback.print_exc()
        status = EXIT_FAILED
        sentence.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
    sentence.close()
    sys.exit(status)


def _run(job: Job, folder: Path, stop: StopRequest) -> None:
    run = job.run
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    settings = replace(run.settings, threads=_threads(job, folder))
    torch.set_num_threads(settings.threads or 1)
    ranks = distributed.start(settings.device)
    if ranks.device.type == "cuda":
        distributed.compute_deterministically()
    else:
        distributed.keep_freed_memory()
    data = preflight.read_data(settings, print)
    if data.fingerprint != run.fingerprint:
        raise UsageError(f"The data in {settings.data} have changed since the plan was made; start the command again.")
    features = features_folder(job.root, run)
    runs.run(settings, data, ranks, folder, stop, resuming=True, testing=run.testing, features=features)
    discard(folder, run.testing)


def features_folder(root: Path, run: Run) -> Path:
    """Where the runs on a data set keep features of frozen text."""
    return root / "runs" / run.data / text_features.FOLDER


def discard(folder: Path, tested: bool) -> None:
    """Removes what a finished run needs no more, gigabytes for many runs: checkpoints, and untested the best model."""
    shutil.rmtree(folder / BEFORE, ignore_errors=True)
    for name in (checkpoint.FILE_NAME, checkpoint.BEFORE):
        (folder / name).unlink(missing_ok=True)
    if not tested:
        shutil.rmtree(folder / BEST, ignore_errors=True)


def _threads(job: Job, folder: Path) -> int:
    """The number of a run that has begun must not change; what it was is in its folder."""
    path = folder / "threads"
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    folders.make_folder(folder)
    threads = job.run.settings.threads or job.threads
    path.write_text(f"{threads}\n")
    return threads


def _stop_with_parent() -> None:
    """Asks this process to stop as soon as its parent is gone, however that ended."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
