"""Finds better rows for the table of the CMS attention kernels. Opt-in: nothing is ever tuned on the user's time.

::

    python -m cmsbert_fast.kernels.tune_cms_attention --tokens 50 --head-size 64 --dtype bfloat16
    python -m cmsbert_fast.kernels.tune_cms_attention --tokens 50 --head-size 64 --dtype bfloat16 --write

One kernel after the other is given each of its candidates while the others keep their configuration; what is timed is
the whole forward or backward pass, replayed as a CUDA graph, so that no launch overhead counts. A candidate that does
not fit the device, does not compile, or changes the result beyond rounding, is passed over. ``--write`` puts the
winners into ``cms_attention_table.json`` as rows of this very device; renew the budget of registers afterwards.
"""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from cmsbert_fast.kernels import cms_attention as kernels
from torch import Tensor

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


def tune(
    call: kernels.Call, d_out: Tensor, milliseconds: Timer, left_out: Counter[str] | None = None
) -> dict[str, dict[str, int]]:
    """The fastest configuration found for each kernel that ``call`` launches, where it beats the table's by 2 %.

    Args:
        call: What to tune for.
        d_out: Gradient of z.
        milliseconds: Times a function.
        left_out: Gets the number of candidates of each kernel that do not fit the device or do not compile.
    """
    left_out = Counter() if left_out is None else left_out
    committed = kernels.configuration
    chosen: dict[str, dict[str, int]] = {}
    launched: list[str] = []

    def choose(kernel: str, *key: Any) -> dict[str, int]:
        launched.append(kernel)
        return chosen.get(kernel) or committed(kernel, *key)

    wanted = (call.visual is not None, call.acoustic is not None)

    def forward() -> list[Tensor]:
        out, saved = kernels.forward(call)
        return [out, *saved]

    def backward() -> list[Tensor]:
        gradients = kernels.backward(call, d_out, out, saved, wanted)
        return [*gradients[:4], *gradients.token_gates, *gradients.frame_gates, *gradients.frames]

    kernels.configuration = choose
    try:
        out, saved = kernels.forward(call)
        for run in (forward, backward):
            launched.clear()
            expected = run()
            best = milliseconds(run)
            for kernel in dict.fromkeys(launched):
                before = chosen.get(kernel)
                for candidate in candidates(kernel):
                    chosen[kernel] = candidate
                    try:
                        elapsed = milliseconds(run) if _close(run(), expected) else float("inf")
                    except Exception as error:
                        if not _cannot_run(error):
                            raise
                        left_out[kernel] += 1
                        continue
                    if elapsed < 0.98 * best:
                        best, before = elapsed, candidate
                if before is None:
                    del chosen[kernel]
                else:
                    chosen[kernel] = before
    finally:
        kernels.configuration = committed
    return chosen


def _example(tokens: int, head_size: int, dtype: torch.dtype, batch: int, frames: int) -> tuple[kernels.Call, Tensor]:
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

    def modality(i: int, size: int) -> kernels.Modality:
        cu_f = cumulative(frames)
        total = int(cu_f[-1])
        weight = random(hidden, size) / size**0.5
        return kernels.Modality(token_gates[:, i], random(total), random(total, size), weight, cu_f, None, frames)

    call = kernels.Call(q, k, v, modality(0, 47), modality(1, 74), cu, None, tokens, "relu", head_size**-0.5, 0.0, None)
    return call, random(rows, 12, head_size)


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
    for kernel, count in left_out.items():
        print(f"{kernel}: {count} configurations left out, which do not fit the device or do not compile")
    device = kernels.device_class(call.query.device)
    tokens = {"short": kernels.SHORT_TOKENS, "medium": kernels.MEDIUM_TOKENS, "long": 1 << 30}[call.shape_class]
    rows = [
        {"kernel": kernel, "device": device, "item_size": dtype.itemsize, "tokens": tokens,
         "head_size": 64 if options.head_size <= 64 else kernels.MAX_HEAD_SIZE, "config": config}
        for kernel, config in winners.items()
    ]  # fmt: skip
    for row in rows:
        print(json.dumps(row))
    if not rows:
        print("the table's configurations are the fastest found")
    if options.write:
        key = ("kernel", "device", "item_size", "tokens", "head_size")
        replaced = {tuple(row[name] for name in key) for row in rows}
        kept = [row for row in kernels.table() if tuple(row[name] for name in key) not in replaced]
        table = sorted(
            kept + rows, key=lambda row: [row[x] for x in ("item_size", "kernel", "tokens", "head_size", "device")]
        )
        text = ",\n".join(json.dumps(row) for row in table)
        Path(kernels.__file__).with_name("cms_attention_table.json").write_text(f'{{"rows": [\n{text}\n]}}\n')


if __name__ == "__main__":
    main()
