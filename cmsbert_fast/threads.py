"""How PyTorch's threads wait for one another, which must be said before PyTorch is imported."""

import os
from collections.abc import MutableMapping

SPINS = "1000"  # some 20 us: a parallel loop's threads finish within them, where nobody disturbs


def wait_without_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes the threads of GCC's OpenMP runtime, which is PyTorch's on Linux, sleep rather than spin for milliseconds.

    A thread that spins keeps the core from the one that it waits for, as soon as other processes want the cores, too.
    The runtime reads the environment when PyTorch loads it. Where the user has said how threads wait, nothing changes.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)
