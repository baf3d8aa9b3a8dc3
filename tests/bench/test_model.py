"""The model of the kernels' times: its arithmetic, and limits of its counts on sm_90."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench import lines, names
from bench.gpu import model
from bench.gpu.model import Attention, Kernel, Loss
from tests.kernels import aot, counts
from tests.kernels.aot import needs_compiler
from tests.kernels.test_cms_attention_compile import REAL, Case, launches

# Before tiles by length, aligned rows and one exponential (Triton 3.6): instructions of all warps for 1,024 utterances
# of MOSI's lengths forward, and those of a warp outside a tile's products.
BEFORE = {"attention": 217.6e6, "statistics": 3724, "gradient_tile": 2960}


def test_a_kernel_takes_as_long_as_its_instructions_take_to_issue() -> None:
    kernel = Kernel("k", 1000.0, warps=4, programs=1320, registers=250, narrow_loads=0.0)
    assert kernel.blocks == 2
    # Two programs of four warps: two warps for each of four schedulers, at 3/8 instructions a cycle.
    cycles = 1320 / 132 * 1000 * 4 / 4 / 0.75
    assert kernel.seconds == pytest.approx(cycles / 1.755e9)
    assert kernel._replace(registers=20).blocks == 16
    crowded = kernel._replace(registers=20).seconds  # a scheduler has its limit
    assert crowded == pytest.approx(kernel.seconds * 0.75 / 0.9)
    attention = Attention(8, False, [kernel, kernel], floor=1e-9, copies=1e-6)
    assert attention.seconds == pytest.approx(2 * kernel.seconds + 1e-6)
    assert attention._replace(floor=1.0).seconds == pytest.approx(1.0, rel=1e-5)
    assert attention.instructions == 2 * 1000 * 4 * 1320


def test_sequences_take_the_lowest_tile_that_holds_them() -> None:
    assert model.classes([1, 16, 17, 64], (16, 32, 64)) == {16: 0.5, 32: 0.25, 64: 0.25}
    assert model.classes([1, 16], (16, 32, 64)) == {16: 1.0}


def test_launches_are_hidden_where_the_device_takes_longer() -> None:
    loss = Loss(4096, {}, {"statistics": 1e-3, "finish": 1e-3}, launches=10)
    assert loss.seconds == 2e-3
    assert loss._replace(launches=1000).seconds == 1000 * model.LAUNCH
    assert loss.share == pytest.approx(2 * 4 * 3 * 4096**2 * 768 / 800e12 / 2e-3)


def test_measurements_stand_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    for case, busy in (
        (names.attention_case("mosi", 1024, False), 123.4e-6),
        (names.contrastive_case(32768, 768, smoothed=True), 56.7e-3),
    ):
        lines.append(results, kind="kernels", suite="any", case=names.by_kernel(case), busy=busy)
    lines.append(results, kind="stage", name="smoke")
    monkeypatch.setattr(model, "attention", lambda batch, backward: Attention(batch, backward, [], 1e-5, 1e-6))
    monkeypatch.setattr(model, "epilogues", dict)
    assert model.main(["--measured", str(results)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (attention,) = (row for row in rows if row[:2] == ["1024", "forward"])
    assert attention[2:6] == ["10.0", "11", "123.4", "91%"]
    assert [row[4] for row in rows if row[0] == "1024" and row[1] == "both"] == ["-"]
    assert [row[2] for row in rows if row[0] == "32768"] == ["56.7"]
    for wrong in (["speed"], ["--measured", str(tmp_path / "none.jsonl")]):
        with pytest.raises(SystemExit) as stopped:
            model.main(wrong)
        assert stopped.value.code == 2


@needs_compiler
def test_attention_on_sm_90() -> None:
    """At most a quarter of the instructions; no row of frames or weights is loaded two bytes at a time."""
    found = model.attention(1024, backward=False)
    (kernel,) = found.kernels
    assert found.instructions <= BEFORE["attention"] / 4
    # Left are the token and frame gates, which are vectors; rows of 47 and 74 numbers would be hundreds.
    assert kernel.narrow_loads < 24
    assert found.copies > 0
    assert model.attention(1024, backward=False, lengths=[16] * 1024).instructions < found.instructions


@needs_compiler
def test_the_loop_over_heads_loads_no_single_numbers() -> None:
    case = Case(16, 64, "bfloat16", REAL, frames=16, dropout=0.0, batch=1024)
    (launch,) = (launch for launch in launches(case, "sm_90") if launch.name == "short_forward")
    code = counts.disassemble(aot.compile_launch(launch, "sm_90").asm["cubin"])
    heads = [i.opcode for i in code if "forward.i_head" in i.loops]
    assert sum(opcode.startswith("LDG.E.128") for opcode in heads) >= 4
    assert not [opcode for opcode in heads if opcode.startswith("LDG.E.U16")]


@needs_compiler
def test_the_loss_on_sm_90() -> None:
    """Epilogues at most half of what they were, and with that 60 % of the matrix rate at 32,768 rows."""
    counted = model.epilogues()
    assert set(counted) == {"statistics", "gradient_tile"}
    for name, (outside, _) in counted.items():
        assert 100 < outside <= BEFORE[name] / 2
    found = model.loss(32768, counted)
    assert found.share >= 0.6
    assert found.launches < 500
