"""Backend names, and which one runs.

========= ===================================================================
name      what it is
========= ===================================================================
reference the equations of the paper, literally (:mod:`cmsbert_fast.reference`)
torch     the best plain-PyTorch form; runs on any device and dtype
triton    fused Triton kernels; NVIDIA (sm_80 and later) and AMD GPUs
cpu       compiled C++ for the CPU
auto      the fastest of these that is correct for the device, dtype and shapes
========= ===================================================================
"""

import os

import torch

BACKENDS = ("reference", "torch", "triton", "cpu", "auto")


def requested_backend(backend: str = "auto") -> str:
    """Returns the backend asked for: the argument, or the environment's ``CMSBERT_BACKEND`` where that is "auto".

    Raises:
        ValueError: the name is none of :data:`BACKENDS`.
    """
    origin = "backend"
    if backend == "auto":
        backend = os.environ.get("CMSBERT_BACKEND", "auto")
        origin = "CMSBERT_BACKEND"
    if backend not in BACKENDS:
        raise ValueError(f"{origin}={backend!r} is not a backend; choose one of {', '.join(BACKENDS)}.")
    return backend


def request(backend: str = "auto") -> str:
    """What :func:`requested_backend` obeyed, as the user wrote it: for errors."""
    name = requested_backend(backend)
    return f'backend="{name}"' if backend == name else f"CMSBERT_BACKEND={name} in the environment"


def advice(backend: str = "auto") -> str:
    """What to do where that backend cannot run: for errors."""
    return 'use backend="auto" or "torch"' if backend != "auto" else "unset CMSBERT_BACKEND, or set it to auto or torch"


@torch.compiler.assume_constant_result  # while torch.compile traces, the answer is asked for, not the way to it
def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run on instructions meant for them, and not far slower than in float32.

    GPUs: True. CPUs: what oneDNN needs (AVX-512 or Arm's bfloat16 instructions); without them PyTorch falls back to
    loops that are tens of times slower than float32. A build of PyTorch that cannot tell counts as True.
    """
    if device.type != "cpu":
        return True
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a private name, and builds without oneDNN have none
        return True
