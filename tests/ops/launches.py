"""What a GPU runs, for tests of how many launches a computation takes."""

from collections.abc import Callable
from typing import Any

import torch


def launched_on_gpu(step: Callable[[], Any]) -> list[str]:
    """The names of what the device runs in ``step``, in order; an error if the host waits for it meanwhile."""
    step()  # compiles and allocates
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    events = profiler.profiler.kineto_results.events()
    # The profiler notes waiting, as the line above does, as if the device did something.
    launched = [e for e in events if e.device_type() == torch.autograd.DeviceType.CUDA and "Sync" not in e.name()]
    return [e.name() for e in sorted(launched, key=lambda e: e.start_ns())]
