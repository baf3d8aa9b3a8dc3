"""Finds better rows of the table of tiles, on a device. Opt-in: nothing is ever tuned on the user's time.

::

    python -m cmsbert_fast.kernels.tune --tokens 50 --head-size 64 --batch 128 --dtype bfloat16
    python -m cmsbert_fast.kernels.tune --tokens 50 --head-size 64 --batch 128 --dtype bfloat16 --write

Kernels of CMS attention only. Processes first compile every candidate, on all cores. Then one kernel after the other is
given each of its candidates while the others keep their configuration; what is timed is the whole forward or backward
pass, replayed as a CUDA graph, so that no launch overhead counts. A candidate that does not fit the device, does not
compile, or changes the result beyond rounding, is passed over. ``--write`` puts the winners into ``tiles.json`` as rows
of this very device, for batches up to the one tuned; renew the budget afterwards (``tests/kernels/aot.py``).
"""

import argparse
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from cmsbert_fast.kernels import cms_attention, common, tiles
from cmsbert_fast.kernels.cms_attention import launch
from cmsbert_fast.kernels.cms_attention.call import MAX_HEAD_SIZE, MEDIUM_TOKENS, SHORT_TOKENS, Call, Modality

FAMILY = "cms_attention"
_TILES = {"num_warps": (4, 8), "num_stages": (1, 2, 3)}
CANDIDATES: dict[str, dict[str, tuple[int, ...]]] = {
    "short_forward": {"HEADS": (1, 2, 3, 4, 6, 12), "BLOCK_F": (32, 64), "num_warps": (4, 8), "num_stages": (1,)},
    "short_backward": {"HEADS": (1, 2, 3), "num_warps": (4, 8), "num_stages": (1,)},
    "short_gate_backward": {"BLOCK_F": (32, 64), "BLOCK_C": (32, 64, 128), **_TILES},
    "medium_forward": {
        "HEADS": (1, 2, 3, 4), "BLOCK_M": (32, 64), "BLOCK_N": (32, 64), "BLOCK_F": (32,), "BLOCK_C": (64,), **_TILES,
    },
    "shift_forward": {"BLOCK_N": (32, 64), "BLOCK_F": (32, 64), "BLOCK_D": (64, 128), "BLOCK_X": (64, 128), **_TILES},
    "attention_forward": {"BLOCK_M": (64, 128), "BLOCK_N": (32, 64, 128), **_TILES},
    "attention_backward_query": {"BLOCK_M": (64, 128), "BLOCK_N": (32, 64), **_TILES},
    "attention_backward_key": {"BLOCK_M": (32, 64), "BLOCK_N": (64, 128), **_TILES},
    "gate_backward_token": {"BLOCK_N": (32, 64), "BLOCK_F": (32, 64), "BLOCK_X": (32, 64), **_TILES},
    "gate_backward_frame": {"BLOCK_N": (32, 64), "BLOCK_F": (32, 64), "BLOCK_X": (32, 64), **_TILES},
}  # fmt: skip

FRAMES_WANTED = False, False  # frames are data: as training calls backward

Timer = Callable[[Callable[[], Any]], float]


def candidates(kernel: str) -> list[dict[str, int]]:
    """All configurations tried for a kernel."""
    names = CANDIDATES[kernel]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*names.values())]


def _close(a: list[Tensor], b: list[Tensor]) -> bool:
    scale = 8 * torch.finfo(a[0].dtype).eps
    return all((x - y).abs().max() <= scale * (1 + y.abs().max()) for x, y in zip(a, b, strict=True) if y.numel())


def _cannot_run(error: Exception) -> bool:
    """Whether an error is of one configuration: it does not fit the device, or does not compile.

    Triton's passes fail with a plain RuntimeError. One of the device is not the candidate's: nothing runs after it.
    """
    if isinstance(error, (triton.runtime.errors.OutOfResources, triton.compiler.errors.CompilationError)):
        return True
    return type(error).__name__ == "PTXASError" or "PassManager::run failed" in str(error)


