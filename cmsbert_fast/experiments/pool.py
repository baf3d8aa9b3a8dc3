"""Worker processes, one run each: a crash stays where it is, and a run's memory returns."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from cmsbert_fast.experiments import worker
from cmsbert_fast.experiments.plan import Estimates, Run, duration, finished
from cmsbert_fast.experiments.worker import EXIT_BUSY, Job
from cmsbert_fast.training import text_features
from cmsbert_fast.training.errors import Interrupted
from cmsbert_fast.training.lock import turn
from cmsbert_fast.training.signals import StopRequest
from cmsbert_fast.training.strict_json import write_json

FAILURE = "failure.json"  # in the folder of a run that failed twice: its exit status and why
ATTEMPTS = 2
BUSY_SECONDS = 2.0  # until a run of another runner is looked at again
_POLL_SECONDS = 0.5


class Machine(NamedTuple):
    """What workers may use.

    Attributes:
        workers: How many run at once.
        threads: CPU threads of each.
        gpus: Names of CUDA devices, one a worker; empty: none.
    """

    workers: int
    threads: int
    gpus: tuple[str, ...] = ()


@dataclass
class _Waiting:
    run: Run
    attempt: int = 1
    not_before: float = 0.0


@dataclass
class _Active:
    waiting: _Waiting
    process: BaseProcess
    sentence: Connection
    gpu: str | None
    started: float


class Pool:
    """Does the missing runs of a plan.

    Args:
        root: The output folder.
        machine: What to use.
        stop: Whether to stop early.
        say: Prints progress.
        changed: Called after a run has finished or failed.
    """

    def __init__(
        self,
        root: Path,
        machine: Machine,
        stop: StopRequest,
        say: Callable[..., None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._root, self._machine, self._stop, self._say, self._changed = root, machine, stop, say, changed
        self._waiting: list[_Waiting] = []
        self._active: list[_Active] = []
        self._done = self._count = 0
        self.failed: list[Run] = []

    def run(self, runs: Sequence[Run]) -> None:
        """Returns once every run has finished, here or in another runner, or has failed twice.

        Raises:
            Interrupted: A stop was requested; the workers have written their checkpoints.
        """
        self._estimates = Estimates(self._root, runs)
        missing = [run for run in runs if finished(self._root, run) is None]
        self._done, self._count = len(runs) - len(missing), len(runs)
        self._waiting = [_Waiting(run) for run in longest_first(missing, self._estimates)]
        try:
            while self._waiting or self._active:
                if self._stop.signal:
                    self._end(signal.SIGTERM)
                    raise Interrupted("Stopped; the same command continues.")
                self._fill()
                wait([a.process.sentinel for a in self._active], _POLL_SECONDS)
                for active in [a for a in self._active if not a.process.is_alive()]:
                    self._active.remove(active)
                    self._settle(active)
            for folder in {worker.features_folder(self._root, run) for run in runs}:
                text_features.remove(folder)
        finally:
            self._end(signal.SIGKILL)

    def _fill(self) -> None:
        """Starts runs while there are free workers."""
        now = time.monotonic()
        for waiting in list(self._waiting):
            if len(self._active) >= self._machine.workers:
                return
            if waiting.not_before > now:
                continue
            self._waiting.remove(waiting)
            if finished(self._root, waiting.run) is not None:  # by another runner
                self._succeed(waiting.run, "done by another runner")
            else:
                self._active.append(self._start(waiting))

    def _start(self, waiting: _Waiting) -> _Active:
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        gpu = next(iter(g for g in self._machine.gpus if g not in [a.gpu for a in self._active]), None)
        job = Job(waiting.run, self._root, self._machine.threads)
        process = context.Process(target=worker.main, args=(job, sender))
        with _visible(gpu):
            process.start()
        sender.close()
        return _Active(waiting, process, receiver, gpu, time.monotonic())

    def _settle(self, active: _Active) -> None:
        """Records how a worker ended."""
        active.process.join()
        status, waiting = active.process.exitcode, active.waiting
        sentence = ""
        with contextlib.suppress(EOFError, OSError):
            sentence = active.sentence.recv() if active.sentence.poll() else ""
        active.sentence.close()
        if status == 0:
            seconds = time.monotonic() - active.started
            found = finished(self._root, waiting.run)
            if found is not None:
                self._estimates.add(waiting.run, found["seconds"])
            self._succeed(waiting.run, duration(seconds))
        elif status == EXIT_BUSY:
            waiting.not_before = time.monotonic() + BUSY_SECONDS
            self._waiting.append(waiting)
        elif self._stop.signal:
            self._waiting.append(waiting)
        else:
            self._fail(waiting, status, sentence or _why(status))

    def _succeed(self, run: Run, how: str) -> None:
        (self._root / run.folder / FAILURE).unlink(missing_ok=True)
        self._done += 1
        self._report(run, how)

    def _fail(self, waiting: _Waiting, status: int | None, sentence: str) -> None:
        log = self._root / waiting.run.folder / worker.LOG
        if waiting.attempt < ATTEMPTS:
            self._say(f"{waiting.run.title} failed and is tried again from its checkpoint: {sentence}", flush=True)
            waiting.attempt += 1
            self._waiting.insert(0, waiting)
            return
        with turn(self._root):
            write_json(self._root / waiting.run.folder / FAILURE, {"status": status, "sentence": sentence})
        self.failed.append(waiting.run)
        self._done += 1
        self._report(waiting.run, f"failed: {sentence} (see {log})")

    def _report(self, run: Run, how: str) -> None:
        left = [self._estimates.seconds(w.run) for w in self._waiting]
        now = time.monotonic()
        for active in self._active:
            seconds = self._estimates.seconds(active.waiting.run)
            left.append(None if seconds is None else max(0.0, seconds - (now - active.started)))
        known = [seconds for seconds in left if seconds is not None]
        time_left = f"; about {duration(sum(known) / self._machine.workers)} left" if known else ""
        self._say(f"[{self._done}/{self._count}] {run.title}: {how}{time_left}", flush=True)
        self._changed()

    def _end(self, number: signal.Signals) -> None:
        """Signals the workers that are left, and waits for them."""
        for active in self._active:
            if active.process.is_alive() and active.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(active.process.pid, number)
        while self._active:
            self._active[0].process.join()
            self._settle(self._active.pop(0)) if number == signal.SIGTERM else self._active.pop(0)


def longest_first(runs: Sequence[Run], estimates: Estimates) -> list[Run]:
    """Runs in the order that keeps all workers busy to the end; runs without an estimate first."""
    seconds = {run.folder: estimates.seconds(run) for run in runs}
    unknown = [run for run in runs if seconds[run.folder] is None]
    known = [run for run in runs if seconds[run.folder] is not None]
    unknown.sort(key=lambda run: -run.work)
    known.sort(key=lambda run: -(seconds[run.folder] or 0))
    return [*unknown, *known]


def _why(status: int | None) -> str:
    if status is not None and status < 0:
        hint = "; perhaps memory ran out: use fewer --workers" if status == -signal.SIGKILL else ""
        return f"the process was ended by signal {-status}{hint}"
    return f"the process ended with status {status}"


@contextlib.contextmanager
def _visible(gpu: str | None) -> Iterator[None]:
    """Makes one CUDA device visible to processes started meanwhile."""
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    if gpu is not None:
        os.environ[name] = gpu
    try:
        yield
    finally:
        if gpu is not None:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before
