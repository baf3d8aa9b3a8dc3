"""What a compiled kernel executes: instructions of a warp, read from its machine code (NVIDIA).

A loop is a branch backwards. Its name is that of the source's, the function and the loop's variable ("mean_frame.i_f"),
by the line that the branch was compiled from; how often it runs is the caller's to say. Conditions are taken as met:
what is counted is the way of a program that has work.
"""

import ast
import functools
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple


class Instruction(NamedTuple):
    """One instruction: its opcode with modifiers, and the loops around it, outermost first."""

    opcode: str
    loops: tuple[str, ...]


class Counts(NamedTuple):
    """What one warp executes."""

    instructions: float
    in_products: float  # those of innermost loops with matrix products
    products: float  # matrix instructions
    narrow_loads: float  # of 16 bits, from global memory


def disassemble(cubin: bytes) -> list[Instruction]:
    """The instructions of the one kernel of a binary."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-c", "-g", file.name], check=True, capture_output=True, text=True).stdout
    return parse(text)


def parse(text: str) -> list[Instruction]:
    """The same from nvdisasm's text, with line numbers."""
    found: list[tuple[str, tuple[str, int]]] = []
    labels: dict[str, int] = {}
    line = ("", 0)
    for row in text.splitlines():
        if match := re.search(r'//## File "([^"]+)", line (\d+)', row):
            line = (match[1], int(match[2]))
        elif match := re.match(r"\s*(\.L_\w+):", row):
            labels[match[1]] = len(found)
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d\s+)?(.*?)\s*;", row):
            found.append((match[1], line))
    loops: list[tuple[int, int, str]] = []
    for i, (instruction, line) in enumerate(found):
        match = re.match(r"BRA\S*\s.*`\((\.L_\w+)\)", instruction)
        # A branch to itself is what ends a program's code.
        if match and labels.get(match[1], i) < i:
            loops.append((labels[match[1]], i, _loop_name(*line)))
    loops.sort(key=lambda loop: loop[0] - loop[1])
    opcodes = [instruction.split()[0] for instruction, _ in found]
    while opcodes and opcodes[-1] in ("NOP", "BRA"):  # what fills the last line of code
        opcodes.pop()
    return [
        Instruction(opcode, tuple(name for first, last, name in loops if first <= i <= last))
        for i, opcode in enumerate(opcodes)
    ]


@functools.cache
def _loops_of(path: str) -> list[tuple[int, int, str]]:
    """First and last line of every loop of a source, and its name."""
    found = []
    for function in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef):
            for loop in ast.walk(function):
                if isinstance(loop, ast.For):
                    name = f"{function.name.strip('_').removesuffix('_kernel')}.{ast.unparse(loop.target)}"
                    found.append((loop.lineno, loop.end_lineno or loop.lineno, name))
    return found


def _loop_name(path: str, line: int) -> str:
    """The innermost loop of the source around a line; "" where there is none."""
    around = [(last - first, name) for first, last, name in _loops_of(path) if first <= line <= last]
    return min(around, default=(0, ""))[1]


def count(instructions: list[Instruction], trips: Mapping[str, float]) -> Counts:
    """What a warp executes where loops run as often as ``trips`` says, by name.

    Raises:
        KeyError: a loop is not named.
    """
    with_products = {i.loops for i in instructions if _is_product(i) and i.loops}
    total, within, products, narrow = 0.0, 0.0, 0.0, 0.0
    for instruction in instructions:
        times = 1.0
        for name in instruction.loops:
            times *= trips[name]
        total += times
        within += times * (instruction.loops in with_products)
        products += times * _is_product(instruction)
        narrow += times * instruction.opcode.startswith(("LDG.E.U16", "LDG.E.S16"))
    return Counts(total, within, products, narrow)


def _is_product(instruction: Instruction) -> bool:
    return instruction.opcode.startswith(("HMMA", "HGMMA", "UTCHMMA"))


def loops(instructions: list[Instruction]) -> Counter[tuple[str, ...]]:
    """How many instructions each nest of loops has."""
    return Counter(i.loops for i in instructions)


def of_launch(launch: Any, target: str, trips: Mapping[str, float]) -> Counts:
    """Counts of a recorded launch (:func:`tests.kernels.aot.record`)."""
    from tests.kernels.aot import compile_launch

    return count(disassemble(compile_launch(launch, target).asm["cubin"]), trips)
