"""What a call costs on a device: its kernels, as a graph, launched one by one, and the host's part."""

import time
from collections.abc import Callable
from typing import Any

import torch

from bench import measure

ROUNDS = 21


def times(run: Callable[[], object], device: torch.device, rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds of one call: "eager", "graph" (None where it cannot be captured, with "why"), "host" until all is
    launched, and "kernels" by name, the slowest first; "launches" is how many the device ran.
    """
    for _ in range(min(3, rounds)):
        run()
    measure.synchronize(device)
    found: dict[str, Any] = {"eager": median(run, device, rounds), "host": host(run, device, rounds)}
    if device.type == "cuda":
        found |= as_graph(run, device, rounds)
    found |= by_kernel(run, device, min(5, rounds))
    return found


def as_graph(run: Callable[[], object], device: torch.device, rounds: int, seconds: float = 2.0) -> dict[str, Any]:
    """Seconds of one call as a CUDA "graph"; None where it cannot be captured, with "why"."""
    try:
        return {"graph": median(measure.graphed(run), device, rounds, seconds)}
    except RuntimeError as error:
        torch.cuda.synchronize()
        return {"graph": None, "why": str(error).splitlines()[0][:200]}


def median(run: Callable[[], object], device: torch.device, rounds: int, seconds: float = 2.0) -> float:
    """Median seconds of a call: of so many rounds, or of those that fit so many seconds, at least 5."""
    (times,) = measure.take_turns({"run": run}, device, seconds, fewest=min(5, rounds), most=rounds).values()
    return sorted(times)[len(times) // 2]


def host(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    measure.synchronize(device)
    begin = time.perf_counter()
    for _ in range(rounds):
        run()
    seconds = (time.perf_counter() - begin) / rounds
    measure.synchronize(device)
    return seconds


def by_kernel(run: Callable[[], object], device: torch.device, repeats: int = 5) -> dict[str, Any]:
    """ "kernels": seconds a call by name; "launches" and "busy", their sum. On a CPU: of PyTorch's operators."""
    kind = torch.profiler.ProfilerActivity.CUDA if device.type == "cuda" else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profiler:
        for _ in range(repeats):
            run()
        measure.synchronize(device)
    wanted = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    own: dict[str, float] = {}
    launches = 0
    for event in profiler.profiler.kineto_results.events():
        # The profiler notes waiting as if the device did something.
        if event.device_type() == wanted and "Sync" not in event.name():
            own[event.name()] = own.get(event.name(), 0.0) + event.duration_ns() * 1e-9 / repeats
            launches += 1
    slowest = dict(sorted(own.items(), key=lambda item: -item[1])[:20])
    return {"kernels": slowest, "launches": launches / repeats, "busy": sum(own.values())}
