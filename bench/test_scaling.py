"""Data-parallel training on 1, 2 and 4 processes of this machine, one thread each: what talking and waiting cost."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench import names

SHAPE, PER_RANK, STEPS, REPEATS = "MiniLM", 16, 6, 3
ROOT = Path(__file__).resolve().parents[1]


def launch(processes: int, folder: Path) -> list[list[dict]]:
    """One run of the worker: for every rank its steps."""
    output = folder / f"{processes}.json"
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command += [str(ROOT / "bench" / "scaling_worker.py"), SHAPE, str(PER_RANK), str(STEPS), str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=900)
    return json.loads(output.read_text(encoding="utf-8"))


def test_scaling(race, device, tmp_path):
    case = f"cmsbert-clr, {SHAPE} shape, {PER_RANK} utterances a process, one thread each"
    if device.type != "cpu":
        race.skip(names.SCALING, case, "one GPU says nothing about several; the model below takes its step time")
        return
    counts = [1, 2, 4]
    runs: dict[int, list] = {k: [] for k in counts}
    chance = random.Random(0)
    for _ in range(REPEATS):
        for processes in chance.sample(counts, len(counts)):
            runs[processes].append(launch(processes, tmp_path))
    rows = {}
    for processes, launches in runs.items():
        steps = np.array([[[step["total"] for step in rank] for rank in ranks] for ranks in launches])
        waiting = np.array([[[step["waiting"] for step in rank] for rank in ranks] for ranks in launches])
        work = np.array([[[step["work"] for step in rank] for rank in ranks] for ranks in launches])
        tokens = np.array([[[step["tokens"] for step in rank] for rank in ranks] for ranks in launches])
        rows[str(processes)] = {
            # Of the slowest rank: nobody starts the next step before it.
            "seconds": steps.max(axis=1).ravel().tolist(),
            "waiting": float(np.median(waiting.mean(axis=1) / steps.max(axis=1))),
            "work_imbalance": float(np.median(work.max(axis=1) / work.mean(axis=1))),
            "token_imbalance": float(np.median(tokens.max(axis=1) / tokens.mean(axis=1))),
        }
    race.record(
        kind="scaling",
        suite=names.SCALING,
        case=case,
        processes=rows,
        cpus=len(os.sched_getaffinity(0)),
    )
