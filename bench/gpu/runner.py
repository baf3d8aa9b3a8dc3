"""Stages as processes with time limits; what became of them, line by line."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import lines

RESULTS, LOG = "results.jsonl", "log.txt"
DONE, FAILED, STOPPED, LEFT_OUT = "done", "failed", "stopped", "left out"


class Context(NamedTuple):
    """What a stage knows.

    Attributes:
        output: The folder of results.
        device: "cuda"; "cpu" in a rehearsal, where Triton interprets.
        processes: How many may work side by side.
    """

    output: Path
    device: str
    processes: int

    @property
    def rehearsal(self) -> bool:
        """Tiny sizes: nothing that is measured means anything."""
        return self.device == "cpu"

    @property
    def path(self) -> Path:
        return self.output / RESULTS

    def record(self, kind: str, **line: Any) -> None:
        """Keeps a line at once."""
        lines.append(self.path, kind=kind, **line)

    def missing(self, kind: str, cases: Iterable[Any]) -> Iterator[Any]:
        """Those cases that have no line of this kind yet; ``str(case)`` is their name there."""
        known = {line["case"] for line in lines.read(self.path) if line["kind"] == kind}
        return (case for case in cases if str(case) not in known)


class Stage(NamedTuple):
    """A part of the run.

    Attributes:
        name: As options and results have it.
        limit: Seconds it may take.
        run: What it does.
        gives: What for, in a few words.
        always: It is run again although it is done.
    """

    name: str
    limit: float
    run: Callable[[Context], None]
    gives: str
    always: bool = False


# A stage that is left less than this part of its limit is not begun.
ENOUGH = 0.5


def states(output: Path) -> dict[str, dict[str, Any]]:
    """The last line of each stage that was begun or left out."""
    return {line["stage"]: line for line in lines.read(output / RESULTS) if line["kind"] == "stage"}


def run_all(stages: Sequence[Stage], context: Context, limit: float, done: Sequence[str]) -> dict[str, str]:
    """Runs what is not done, in order; what becomes of each.

    Args:
        stages: Those that are worth most first.
        context: What they are told.
        limit: Seconds for all of them.
        done: Names of stages not to run although nothing says that they are done.
    """
    begin, before, became = time.monotonic(), states(context.output), {}
    for stage in stages:
        known = before.get(stage.name, {}).get("state") == DONE
        if stage.name in done or (known and not stage.always):
            became[stage.name] = DONE
            continue
        left = limit - (time.monotonic() - begin)
        if left < ENOUGH * stage.limit:
            became[stage.name] = LEFT_OUT
            context.record(
                "stage", stage=stage.name, state=LEFT_OUT, seconds=0.0, why=f"{max(0.0, left):.0f} s are left"
            )
            continue
        started = time.monotonic()
        # How long an interpreter takes says nothing of a GPU: in a rehearsal the whole has a limit, no stage has.
        state, why = run_one(stage, context, left if context.rehearsal else min(stage.limit, left))
        seconds = time.monotonic() - started
        context.record("stage", stage=stage.name, state=state, seconds=round(seconds, 1), why=why)
        print(f"{stage.name}: {state} after {seconds:.0f} s{': ' + why if why else ''}", flush=True)
        became[stage.name] = state
    return became


def run_one(stage: Stage, context: Context, limit: float) -> tuple[str, str]:
    """Runs a stage in a process of its own; its state, and why if it is not done.

    The process is forked, so that nothing is imported twice: this one must not have touched the GPU. It leads a
    session, and whatever it started ends with it.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_work, args=(stage, context, sender))
    process.start()
    sender.close()
    process.join(limit)
    stopped = process.is_alive()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    if stopped:
        return STOPPED, f"it was not ready after {limit:.0f} s"
    try:
        why = receiver.recv() if receiver.poll() else f"the process ended with code {process.exitcode}"
    except EOFError:
        why = f"the process ended with code {process.exitcode}"
    return (FAILED, why) if why else (DONE, "")


def _work(stage: Stage, context: Context, sender: Any) -> None:
    os.setsid()
    log = os.open(context.output / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    print(f"\n======== {stage.name}", flush=True)
    try:
        stage.run(context)
    except BaseException as error:
        traceback.print_exc()
        sender.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
    else:
        sender.send("")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def each(context: Context, suite: str, cases: Iterable[Any], measure: Callable[[Any], dict[str, Any]]) -> None:
    """Measures what is missing, one case after the other. One that fails is recorded and named at the end."""
    failed = []
    for case in context.missing("kernels", cases):
        try:
            found = measure(case)
        except Exception as error:
            traceback.print_exc()
            if "CUDA error" in str(error):
                raise  # nothing runs in this process after it
            failed.append(str(case))
            context.record("failed", suite=suite, case=str(case), why=str(error)[:1000])
            continue
        context.record("kernels", suite=suite, case=str(case), **found)
    if failed:
        raise RuntimeError(f"{len(failed)} failed: {', '.join(failed)[:300]}")


def side_by_side(function: Callable[[Any], Any], items: Sequence[Any], processes: int) -> Iterator[tuple[Any, Any]]:
    """(item, result) of each item as it is ready; an exception is a result. In forked processes."""
    if processes <= 1:
        for item in items:
            yield item, _guarded(function, item)
        return
    with multiprocessing.get_context("fork").Pool(min(processes, max(1, len(items)))) as pool:
        yield from zip(items, pool.imap(functools.partial(_guarded, function), items), strict=True)


def _guarded(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except Exception as error:
        return RuntimeError(f"{type(error).__name__}: {str(error)[:500]}")  # what Triton raises cannot be pickled
