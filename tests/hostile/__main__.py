"""Reads hostile files within limits: ``python -m tests.hostile COUNT [SEED [KIND ...]]``, so many of each kind.

Each is read in a process of its own. It is read, or refused with one sentence; within 10 seconds; with ten times its
size plus 100 MB at most; no process stays behind; and nothing that lies beside it runs.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cmsbert_fast.data import DataError
from tests.hostile.kinds import KINDS, Case, trained_model

SECONDS, MEMORY, FACTOR = 10.0, 100_000_000, 10
TRAPS = ("json", "numpy", "h5py", "subprocess", "importlib", "cmsbert_fast", "torch", "modeling", "tokenization")


class Outcome(NamedTuple):
    """How a reading ended: "read", "refused", or what is wrong."""

    how: str
    seconds: float
    memory: int  # bytes beyond those before
    allowed: int


def size_of(folder: Path) -> int:
    """Bytes of the regular files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def attempt(case: Case) -> str:
    """Reads, and says how it ended."""
    from cmsbert_fast.training.errors import UsageError

    try:
        case.read()
        return "read"
    except (DataError, UsageError) as error:
        said = str(error)
        if len(said) > 1500 or not said.replace("\n", "").replace("\t", "").isprintable():
            return f"wrong message: {said[:300]!r}"
        return "refused"
    except BaseException:
        return "traceback: " + " | ".join(traceback.format_exc().splitlines()[-3:])[-400:]


def run_case(make: Callable[[Path, random.Random], Case], seed: int) -> Outcome:
    """Makes a case and reads it in a process of its own."""
    place = Path(tempfile.mkdtemp())
    folder, note = place / "data", place / "note"
    folder.mkdir()
    try:
        case = make(folder, random.Random(seed))
        for name in TRAPS:
            (folder / f"{name}.py").write_text(f"open({str(folder / 'trapped')!r}, 'w')\n")
        allowed = FACTOR * size_of(folder) + MEMORY
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            _read_and_note(case, folder, note)
        ended = _wait(child)
        spent = time.monotonic() - begin
        if not ended:
            return Outcome("too slow", spent, 0, allowed)
        found = json.loads(note.read_text()) if note.exists() else {"how": "crashed", "memory": 0}
        how = found["how"]
        if (folder / "trapped").exists():
            how = "code ran"
        elif _alive(child):
            how = "a process stayed"
        elif found["memory"] > allowed:
            how = f"too much memory ({found['memory'] >> 20} MB of {allowed >> 20})"
        return Outcome(how, spent, found["memory"], allowed)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _read_and_note(case: Case, folder: Path, note: Path) -> None:
    os.setsid()
    os.chdir(folder)
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(null, handle)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = status("VmRSS")
    how = attempt(case)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 - before  # theirs begins with this one's
    note.write_text(json.dumps({"how": how, "memory": max(status("VmHWM") - before, children, 0)}))
    os._exit(0)


def _wait(child: int) -> bool:
    """Whether a process ended in time; it is killed otherwise."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def run(count: int, seed: int = 0, kinds: tuple[Any, ...] = KINDS) -> tuple[dict[str, Counter[str]], list[str]]:
    """Reads ``count`` files of each kind; returns the outcomes by kind, and what went wrong."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    trained_model()
    counts: dict[str, Counter[str]] = {}
    wrong = []
    for make in kinds:
        found = counts.setdefault(make.__name__, Counter())
        for number in range(seed, seed + count):
            outcome = run_case(make, number)
            good = outcome.how in ("read", "refused")
            found[outcome.how if good else "wrong"] += 1
            if not good:
                wrong.append(f"{make.__name__} {number}: {outcome.how}, {outcome.seconds:.1f} s")
                print(wrong[-1], flush=True)
        print(make.__name__, dict(found), flush=True)
    return counts, wrong


if __name__ == "__main__":
    chosen = tuple(make for make in KINDS if make.__name__ in sys.argv[3:]) or KINDS
    counts, wrong = run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, chosen)
    total = sum(sum(found.values()) for found in counts.values())
    print(f"{total} files, {len(wrong)} wrong")
    sys.exit(bool(wrong))
