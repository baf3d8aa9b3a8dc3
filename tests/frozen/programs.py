"""Runs the project's programs as its users do: ``python train.py``, ``python -m cmsbert_fast.predict``."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from tests.frozen.golden import ROOT

TRAIN = str(ROOT / "train.py")
# What would change a result, or the place of the ranks, if a test inherited it.
_UNSET = ("CMSBERT_BACKEND", "TRITON_INTERPRET", "RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
_SET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
}


def environment() -> dict[str, str]:
    """The environment variables of every program that is run here."""
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return kept | _SET | {"PYTHONPATH": str(ROOT), "COLUMNS": "10000"}


def run(arguments: Sequence[str], folder: Path) -> str:
    """Runs ``python ARGUMENTS`` in a process of its own, in ``folder``; returns what it printed on stdout."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def call(program: str, *arguments: object, backend: str = "auto") -> tuple[int, str, str]:
    """Runs ``python PROGRAM ARGUMENTS`` in this process, which saves the seconds of its imports.

    Args:
        program: A file, or the name of a module, which is run as by ``python -m``.
        *arguments: The rest of the command line.
        backend: ``CMSBERT_BACKEND``.

    Returns:
        The exit status, and what it printed on stdout and on stderr.
    """
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", [program, *map(str, arguments)]))
        stack.enter_context(mock.patch.dict(os.environ, environment() | {"CMSBERT_BACKEND": backend}, clear=True))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, about a module that was imported before
        try:
            if program.endswith(".py"):
                runpy.run_path(program, run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code
    return int(status or 0), out.getvalue(), err.getvalue()  # type: ignore[call-overload]
