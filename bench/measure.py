"""How it is measured: contenders take turns in random order within one process; what is compared is the median of
per-round ratios, with a bootstrap interval.

Times measured one after the other on a shared machine differ from themselves by tens of percent; within a round they
do not.
"""

import functools
import gc
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import transformers
from torch import Tensor

from bench import peak
from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.ops.capability import has_bfloat16_products, has_matrix_unit

RESAMPLES = 2000
NO_BFLOAT16 = "this processor has no bfloat16 instructions"


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, by CUDA events on a GPU."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph: launches cost nothing, what is left is the device's own time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    current = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            run()
    finally:
        torch.cuda.set_stream(current)  # a capture that fails leaves its own
    return graph.replay


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that one call holds at a time, beyond those that are there before it: tensors, and on a CPU what the
    C++ kernels hold beside them.

    Gradients that earlier calls left are dropped first: a step that replaces them would otherwise free memory that
    nobody saw it take.
    """
    gc.collect()
    for parameter in [x for x in gc.get_objects() if type(x) is torch.nn.Parameter]:
        parameter.grad = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    library.most_scratch_bytes()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    scratch = library.most_scratch_bytes()
    held = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak + scratch


def saved_for_backward(forward: Callable[[], object], parameters: Sequence[Tensor]) -> int:
    """Bytes of activations that a forward pass keeps for the backward pass; parameters are not activations."""
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()  # alive until counted: a freed storage's address may be given away again
    total = sum(kept.values())
    del output
    return total


def profile(run: Callable[[], object], device: torch.device, repeats: int = 5) -> dict[str, float]:
    """Seconds a call that each operator takes by itself, the slowest first: on the GPU by kernel, on the CPU by
    ATen's or our operator."""
    for _ in range(2):
        run()
    synchronize(device)
    on_gpu = device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(repeats):
            run()
        synchronize(device)
    own = {}
    for event in profile.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds:
            own[event.key] = microseconds * 1e-6 / repeats
    return dict(sorted(own.items(), key=lambda item: -item[1]))


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    fewest: int = 5,
    most: int = 101,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Times every contender once a round, in random order, for about ``seconds``; the caller has warmed them up.

    Args:
        pause: Seconds before each call.

    Returns:
        Seconds of each call by contender; entry k of every list belongs to round k.
    """
    names = list(contenders)
    results: dict[str, list[float]] = {name: [] for name in names}
    chance = random.Random(0)
    begin = time.perf_counter()
    for k in range(most):
        if k >= fewest and time.perf_counter() - begin > seconds:
            break
        for name in chance.sample(names, len(names)):
            if pause:
                time.sleep(pause)
            results[name].append(timed(contenders[name], device))
    return results


def _interval(statistic: Callable[[np.ndarray], np.ndarray], rounds: int) -> tuple[float, float]:
    picks = np.random.default_rng(0).integers(0, rounds, (RESAMPLES, rounds))
    values = np.array([statistic(pick) for pick in picks])
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Median of ours / theirs round by round, and the ends of its 95 % bootstrap interval."""
    ratios = np.array(ours) / np.array(theirs)
    low, high = _interval(lambda pick: np.median(ratios[pick]), len(ratios))
    return float(np.median(ratios)), low, high


def exponent(sizes: Sequence[float], seconds: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """k of ``time = c size^k`` by least squares on medians in logarithms, with its 95 % bootstrap interval.

    Args:
        sizes: One number a contender.
        seconds: For each of them its rounds.
    """
    times = np.array(seconds)
    x = np.log(sizes)

    def slope(pick: np.ndarray) -> np.ndarray:
        return np.polyfit(x, np.log(np.median(times[:, pick], axis=1)), 1)[0]

    low, high = _interval(slope, times.shape[1])
    return float(slope(np.arange(times.shape[1]))), low, high


def machine(device: torch.device) -> dict[str, object]:
    """What the machine is, and what it can do at best, measured: copies (read + written bytes) and matrix products.

    A CPU's matrix rate is that of its multiply-add instructions, which PyTorch's products may not reach.
    """
    facts: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = None
    # Larger than any cache; of the several repeats the best counts: it is a ceiling.
    source = torch.randn(2**27 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    facts["copy_bytes_per_second"] = 2 * source.nbytes / _best(functools.partial(target.copy_, source), device)
    del source, target
    size = 8192 if device.type == "cuda" else 2048
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        if dtype == torch.bfloat16 and not has_bfloat16_products(device):
            size = 256  # seconds a product otherwise
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rate = 2 * size**3 / _best(functools.partial(torch.matmul, a, b), device)
        if device.type == "cpu":
            rate = max(rate, peak.flops_per_second(dtype, torch.get_num_threads()) or 0)
        rates[str(dtype).removeprefix("torch.")] = rate
    facts["matrix_flops_per_second"] = rates
    return facts


def _best(run: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    run()
    return min(timed(run, device) for _ in range(repeats))


def _processor() -> str:
    """The processor's name with the instructions that PyTorch uses: a virtual machine may hide some."""
    name = platform.processor()
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}{' and AMX' if has_matrix_unit() else ''}"
