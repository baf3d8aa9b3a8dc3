"""Counting instructions of machine code: on a listing made by hand. What compiles says is in tests/bench/test_model."""

from pathlib import Path

import pytest

from tests.kernels import counts
from tests.kernels.counts import Counts, Instruction

SOURCE = """\
def scale(x):
    return 2 * x


def _sum_kernel(x):
    total = 0
    for i in range(10):
        for j in range(3):
            total += scale(x[i, j])
    return total
"""

LISTING = """
sum_kernel:
.text.sum_kernel:
	//## File "{path}", line 6
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
	//## File "{path}", line 7
        /*0010*/                   LDG.E.U16 R0, desc[UR4][R2.64] ;
.L_x_0:
	//## File "{path}", line 2
        /*0020*/                   HMMA.16816.F32.BF16 R4, R4, R8, RZ ;
	//## File "{path}", line 9
        /*0030*/              @!P0 BRA `(.L_x_0) ;
	//## File "{path}", line 7
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/              @!P2 BRA `(.L_x_2) ;
	//## File "{path}", line 10
        /*0060*/              @!P2 STG.E.U16 desc[UR4][R2.64], R0 ;
.L_x_2:
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   BRA `(.L_x_3);
        /*0090*/                   NOP;
"""


@pytest.fixture
def listing(tmp_path: Path) -> list[Instruction]:
    source = tmp_path / "kernels.py"
    source.write_text(SOURCE)
    return counts.parse(LISTING.replace("{path}", str(source)))


def test_loops_are_named_by_the_source(listing: list[Instruction]) -> None:
    outer, inner = ("sum.i",), ("sum.i", "sum.j")
    assert listing == [
        Instruction("MOV", ()),
        Instruction("LDG.E.U16", outer),
        Instruction("HMMA.16816.F32.BF16", inner),
        Instruction("BRA", inner),
        Instruction("BRA", outer),
        Instruction("BRA", ()),
        Instruction("STG.E.U16", ()),
        Instruction("EXIT", ()),
    ]
    assert counts.loops(listing) == {(): 4, outer: 2, inner: 2}


def test_loops_run_as_often_as_they_are_said_to(listing: list[Instruction]) -> None:
    found = counts.count(listing, {"sum.i": 10, "sum.j": 3})
    assert found == Counts(instructions=4 + 10 * (2 + 3 * 2), in_products=60, products=30, narrow_loads=10)
    with pytest.raises(KeyError, match=r"sum\.j"):
        counts.count(listing, {"sum.i": 10})
