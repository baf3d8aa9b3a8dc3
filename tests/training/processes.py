"""Training runs in processes of their own, forked from a server that has imported everything once."""

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path


@dataclass
class Run:
    """A training run in other processes."""

    processes: list[BaseProcess]
    folder: Path

    def wait(self, seconds: float = 300) -> list[int | None]:
        """The exit status of every rank."""
        for process in self.processes:
            process.join(seconds)
        return [process.exitcode for process in self.processes]

    def kill_after(self, lines: int) -> None:
        """Kills every rank with SIGKILL once the log has so many lines."""
        self.wait_for(lines)
        for process in self.processes:
            process.kill()
        self.wait()

    def wait_for(self, lines: int) -> None:
        """Returns when the log has so many lines, while the run goes on."""
        deadline = time.monotonic() + 300
        while len(self._log()) < lines:
            assert time.monotonic() < deadline, self.errors()
            assert all(p.is_alive() for p in self.processes), self.errors()
            time.sleep(0.002)

    def output(self, rank: int = 0) -> str:
        """What a rank printed on stdout."""
        return (self.folder / f"out{rank}").read_text()

    def errors(self, rank: int = 0) -> str:
        """What a rank printed on stderr."""
        return (self.folder / f"err{rank}").read_text()

    def records(self, event: str = "train") -> list[dict]:
        """The lines of one kind in the only log below the folder."""
        return [record for line in self._log() if (record := json.loads(line)).pop("event") == event]

    def _log(self) -> list[str]:
        logs = list(self.folder.glob("out/*/*/log.jsonl"))
        return logs[0].read_text().splitlines() if logs else []


_CODE = """
import os, sys
os.environ.update({environment})
os.dup2(os.open({out!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
os.dup2(os.open({err!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
{code}
"""
_MAIN = """
{before}
from cmsbert_fast.training import figures
from cmsbert_fast.training.runs import main
figures.write_figures = lambda *arguments: None  # slow; other tests look at them
sys.exit(main({arguments!r}, embedded_config="none"))
"""


def prepare() -> None:
    """Before the first process starts."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    modules = ["cmsbert_fast.training.runs", "cmsbert_fast.training.metrics"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules)


def start_code(folder: Path, code: str, ranks: int = 1) -> Run:
    """Runs code on so many ranks."""
    context = multiprocessing.get_context("forkserver")
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes: list[BaseProcess] = []
    for rank in range(ranks):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        whole = _CODE.format(
            environment=environment if ranks > 1 else {},
            out=str(folder / f"out{rank}"),
            err=str(folder / f"err{rank}"),
            code=code,
        )
        process = context.Process(target=exec, args=(whole, {"__name__": "run"}))
        process.start()
        processes.append(process)
    return Run(processes, folder)


def start_run(folder: Path, arguments: Sequence[object], ranks: int = 1, before: str = "") -> Run:
    """Starts ``train.py ARGUMENTS --output FOLDER/out`` on so many ranks; ``before`` is code that they run first."""
    given = [*map(str, arguments), "--output", str(folder / "out")]
    return start_code(folder, _MAIN.format(before=before, arguments=given), ranks)
