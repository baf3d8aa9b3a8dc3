"""Results as JSON lines: one file of one machine, to which each result is added as soon as it is there.

The lines, by "kind":

* "run": a process began to measure: "datetime", "machine_info", "commit_info" as in pytest-benchmark's files. What
  follows was measured under these, up to the next such line.
* "race", "growth", "profile", "skipped", "scaling": a result as :class:`bench.conftest.Race` keeps it; "kernels": as
  :func:`bench.gpu.kernels.times` measures it.
* "finished": the "test" that ended well; another run of the suites leaves it out.
* anything else: what :mod:`bench.gpu` keeps of its stages.

A line that was cut off, as by a kill, is left out on reading; the next begins on a line of its own.
"""

import datetime
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ("race", "growth", "profile", "skipped", "scaling", "kernels")


def append(path: Path, **line: Any) -> None:
    """Adds a line and waits until it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; none if the file does not exist."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


def begin(path: Path, machine: dict[str, Any]) -> None:
    """Adds the line of a run that begins now, on this machine, of this commit."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    append(path, kind="run", datetime=now, machine_info=machine, commit_info=_commit())


def _commit() -> dict[str, Any]:
    """The commit's id and whether anything was changed; none where there is no git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def finished(path: Path) -> set[str]:
    """The tests that ended well."""
    return {line["test"] for line in read(path) if line["kind"] == "finished"}


def runs(path: Path) -> Iterator[dict[str, Any]]:
    """The runs of a file, each as a file of pytest-benchmark's; only those that have results."""
    run: dict[str, Any] | None = None
    for line in read(path):
        if line["kind"] == "run":
            if run is not None and run["benchmarks"]:
                yield run
            run = {**line, "benchmarks": []}
        elif line["kind"] in RESULTS and run is not None:
            run["benchmarks"].append({"extra_info": {"results": [line]}})
    if run is not None and run["benchmarks"]:
        yield run