class _Choice:
    """What the launchers are told instead of the table's configurations."""

    def __init__(self) -> None:
        self.chosen: dict[str, dict[str, int]] = {}
        self.launched: list[str] = []

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The launchers of this process ask here, not in the table."""
        committed = tiles.configuration

        def choose(family: str, kernel: str, *key: Any, **sizes: int) -> dict[str, int]:
            self.launched.append(kernel)
            return self.chosen.get(kernel) or committed(family, kernel, *key, **sizes)

        tiles.configuration = choose
        try:
            yield
        finally:
            tiles.configuration = committed

    def improve(self, kernel: str, run: Callable[[], list[Tensor]], best: float, timer: Timer) -> tuple[float, int]:
        """Tries all candidates of a kernel and keeps the fastest, if it beats ``best`` by 2 %.

        Returns:
            The time then; and how many candidates do not fit the device or do not compile.
        """
        expected, kept, left_out = run(), self.chosen.get(kernel), 0
        for candidate in candidates(kernel):
            self.chosen[kernel] = candidate
            try:
                elapsed = timer(run) if _close(run(), expected) else float("inf")
            except Exception as error:
                if not _cannot_run(error):
                    raise
                left_out += 1
                continue
            if elapsed < 0.98 * best:
                best, kept = elapsed, candidate
        if kept is None:
            del self.chosen[kernel]
        else:
            self.chosen[kernel] = kept
        return best, left_out


def tune(
    call: Call, d_out: Tensor, milliseconds: Timer, left_out: Counter[str] | None = None
) -> dict[str, dict[str, int]]:
    """The fastest configuration found for each kernel that ``call`` launches, where it beats the table's by 2 %.

    Args:
        call: What to tune for.
        d_out: Gradient of z.
        milliseconds: Times a function.
        left_out: Gets the number of candidates of each kernel that do not fit the device or do not compile.
    """
    left_out = Counter() if left_out is None else left_out
    choice = _Choice()

    def forward() -> list[Tensor]:
        out, saved = cms_attention.forward(call)
        return [out, *saved]

    def backward() -> list[Tensor]:
        return cms_attention.backward(call, d_out, out, saved, FRAMES_WANTED).flat

    with choice.in_force():
        out, saved = cms_attention.forward(call)
        for run in (forward, backward):
            choice.launched.clear()
            run()
            best = milliseconds(run)
            for kernel in [name for name in dict.fromkeys(choice.launched) if name in CANDIDATES]:
                best, refused = choice.improve(kernel, run, best, milliseconds)
                if refused:
                    left_out[kernel] += refused
    return choice.chosen


class Workload(NamedTuple):
    """What to tune for."""

    tokens: int  # of the longest sequence
    frames: int  # most frames of a sequence
    head_size: int
    batch: int
    dtype: str
    device: str = "cuda"


# Every sixteenth of CMU-MOSI's numbers of word pieces, cut at 50: the mean is 14.8.
MOSI_QUANTILES = (4, 6, 7, 8, 9, 10, 11, 11, 12, 14, 15, 16, 18, 20, 24, 30, 50)


def lengths(longest: int, batch: int) -> Tensor:
    """Lengths as CMU-MOSI has them, stretched to ``longest`` and shuffled, (batch,) int64; at least one is that."""
    known = torch.tensor(MOSI_QUANTILES, dtype=torch.float64) * (longest / MOSI_QUANTILES[-1])
    at = torch.linspace(0, len(known) - 1, batch, dtype=torch.float64)
    low = at.long().clamp(max=len(known) - 2)
    drawn = torch.lerp(known[low], known[low + 1], at - low).round().clamp(min=1).long()
    drawn[-1] = longest
    return drawn[torch.randperm(batch, generator=torch.Generator().manual_seed(0))]


def example(work: Workload) -> tuple[Call, Tensor]:
    """A batch as training on MOSI has it, with frame sizes 47 and 74 and 12 heads; and a gradient of z."""
    hidden, dtype = 12 * work.head_size, getattr(torch, work.dtype)
    generator = torch.Generator(work.device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=work.device).to(dtype)

    def cumulative(longest: int) -> Tensor:
        return torch.nn.functional.pad(lengths(longest, work.batch).cumsum(0), (1, 0)).int()

    cu = cumulative(work.tokens)
    rows = int(cu[-1])
    # In memory as the model makes them: q, k and v by three projections, both token gates by a fourth.
    q, k, v = (random(rows, 12, work.head_size) for _ in range(3))
    token_gates = random(rows, 2)

    def modality(i: int, size: int) -> Modality:
        cu_f = cumulative(work.frames)
        total = int(cu_f[-1])
        weight, frames = random(hidden, size) / size**0.5, random(total, size)
        return Modality(token_gates[:, i], random(total), frames, weight, cu_f.to(work.device), None, work.frames)

    modalities = modality(0, 47), modality(1, 74)
    of_call = (cu.to(work.device), None, work.tokens, "relu", work.head_size**-0.5, 0.0, None)
    return Call(q, k, v, *modalities, *of_call), random(rows, 12, work.head_size)


@contextmanager
def _launching_by(run: Callable[..., None]) -> Iterator[None]:
    """Every launch is handed to ``run`` instead: kernel, grid, arguments, configuration."""
    committed, launch.run = launch.run, run
    try:
        yield
    finally:
        launch.run = committed


def _launch_all(call: Call, d_out: Tensor) -> None:
    out, saved = cms_attention.forward(call)
    cms_attention.backward(call, d_out, out, saved, FRAMES_WANTED)


def kernels_of(call: Call, d_out: Tensor) -> list[str]:
    """The kernels that forward and backward launch; nothing runs."""
    found: dict[str, None] = {}
    with _launching_by(lambda kernel, *_: found.update({kernel.fn.__name__.removesuffix("_kernel"): None})):
        _launch_all(call, d_out)
    return list(found)


def compile_candidate(call: Call, d_out: Tensor, kernel: str, candidate: dict[str, int]) -> None:
    """Compiles what ``call`` launches of a kernel with one configuration; nothing runs. Fails as Triton does."""
    choice = _Choice()
    choice.chosen[kernel] = candidate

    def warm(function: Any, grid: tuple[int, ...], given: dict[str, Any], config: dict[str, int]) -> None:
        if function.fn.__name__ == f"{kernel}_kernel":
            function.warmup(grid=grid, **given, **config)

    with choice.in_force(), _launching_by(warm):
        _launch_all(call, d_out)


_kept: dict[Workload, tuple[Call, Tensor]] = {}  # of a compiling process


def _compile(job: tuple[Workload, str, dict[str, int]]) -> str | None:
    """Why a candidate does not compile; None if it does, and lies in Triton's cache."""
    work, kernel, candidate = job
    if work not in _kept:
        _kept[work] = example(work)
    try:
        compile_candidate(*_kept[work], kernel, candidate)
    except Exception as error:
        if not _cannot_run(error):
            raise
        return type(error).__name__
    return None


