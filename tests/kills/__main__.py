"""Kills runs at random times and resumes them: ``python -m tests.kills COUNT [SEED]``.

Training on one and two ranks, of systems with and without something to remember, and conversion: killed with SIGKILL,
continued, sometimes killed again. What is left at the end must be, to the bit, what a run leaves that nobody killed.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.training.conftest import write_bert, write_corpus
from tests.training.processes import Run, prepare, start_code, start_run

KINDS = ("training", "training on 2 ranks", "conversion")
VARIANTS = ("cmsbert-clr", "self-mm", "mfm", "bert")
AGAIN = 0.3  # probability that a continued run is killed, too
CONVERSION = """
from pathlib import Path
from cmsbert_fast.data import convert, open_source
convert.convert(open_source({source!r}), Path({target!r}))
"""
# Figures are slow; features of frozen text come from a file, as those of large data.
BEFORE = "from cmsbert_fast.training import batches\nbatches.FILE_BYTES = 0"


class Job(NamedTuple):
    """What is killed.

    Attributes:
        start: Starts it in a folder, or continues it there.
        left: What it leaves in the folder, by name.
    """

    start: Callable[[Path], Run]
    left: Callable[[Path], dict[str, bytes]]


def training(data: Path, bert: Path, variant: str, ranks: int) -> Job:
    """Three epochs of four steps, a checkpoint every third step and after every epoch."""
    arguments = ["--data", data, "--model", bert, "--variant", variant, "--epochs", 3, "--batch-size", 8]
    arguments += ["--learning-rate", 1e-3, "--checkpoint-every-steps", 3]
    arguments += ["--repeat-frames", "true"] if variant == "mfm" else []

    def start(folder: Path) -> Run:
        more = ["--resume"] if (folder / "out").is_dir() else []
        return start_run(folder, [*arguments, *more], ranks, before=BEFORE)

    def left(folder: Path) -> dict[str, bytes]:
        (run,) = (folder / "out").glob("*/seed-0")
        found = {name: (run / name).read_bytes() for name in ("log.jsonl", "predictions.csv")}
        found |= {path.name: path.read_bytes() for path in (run / "best").iterdir() if path.suffix != ".json"}
        results = json.loads((run / "results.json").read_text())
        return {**found, "results": repr([results[name] for name in ("test", "valid", "best_epoch", "steps")]).encode()}

    return Job(start, left)


def conversion(data: Path) -> Job:
    """A folder of frames into a folder that is mapped."""

    def start(folder: Path) -> Run:
        return start_code(folder, CONVERSION.format(source=str(data), target=str(folder / "converted")))

    def left(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (folder / "converted").iterdir()}

    return Job(start, left)


class Undisturbed(NamedTuple):
    """What a job leaves that nobody kills, and the seconds that it takes."""

    left: dict[str, bytes]
    seconds: float


def finish(job: Job, folder: Path) -> Undisturbed:
    """Runs a job, or the rest of it, to its end.

    Raises:
        RuntimeError: It failed.
    """
    begin = time.monotonic()
    run = job.start(folder)
    statuses = run.wait(300)
    if any(statuses):
        raise RuntimeError(f"status {statuses}: " + " ".join(run.errors(rank) for rank in range(len(statuses))))
    return Undisturbed(job.left(folder), time.monotonic() - begin)


def killed(job: Job, folder: Path, whole: Undisturbed, dice: random.Random) -> tuple[int, list[str]]:
    """Kills a job and finishes it; returns how often it was killed and the names of what differs."""
    kills = 0
    while kills == 0 or dice.random() < AGAIN:
        run = job.start(folder)
        run.processes[0].join(dice.uniform(0, 1.1 * whole.seconds))
        dice.shuffle(run.processes)
        alive = [process for process in run.processes if process.is_alive()]
        for process in alive:
            process.kill()
        run.wait()
        if not alive and kills:
            break  # it was faster, and is finished
        kills += bool(alive)
        if not alive:
            shutil.rmtree(folder)
    done = finish(job, folder) if not (folder / "converted").exists() else Undisturbed(job.left(folder), 0)
    names = whole.left.keys() | done.left.keys()
    return kills, sorted(name for name in names if whole.left.get(name) != done.left.get(name))


def run(count: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Kills at least ``count`` times; returns the kills by kind, and what went wrong."""
    prepare()
    place = Path(tempfile.mkdtemp())
    dice, counts, wrong = random.Random(seed), Counter[str](), []
    try:
        bert = write_bert(place / "bert", dropout=0.1)
        data = write_corpus(place / "data")
        single = write_corpus(place / "single", frames=1)
        many = write_corpus(place / "many", sizes={"train": 1500, "valid": 20, "test": 20})
        known: dict[str, Undisturbed] = {}
        trial = 0
        while sum(counts.values()) < count:
            kind, variant = KINDS[trial % len(KINDS)], VARIANTS[trial // len(KINDS) % len(VARIANTS)]
            name, ranks = f"{kind} {variant}" if kind != "conversion" else kind, 1 + ("2" in kind)
            source = single if variant == "mfm" else data
            job = conversion(many) if kind == "conversion" else training(source, bert, variant, ranks)
            if name not in known:
                finish(job, place / f"first {name}")  # the server of processes starts, libraries are read
                known[name] = finish(job, place / f"whole {name}")
            try:
                kills, differing = killed(job, place / f"trial {trial}", known[name], dice)
            except RuntimeError as error:
                kills, differing = 1, [str(error)]
            counts[name] += kills
            wrong += [f"trial {trial}, {name}: {each}" for each in differing]
            print(f"{sum(counts.values())} of {count}: {name}, {kills} killed, {differing or 'the same'}", flush=True)
            shutil.rmtree(place / f"trial {trial}", ignore_errors=True)
            trial += 1
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return counts, wrong


if __name__ == "__main__":
    counts, wrong = run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print("\n".join([f"{number} kills of {name}" for name, number in sorted(counts.items())] + wrong))
    print(f"{sum(counts.values())} kills, {len(wrong)} differences")
    sys.exit(bool(wrong))
