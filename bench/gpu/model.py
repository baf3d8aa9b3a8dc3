"""What the kernels should cost on an H200, from counts of their machine code, to be compared with measurements.

::

    python -m bench.gpu.model              # both tables, by the Triton that is installed; a minute of compiling
    python -m bench.gpu.model attention --measured bench/results/gpu/results.jsonl

No GPU is needed. Kernels are compiled ahead of time for sm_90, and their instructions counted
(``tests/kernels/counts.py``). The model is coarse, and its assumptions are the constants below:

- An attention kernel takes as long as its instructions take to issue, or its bytes to move, whichever is longer.
- A tile of the loss takes its products, at the attainable matrix rate, and then what is outside them, one after the
  other: one program fills a multiprocessor. Tiles without related labels and off the diagonal are what is counted.
- A launch of the loss costs its host ``LAUNCH`` seconds, hidden where the device takes longer. Attention's launches are
  not counted.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench import lines, names
from bench.workload import attention_bytes, contrastive_flops, draw_lengths

TARGET = "sm_90"
PROCESSORS, SCHEDULERS, CLOCK = 132, 4, 1.755e9
BYTES_PER_SECOND, FLOPS_PER_SECOND = 4.0e12, 800e12  # attainable
REGISTERS, THREADS = 65536, 2048  # of a multiprocessor
# A warp issues an instruction every 8/3 cycles, for it waits for operands and memory; a scheduler at most nine in ten.
PER_WARP, PER_SCHEDULER = 3 / 8, 0.9
LAUNCH = 4e-6
SHORT_BATCHES = (32, 128, 1024, 4096)
LOSS_ROWS = (4096, 32768)
SIZE = 768


class Kernel(NamedTuple):
    """A launch's share of a prediction."""

    name: str
    instructions: float  # of a warp, on average over programs
    warps: int
    programs: int
    registers: int
    narrow_loads: float  # of 16 bits, a warp

    @property
    def blocks(self) -> int:
        """Programs that a multiprocessor holds at a time, by registers."""
        threads = 32 * self.warps
        return max(1, min(REGISTERS // (-(-self.registers // 8) * 8 * threads), THREADS // threads))

    @property
    def seconds(self) -> float:
        """Until all instructions are issued."""
        resident = self.blocks * self.warps / SCHEDULERS
        rate = PROCESSORS * SCHEDULERS * CLOCK * min(PER_SCHEDULER, resident * PER_WARP)
        return self.instructions * self.warps * self.programs / rate


class Attention(NamedTuple):
    """A forward pass, or one with its backward pass, over a batch."""

    batch: int
    backward: bool
    kernels: list[Kernel]
    floor: float  # seconds that its bytes take
    copies: float  # seconds that copies into aligned rows take

    @property
    def seconds(self) -> float:
        return max(self.floor, sum(kernel.seconds for kernel in self.kernels)) + self.copies

    @property
    def instructions(self) -> float:
        """Of all warps."""
        return sum(k.instructions * k.warps * k.programs for k in self.kernels)


def attention(batch: int, backward: bool, lengths: Sequence[int] | None = None) -> Attention:
    """Short sequences in bfloat16, packed, as many frames as tokens; their lengths are MOSI's."""
    from tests.kernels import aot, counts
    from tests.kernels.test_cms_attention_compile import REAL, Case, launches

    lengths = draw_lengths("mosi", batch) if lengths is None else lengths
    longest = max(lengths)
    case = Case(longest, 64, "bfloat16", REAL, frames=longest, dropout=0.0, batch=batch)
    kernels, copied = [], 0
    for launch in launches(case, TARGET):
        copied += launch.name == "align" and (backward or not kernels)
        if not launch.name.startswith("short") or (launch.name != "short_forward" and not backward):
            continue
        groups = -(-12 // launch.options.get("HEADS", launch.arguments.get("HEADS", 12)))
        programs = batch * (2 if launch.name == "short_gate_backward" else groups)
        average = narrow = 0.0
        for tile, share in classes(lengths, launch.arguments["BLOCKS_N"]).items():
            one = launch._replace(arguments=launch.arguments | {"BLOCKS_N": (tile,)})
            found = counts.of_launch(one, TARGET, trips(launch))
            # Both modalities' ways are counted; a program goes one of them.
            halves = 2 if launch.name == "short_gate_backward" else 1
            average += share * found.instructions / halves
            narrow += share * found.narrow_loads / halves
        used = aot.measure(aot.program_of(launch, TARGET), TARGET)
        warps = launch.options["num_warps"]
        kernels.append(Kernel(launch.name, average, warps, programs, used.registers, narrow))
    rows = (sum(lengths) + 12 * 64) * (sum(REAL) + sum(-(-size // 16) * 16 for size in REAL))  # read and written
    floor = attention_bytes(lengths, lengths, backward, 2) / BYTES_PER_SECOND
    return Attention(batch, backward, kernels, floor, copied * 2 * rows / BYTES_PER_SECOND)


def classes(lengths: Sequence[int], tiles: Sequence[int]) -> dict[int, float]:
    """What share of the sequences takes each height of tile."""
    found = dict.fromkeys(tiles, 0.0)
    for n in lengths:
        found[min(tile for tile in tiles if tile >= min(n, max(tiles)))] += 1 / len(lengths)
    return {tile: share for tile, share in found.items() if share}


class Trips(dict[str, float]):
    """How often loops run: once unless named; those over rows of no sequence never."""

    def __missing__(self, name: str) -> float:
        return 0.0 if name.startswith("zero_") else 1.0


def trips(launch: Any) -> Trips:
    """Loops of a launch of short sequences, whose frames fit into one tile."""
    given = launch.arguments | launch.options
    found = Trips({"forward.i_head": given.get("HEADS", 1), "backward.i_head": given.get("HEADS", 1)})
    if "BLOCK_C" in given:
        found["gate_backward.i_c"] = given["hidden_size"] / given["BLOCK_C"]
    return found


class Loss(NamedTuple):
    """The contrastive loss and its gradient."""

    rows: int
    epilogues: dict[str, float]  # instructions of a warp for each tile, outside its products
    parts: dict[str, float]  # seconds by kernel
    launches: int

    @property
    def seconds(self) -> float:
        return max(sum(self.parts.values()), self.launches * LAUNCH)

    @property
    def share(self) -> float:
        """Of the attainable matrix rate."""
        return contrastive_flops(self.rows, SIZE) / FLOPS_PER_SECOND / self.seconds


@contextmanager
def unrelated_tiles() -> Iterator[None]:
    """Compiles kernels of the loss for tiles off the diagonal whose labels are far apart: nearly all, at many rows."""
    import triton

    from cmsbert_fast.kernels.contrastive import gradients, statistics

    @triton.jit
    def may_be_related(rows, i_first, i_last, columns, j_first, j_last, reach, SORTED):
        return False

    @triton.jit
    def meets_diagonal(first_i, first_j, diagonal, BM, BN):
        return False

    with pytest.MonkeyPatch.context() as patch:
        for module in (gradients, statistics):
            patch.setattr(module, "may_be_related", may_be_related)
            patch.setattr(module, "meets_diagonal", meets_diagonal)
        yield


def epilogues() -> dict[str, tuple[float, Any]]:
    """By kernel of the loss of many rows: instructions of a warp outside its products, and the launch."""
    from tests.kernels import aot, counts
    from tests.kernels.test_contrastive_compile import Case, launches

    found = {}
    with unrelated_tiles():
        for launch in launches(Case(4096, SIZE, "bfloat16", learned=False), TARGET):
            if launch.name in ("statistics", "gradient_tile"):
                code = counts.disassemble(aot.compile_launch(launch, TARGET).asm["cubin"])
                # What statistics does once a group of tiles is not counted.
                around = "statistics.column" if launch.name == "statistics" else ""
                outside = [i for i in code if "products.k" not in i.loops and (not around or around in i.loops)]
                found[launch.name] = float(len(outside)), launch
    return found


def loss(rows: int, counted: dict[str, tuple[float, Any]]) -> Loss:
    """Three modalities of 768 numbers in bfloat16, with labels and a fixed temperature."""
    parts = {}
    for name, (outside, launch) in counted.items():
        size = {key: launch.arguments[key] for key in ("BM", "BN")}
        tiles = (3 if name == "statistics" else 6) * -(-rows // size["BM"]) * -(-rows // size["BN"])
        products = 2 * size["BM"] * size["BN"] * SIZE / (FLOPS_PER_SECOND / PROCESSORS)
        warps = launch.options["num_warps"]
        issue = outside * warps / (SCHEDULERS * CLOCK * min(PER_SCHEDULER, warps / SCHEDULERS * PER_WARP))
        parts[name] = tiles * (products + issue) / PROCESSORS
    parts["gradient_product"] = 6 * 2.0 * rows * rows * SIZE / FLOPS_PER_SECOND
    strips, splits = plan(rows)
    parts["finish"] = 3 * rows * SIZE * (4 * splits + 2 * 2) / BYTES_PER_SECOND
    return Loss(rows, {name: outside for name, (outside, _) in counted.items()}, parts, 3 * strips + 12)


def plan(rows: int) -> tuple[int, int]:
    """Strips of the backward pass, and splits of its products."""
    import torch

    from cmsbert_fast.kernels.contrastive import call, gradients

    z = torch.empty(rows, SIZE, dtype=torch.bfloat16, device="meta")
    side = call.side([z] * 3, None, torch.empty(3, rows, device="meta"), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call, "device_class", lambda device: TARGET)
        tile, product = (call.tile(name, side, side) for name in ("gradient_tile", "gradient_product"))
    planned = gradients.plan(side, side, tile, product)
    return -(-rows // planned.strip), planned.splits


def read_measured(path: Path | None) -> dict[str, float]:
    """Seconds that kernels were busy, by case, from a file of :mod:`bench.gpu`."""
    found = [] if path is None else lines.read(path)
    return {line["case"]: line["busy"] for line in found if line["kind"] == "kernels"}


def beside(measured: dict[str, float], case: str, unit: float) -> str:
    """What was measured of a case; "-" if nothing was."""
    seconds = measured.get(names.by_kernel(case))
    return "-" if seconds is None else f"{seconds / unit:.1f}"


def print_attention(measured: dict[str, float]) -> None:
    print("CMS attention, MOSI's lengths, bfloat16, H = 12, d_h = 64; us")
    print(
        "batch pass      floor  model  measured  share  instructions  by kernel: instructions x warps, blocks, narrow"
    )
    for batch in SHORT_BATCHES:
        for backward in (False, True):
            found = attention(batch, backward)
            of_kernels = ", ".join(
                f"{k.name} {k.instructions:.0f} x {k.warps}, {k.blocks}, {k.narrow_loads:.0f}" for k in found.kernels
            )
            print(
                f"{batch:5} {'both' if backward else 'forward':7} {found.floor * 1e6:7.1f} {found.seconds * 1e6:6.0f} "
                f"{beside(measured, names.attention_case('mosi', batch, backward), 1e-6):>9} "
                f"{found.floor / found.seconds:6.0%} {found.instructions / 1e6:10.1f} M  {of_kernels}"
            )


def print_loss(measured: dict[str, float]) -> None:
    print("contrastive loss and gradient, d = 768, bfloat16; ms")
    print("  rows  model  measured  share  launches  by kernel")
    counted = epilogues()
    print("        outside products:", ", ".join(f"{name} {outside:.0f}" for name, (outside, _) in counted.items()))
    for rows in LOSS_ROWS:
        found = loss(rows, counted)
        parts = ", ".join(f"{name} {seconds * 1e3:.2f}" for name, seconds in found.parts.items())
        print(
            f"{rows:6} {found.seconds * 1e3:6.2f} "
            f"{beside(measured, names.contrastive_case(rows, SIZE, smoothed=True), 1e-3):>9} "
            f"{found.share:6.0%} {found.launches:9}  {parts}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    tables = {"attention": print_attention, "loss": print_loss}
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.model", description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="table", help=f"{' or '.join(tables)}; default: both")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="results.jsonl of bench.gpu, to lay beside")
    options = parser.parse_args(argv)
    if unknown := set(options.tables) - set(tables):
        parser.error(f"no table is called {', '.join(sorted(unknown))}; choose from {', '.join(tables)}")
    if options.measured is not None and not options.measured.exists():
        parser.error(f"{options.measured} does not exist")
    for name in options.tables or tables:
        tables[name](read_measured(options.measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
