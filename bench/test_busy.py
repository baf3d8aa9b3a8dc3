"""A step while other processes want the same cores: what threads that wait cost those that work."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from bench import names
from bench.names import BATCH, BUSY_PROCESSES

ROOT = Path(__file__).resolve().parents[1]
SPINNING = (
    "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with the benchmark, however that ends
)
LAUNCHES, STEPS = 3, 5
CODE = f"""
import os
from cmsbert_fast.threads import wait_without_spinning
wait_without_spinning()
import json, torch
from bench import measure
from bench.steps import Trainer, clr
from bench.workload import ModelBatch, draw_lengths, make_config
from cmsbert_fast.training.distributed import keep_freed_memory
keep_freed_memory()
torch.set_num_threads(len(os.sched_getaffinity(0)))
device = torch.device("cpu")
config = make_config()
batch = ModelBatch.draw(config, draw_lengths("mosi", {BATCH}), device)
model = clr(config, device)
step = Trainer(model, device).step(lambda: model(**batch.packed).loss)
step(), step()
print(json.dumps([measure.timed(step, device) for _ in range({STEPS})]))
"""


def times(others: int, waiting: dict[str, str]) -> list[float]:
    """The seconds of some steps in a process of their own, beside others that keep a core each busy."""
    with ExitStack() as stack:
        for _ in range(others):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", SPINNING]))
            stack.callback(busy.kill)  # before the wait that leaving the context is
        environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | waiting
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_busy_machine(race, device):
    if device.type != "cpu":
        race.skip(names.STEP, names.BUSY, "it is for CPUs")
        return
    runs = {
        names.OURS_CLR: (BUSY_PROCESSES, {}),
        "with the 300,000 spins of GCC's OpenMP by default": (BUSY_PROCESSES, {"GOMP_SPINCOUNT": "300000"}),
        names.NOBODY_ELSE: (0, {}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(LAUNCHES):
        for name, run in runs.items():
            seconds[name] += times(*run)
    race.record(
        kind="race",
        suite=names.STEP,
        case=names.BUSY,
        seconds=seconds,
        memory={},
        facts={},
        missing={},
        dtype="float32",
    )
