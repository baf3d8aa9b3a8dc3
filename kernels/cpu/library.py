"""The compiled C++ of ``kernels/cpu``, called with ctypes.

It is plain C at its surface and knows nothing of PyTorch, so that one binary serves every version; it is compiled at
first use (``build.py``).
"""

import ctypes
import functools
from pathlib import Path

import torch
from cmsbert_fast.kernels.cpu import build as cpu_build

_OUT_OF_MEMORY = 2  # ``Status`` of common.h


@torch.compiler.assume_constant_result  # while torch.compile traces, the answer is asked for, not the way to it
def why_not() -> str | None:
    """Why there is no library here, in half a sentence; None where there is. The first answer may compile it."""
    library = cpu_build.load()
    return library if isinstance(library, str) else None


def run(name: str, call: bytes) -> int:
    """Calls a function of the library: 0 = done, anything else is for the caller to explain.

    Args:
        name: The function's.
        call: The C++ structure that it takes a pointer to, laid out by ``struct``: several times as fast as
            ``ctypes.Structure``, which shows where calls are short.

    Raises:
        RuntimeError: there is no library.
        MemoryError: the call could not get memory.
    """
    library = cpu_build.load()
    if isinstance(library, str):
        raise RuntimeError(f'backend="cpu" cannot run here: {library}; use backend="auto" or "torch".')
    status = getattr(library, name)(call)
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"not enough memory for {name} on the CPU.")
    return status


def most_scratch_bytes() -> int:
    """What calls of the library took beside their callers' tensors since the last call of this, of every thread the
    most; 0 without the library."""
    library = cpu_build.load()
    if isinstance(library, str):
        return 0
    library.most_scratch_bytes.restype = ctypes.c_int64
    return library.most_scratch_bytes()


@functools.cache
def parallel_loop() -> int:
    """Address of GOMP_parallel in the OpenMP runtime that PyTorch itself uses; 0 = none, one thread.

    Looked up through PyTorch's library: a second OpenMP runtime would bring threads that fight with PyTorch's.
    """
    for path in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    return 0
