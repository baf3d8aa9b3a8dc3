"""Finds better rows of the table of tiles, on a device. Opt-in: nothing is ever tuned on the user's time.

::

    python -m cmsbert_fast.kernels.tune --tokens 50 --head-size 64 --dtype bfloat16
    python -m cmsbert_fast.kernels.tune --tokens 50 --head-size 64 --dtype bfloat16 --write

Kernels of CMS attention only. One after the other is given each of its candidates while the others keep their
configuration; what is timed is the whole forward or backward pass, replayed as a CUDA graph, so that no launch overhead
counts. A candidate that does not fit the device, does not compile, or changes the result beyond rounding, is passed
over. ``--write`` puts the winners into ``tiles.json`` as rows of this very device; renew the budget of registers
afterwards (``tests/kernels/aot.py``).
"""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from torch import Tensor

from cmsbert_fast.kernels import cms_attention, common, tiles
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
    wanted = (call.visual is not None, call.acoustic is not None)
    choice = _Choice()

    def forward() -> list[Tensor]:
        out, saved = cms_attention.forward(call)
        return [out, *saved]

    def backward() -> list[Tensor]:
        return cms_attention.backward(call, d_out, out, saved, wanted).flat

    with choice.in_force():
        out, saved = cms_attention.forward(call)
        for run in (forward, backward):
            choice.launched.clear()
            run()
            best = milliseconds(run)
            for kernel in dict.fromkeys(choice.launched):
                best, refused = choice.improve(kernel, run, best, milliseconds)
                if refused:
                    left_out[kernel] += refused
    return choice.chosen


def _example(tokens: int, head_size: int, dtype: torch.dtype, batch: int, frames: int) -> tuple[Call, Tensor]:
    """A batch as MOSI makes them: lengths between a third and all of ``tokens``, frame sizes 47 and 74, 12 heads."""
    hidden = 12 * head_size
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda").to(dtype)

    def cumulative(longest: int) -> Tensor:
        lengths = torch.randint(longest // 3, longest + 1, (batch,), generator=generator, device="cuda")
        lengths[0] = longest
        return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()

    cu = cumulative(tokens)
    rows = int(cu[-1])
    # In memory as the model makes them: q, k and v by three projections, both token gates by a fourth.
    q, k, v = (random(rows, 12, head_size) for _ in range(3))
    token_gates = random(rows, 2)

    def modality(i: int, size: int) -> Modality:
        cu_f = cumulative(frames)
        total = int(cu_f[-1])
        weight = random(hidden, size) / size**0.5
        return Modality(token_gates[:, i], random(total), random(total, size), weight, cu_f, None, frames)

    call = Call(q, k, v, modality(0, 47), modality(1, 74), cu, None, tokens, "relu", head_size**-0.5, 0.0, None)
    return call, random(rows, 12, head_size)


def write(winners: list[dict[str, Any]]) -> None:
    """Puts rows into the table, in place of those with the same keys."""

    def key(row: dict[str, Any]) -> Any:
        return {name: value for name, value in row.items() if name != "config"}

    replaced = [key(row) for row in winners]
    families = dict(tiles.table())
    families[FAMILY] = [row for row in families[FAMILY] if key(row) not in replaced] + winners
    tiles.write(families)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50, help="longest sequence")
    parser.add_argument("--frames", type=int, default=50, help="most frames of a sequence")
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="bfloat16")
    parser.add_argument("--write", action="store_true", help="put the winners into the table")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    call, d_out = _example(options.tokens, options.head_size, dtype, options.batch, options.frames)
    left_out: Counter[str] = Counter()
    winners = tune(
        call, d_out, lambda run: triton.testing.do_bench_cudagraph(run, rep=50, return_mode="median"), left_out
    )
    for kernel, number in left_out.items():
        print(f"{kernel}: {number} configurations left out, which do not fit the device or do not compile")
    tokens = {"short": SHORT_TOKENS, "medium": MEDIUM_TOKENS, "long": 1 << 30}[call.shape_class]
    at_most = {"tokens": tokens, "head_size": 64 if options.head_size <= 64 else MAX_HEAD_SIZE}
    where = {"device": common.device_class(call.query.device), "item_size": dtype.itemsize, "at_most": at_most}
    rows = [{"kernel": kernel, **where, "config": config} for kernel, config in winners.items()]
    for row in rows:
        print(json.dumps(row))
    if not rows:
        print("the table's configurations are the fastest found")
    if options.write:
        write(rows)


if __name__ == "__main__":
    main()
