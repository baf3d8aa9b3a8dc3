"""Triton's interpreter, as the tests of kernels use it."""

import os
import re
import subprocess
import sys
from pathlib import Path

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def round_products_once() -> None:
    """Makes ``tl.dot`` sum in float64 and round to its dtype at the end.

    The interpreter leaves it to NumPy's BLAS, which sums in an order that depends on the CPU, real or named in
    ``OPENBLAS_CORETYPE``; on some its float32 error is several times that of others. What is tested are the kernels'
    own sums and roundings.
    """
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, d: TensorHandle, *_: object) -> object:
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
        return TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot


def run_in_the_interpreter(*arguments: str, at_least: int) -> None:
    """Runs pytest with ``arguments`` interpreted: Triton decides when it is imported, hence in another process.

    Of the tests at least ``at_least`` must pass, for a run that skips them all is green too.
    """
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *arguments]
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None, result.stdout
    assert int(passed[1]) >= at_least, result.stdout
