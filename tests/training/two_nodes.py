"""Two nodes on one machine, one of which dies and returns: the run goes on by itself and ends with the same bits.

::

    python -m tests.training.two_nodes

Needs root, Linux and iproute2. Each node is a network namespace with an address of its own, in which ``torchrun``
starts one rank (gloo, rendezvous by c10d on the first node); they share a folder, as nodes share a file system. After
some epochs the second node is killed, ``torchrun`` with all, and its cable is pulled; after a while it is plugged in
again and ``torchrun`` started again with the same command. Nobody tells the first node anything: its ``torchrun`` waits
for the second, and both continue from the last checkpoint. Predictions and logs must be those of a run that nothing
disturbed. Not part of pytest: it takes minutes, and a container may not make namespaces.

``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` is needed on every node: with the store that torchrun shares by default, a node
that replaces another waits for an address which the surviving one never publishes again (PyTorch 2.13).
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODES = {"cmsbert-a": "10.77.0.1", "cmsbert-b": "10.77.0.2"}  # nobody outside these namespaces can reach them
CABLE = "cable"
PORT = 29417
LONGEST = 1500.0  # seconds of a run
RUN = ["--variant", "cmsbert-clr", "--seeds", "0"]
FILES = ("predictions.csv", "log.jsonl")


def ip(*arguments: str, node: str | None = None) -> None:
    """iproute2's command, within a node where one is named."""
    subprocess.run(["ip", *(["-n", node] if node else []), *arguments], check=True)


@contextmanager
def nodes() -> Iterator[None]:
    """Two namespaces, joined by a cable; they are removed in the end."""
    first, second = NODES
    made = []
    try:
        for node in NODES:
            ip("netns", "add", node)
            made.append(node)
        ip("link", "add", CABLE, "netns", first, "type", "veth", "peer", "name", CABLE, "netns", second)
        for node, address in NODES.items():
            ip("address", "add", f"{address}/24", "dev", CABLE, node=node)
            for link in ("lo", CABLE):
                ip("link", "set", link, "up", node=node)
        yield
    finally:
        for node in made:
            ip("netns", "delete", node)


def start(node: str, output: Path, epochs: int) -> subprocess.Popen:
    """``torchrun`` of one node; what it prints goes to a file beside the results."""
    first = next(iter(NODES.values()))
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:{PORT}", "--rdzv-id", output.name]
    # Without names, torchrun cannot find out by itself which of its nodes is at that address.
    rendezvous += ["--rdzv-conf", f"is_host={int(NODES[node] == first)}"]
    command = ["ip", "netns", "exec", node, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--nproc-per-node", "1", "--max-restarts", "3", "--local-addr", NODES[node], *rendezvous]
    command += [str(ROOT / "train.py"), *RUN, "--epochs", str(epochs), "--output", str(output)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": CABLE, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with (output / f"{node}.txt").open("a") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def kill(process: subprocess.Popen) -> None:
    """Ends a node's processes as a power cut does: those of its session, and the rank, which leads one of its own."""
    found = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(pid): int(parent) for pid, parent in (line.split() for line in found.splitlines())}
    ours = [process.pid]
    for pid in ours:
        ours += [child for child, parent in parents.items() if parent == pid]
    for pid in ours:
        os.kill(pid, signal.SIGKILL)
    process.wait()


def wait(processes: list[subprocess.Popen]) -> None:
    """Until all have ended well."""
    end = time.monotonic() + LONGEST
    for process in processes:
        code = process.wait(max(1.0, end - time.monotonic()))
        if code:
            raise SystemExit(f"torchrun ended with code {code}")


def validated(output: Path) -> int:
    """Epochs that the run's log holds."""
    return sum(log.read_text().count('"event": "valid"') for log in output.glob("*/*/log.jsonl"))


def unbroken(output: Path, epochs: int) -> None:
    output.mkdir()
    wait([start(node, output, epochs) for node in NODES])


def broken(output: Path, epochs: int) -> None:
    """The second node dies once some epochs are done, and returns."""
    first, second = NODES
    output.mkdir()
    running, victim = start(first, output, epochs), start(second, output, epochs)
    end = time.monotonic() + LONGEST
    try:
        while validated(output) < 3:
            if running.poll() is not None or time.monotonic() > end:
                raise SystemExit("the run ended before the node could die")
            time.sleep(0.05)
        kill(victim)
        print(f"the second node died after {validated(output)} validations", flush=True)
        ip("link", "set", CABLE, "down", node=second)
        time.sleep(10)
        if running.poll() is not None:
            raise SystemExit("the first node did not wait")
        ip("link", "set", CABLE, "up", node=second)
        victim = start(second, output, epochs)
        wait([running, victim])
    finally:
        for process in (running, victim):
            if process.poll() is None:
                kill(process)


def compare(whole: Path, again: Path) -> list[str]:
    """What differs: names of files."""
    differing = []
    for name in FILES:
        ours, theirs = ([path.read_bytes() for path in sorted(out.rglob(name))] for out in (again, whole))
        if not ours or ours != theirs:
            differing.append(name)
    return differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--output", type=Path, help="folder to keep; default: one that is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, nodes():
        folder = options.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "whole").exists():  # of an earlier call
            unbroken(folder / "whole", options.epochs)
            print("the unbroken run is done", flush=True)
        broken(folder / "again", options.epochs)
        differing = compare(folder / "whole", folder / "again")
    print(f"different: {', '.join(differing)}" if differing else "the same bits")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