def compile_ahead(work: Workload, processes: int) -> int:
    """Compiles every candidate of every kernel that a workload launches, side by side; how many compile."""
    jobs = [(work, kernel, candidate) for kernel in kernels_of(*example(work)) for candidate in candidates(kernel)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return sum(reason is None for reason in pool.map(_compile, jobs, chunksize=4))


def write(winners: list[dict[str, Any]]) -> None:
    """Puts rows into the table, in place of those with the same keys."""

    def key(row: dict[str, Any]) -> Any:
        return {name: value for name, value in row.items() if name != "config"}

    replaced = [key(row) for row in winners]
    families = dict(tiles.table())
    families[FAMILY] = [row for row in families[FAMILY] if key(row) not in replaced] + winners
    tiles.write(families)


def milliseconds(run: Callable[[], Any]) -> float:
    """The device's time of a call, as a CUDA graph."""
    return triton.testing.do_bench_cudagraph(run, rep=50, return_mode="median")


def find(work: Workload, processes: int, timer: Timer = milliseconds) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows for the table that beat it on this device; and how many candidates of each kernel could not run.

    Args:
        work: What to tune for.
        processes: How many compile beforehand; 0 = each candidate is compiled when its turn comes.
        timer: Times a call.
    """
    if processes:
        compile_ahead(work, processes)
    call, d_out = example(work)
    left_out: Counter[str] = Counter()
    winners = tune(call, d_out, timer, left_out)
    tokens = {"short": SHORT_TOKENS, "medium": MEDIUM_TOKENS, "long": 1 << 30}[call.shape_class]
    at_most = {"tokens": tokens, "head_size": 64 if work.head_size <= 64 else MAX_HEAD_SIZE, "batch": work.batch}
    # Wider frames keep the table's rows; so do padded batches where they have others.
    launcher = launch.Launcher(call)
    at_most |= {"width": launcher.width, "padded": launcher.padded}
    item_size = getattr(torch, work.dtype).itemsize
    where = {"device": common.device_class(call.query.device), "item_size": item_size, "at_most": at_most}
    return [{"kernel": kernel, **where, "config": config} for kernel, config in winners.items()], left_out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50, help="longest sequence")
    parser.add_argument("--frames", type=int, default=50, help="most frames of a sequence")
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="bfloat16")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes that compile")
    parser.add_argument("--write", action="store_true", help="put the winners into the table")
    options = parser.parse_args()
    work = Workload(options.tokens, options.frames, options.head_size, options.batch, options.dtype)
    rows, left_out = find(work, options.jobs)
    for kernel, number in left_out.items():
        print(f"{kernel}: {number} configurations left out, which do not fit the device or do not compile")
    for row in rows:
        print(json.dumps(row))
    if not rows:
        print("the table's configurations are the fastest found")
    if options.write:
        write(rows)


if __name__ == "__main__":
    main()
