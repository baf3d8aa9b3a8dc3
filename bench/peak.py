"""The CPU's own limit for matrix products: multiply-adds on numbers in registers (``peak.cpp``), on all threads."""

import ctypes
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from cmsbert_fast.kernels.cpu import build

SOURCE = Path(__file__).with_name("peak.cpp")
TIMES, REPEATS = 2_000_000, 7


def flops_per_second(dtype: torch.dtype, threads: int) -> float | None:
    """Multiplications and additions a second in float32, or of bfloat16 pairs added in float32, of all threads at once;
    the best of some repeats, for it is a ceiling. None without a compiler."""
    native, _ = build._native_flag_and_key()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peak.so"
        try:
            command = [*build._require_compiler(), *build.FLAGS, *native, f"-I{build.SOURCES[0].parent}", str(SOURCE)]
            subprocess.run([*command, "-o", str(path)], check=True, capture_output=True)
        except (build.BuildError, subprocess.CalledProcessError):
            return None
        peak = ctypes.CDLL(str(path)).peak
    peak.argtypes, peak.restype = (ctypes.c_int64, ctypes.c_int), ctypes.c_int64
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(REPEATS):
            begin = time.perf_counter()
            done = sum(pool.map(lambda _: peak(TIMES, dtype == torch.bfloat16), range(threads)))
            best = max(best, done / (time.perf_counter() - begin))
    return best
