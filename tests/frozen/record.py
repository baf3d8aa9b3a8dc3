"""Rewrites the golden files of this folder: ``python -m tests.frozen.record [NAME ...]``, all of them without a name.

A golden file says what must not change. A commit that changes one has to say in its body why that change is meant, and
what it costs those who hold on to what was: checkpoints, scripts, results that are to be repeated. A number that moved
in its last bit needs a reason too: which sum is now added in another order. The folder ``checkpoint/`` is never
rewritten: it is what commit 2931ebd wrote.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.frozen import checkpoints, golden, interfaces, runs


def _runs() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        found = {name: runs.read(path) for name, path in runs.run_all(Path(folder)).items()}
    # The test set once, not in every run.
    examples = {name: found["default"]["bert"]["predictions"][name] for name in ("id", "label")}
    for variants in found.values():
        for run in variants.values():
            for name, values in examples.items():
                assert run["predictions"].pop(name) == values
    return {"environment": golden.environment(), "examples": examples, "runs": found}


def _predictions() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        found = checkpoints.predictions(Path(folder), golden.load("state_dicts"))
    return {"environment": golden.environment(), "predictions": found}


RECORDED: dict[str, Callable[[], Any]] = {
    "state_dicts": interfaces.state_dicts,
    "configuration": interfaces.configuration,
    "operators": interfaces.operators,
    "outputs": interfaces.outputs,
    "public_names": interfaces.public_names,
    "options": interfaces.options,
    "predictions": _predictions,
    "runs": _runs,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or RECORDED:
        golden.save(name, RECORDED[name]())
        print(f"wrote {name}")
