"""Short runs of ``train.py`` on the embedded corpus, and what they leave behind, without what differs by time or place.

Two epochs of 19 steps: enough for a validation to choose the best epoch and to move nu, few enough for rounding errors
to stay small.
"""

import csv
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.frozen.programs import TRAIN, run

_ARGUMENTS = ("--epochs", "2", "--batch-size", "128", "--threads", "1", "--device", "cpu")
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@dataclass(frozen=True)
class Command:
    """One command, which may be several runs.

    Attributes:
        arguments: Beside those of every command.
        variants: The runs that must come of it, in order.
        ranks: Processes.
        backend: The one that must compute CMS attention.
    """

    arguments: tuple[str, ...]
    variants: tuple[str, ...]
    ranks: int = 1
    backend: str = "cpu"

    def run(self, folder: Path) -> None:
        """Runs it; its results lie in ``folder/runs`` afterwards."""
        start = _TORCHRUN if self.ranks > 1 else ()
        run([*start, TRAIN, *_ARGUMENTS, *self.arguments, "--output", "runs"], folder)


COMMANDS = {
    "default": Command((), ("bert", "cmsbert-clr")),  # what train.py trains when it is not told what
    "cmsbert": Command(("--variant", "cmsbert"), ("cmsbert",)),
    # Micro-batches: plain accumulation, and GradCache where there is a contrastive loss.
    "accumulation": Command(("--variant", "bert", "cmsbert-clr", "--accumulation", "3"), ("bert", "cmsbert-clr")),
    "ranks": Command(("--variant", "cmsbert-clr"), ("cmsbert-clr",), ranks=2),
    # Plain PyTorch, for machines without a C++ compiler. It draws other dropout masks.
    "torch": Command(("--variant", "cmsbert-clr", "--backend", "torch"), ("cmsbert-clr",), backend="torch"),
}


def run_all(folder: Path) -> dict[str, Path]:
    """Runs every command, two at a time where there are the CPUs; the folder with the runs of each."""
    folders = {name: folder / name for name in COMMANDS}
    for path in folders.values():
        path.mkdir()
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        # The longest first.
        order = sorted(COMMANDS, key=lambda name: -COMMANDS[name].ranks * len(COMMANDS[name].variants))
        for done in [pool.submit(COMMANDS[name].run, folders[name]) for name in order]:
            done.result()
    return {name: path / "runs" for name, path in folders.items()}


def read(folder: Path) -> dict[str, Any]:
    """What a command left behind: of each variant the results, the log and the predictions."""
    return {path.parent.name: _read_run(path) for path in sorted(folder.glob("*/seed-0"))}


def _read_run(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for name in ("seconds", "versions", "commit"):
        del results[name]
    del results["machine"]["platform"]
    results.pop("alignment", None)  # came later
    log: dict[str, dict[str, list]] = {}  # of each event, of each name, the values of all lines
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        columns = log.setdefault(record.pop("event"), {})
        for name, value in record.items():
            columns.setdefault(name, []).append(value)
    return {"results": results, "log": log, "predictions": _read_csv(folder / "predictions.csv")}


def _read_csv(file: Path) -> dict[str, list]:
    with open(file, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    # Shortest decimals that name a float32: equal to the bit if equal as text.
    return {name: [row[name] if name == "id" else float(row[name]) for row in rows] for name in rows[0]}
