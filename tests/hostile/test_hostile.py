"""A few hostile files for every reader, in processes with limits; `python -m tests.hostile` runs thousands."""

import subprocess
import sys


def test_hostile_files_of_every_kind() -> None:
    command = [sys.executable, "-m", "tests.hostile", "5", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert "50 files, 0 wrong" in done.stdout, done.stdout + done.stderr[-2000:]
