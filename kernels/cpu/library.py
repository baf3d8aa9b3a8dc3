"""The compiled C++ of ``kernels/cpu``, called with ctypes.

Its interface is plain C without PyTorch, so one binary serves every version; ``build.py`` compiles it at first use.
"""

import ctypes
import functools
from pathlib import Path

import torch

from cmsbert_fast.kernels.cpu import build

_OUT_OF_MEMORY = 2  # ``Status`` of common.h


@torch.compiler.assume_constant_result  # torch.compile takes the answer as a constant
def why_not() -> str | None:
    """Why there is no library here, in half a sentence; None where there is one. The first call may compile it."""
    library = build.load()
    return library if isinstance(library, str) else None


def run(name: str, call: bytes) -> int:
    """Calls a function of the library.

    Args:
        name: Of the function.
        call: The C++ structure whose address it takes, laid out by ``struct``: several times as fast as
            ``ctypes.Structure``, which matters in short calls.

    Returns:
        0 = done; any other status is for the caller to explain.

    Raises:
        RuntimeError: there is no library.
        MemoryError: the call could not get memory.
    """
    library = build.load()
    if isinstance(library, str):
        raise RuntimeError(f'backend="cpu" cannot run here: {library}; use backend="auto" or "torch".')
    status = getattr(library, name)(call)
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"not enough memory for {name} on the CPU.")
    return status


def most_scratch_bytes() -> int:
    """Most memory beside their tensors that calls of the library took since this was last asked, over all threads; 0
    without the library."""
    library = build.load()
    if isinstance(library, str):
        return 0
    library.most_scratch_bytes.restype = ctypes.c_int64
    return library.most_scratch_bytes()


@functools.cache
def parallel_loop() -> int:
    """Address of GOMP_parallel in the OpenMP runtime that PyTorch itself uses; 0 = none, one thread.

    Looked up through PyTorch's library: threads of a second OpenMP runtime would compete with PyTorch's.
    """
    for path in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    return 0
