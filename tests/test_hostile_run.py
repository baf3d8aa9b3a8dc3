"""A few hostile files for every reader, in processes with limits; `tests.hostile_run` runs thousands."""

import subprocess
import sys


def test_hostile_files_of_every_kind() -> None:
    command = [sys.executable, "-m", "tests.hostile_run", "8", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert "72 files, 0 wrong" in done.stdout, done.stdout + done.stderr[-2000:]
