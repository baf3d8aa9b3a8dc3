"""The rules that ahead-of-time compiles are held to (:mod:`tests.kernels.aot`), and what budgets alone cannot say."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.kernels import aot, test_cms_attention_compile, test_contrastive_compile, test_layer_compile
from tests.kernels.aot import Measured, complaints, needs_compiler
from tests.kernels.test_cms_attention_compile import REAL, Case

ATTENTION, CONTRASTIVE = test_cms_attention_compile.SUITE, test_contrastive_compile.SUITE
LAYER = test_layer_compile.SUITE


def test_rules_are_enforced() -> None:
    case = Case(50, 64, "float16", REAL)
    within, budget = {"k": Measured(100, 0, 1000)}, {"k": [100, 0, 1000]}

    def breaks(target: str, used: Measured, allowed: dict[str, list[int]] | None, case: Any = case) -> bool:
        return complaints(ATTENTION, case, target, {"k": used}, allowed) != []

    assert complaints(ATTENTION, case, "sm_80", within, budget) == []
    assert breaks("sm_80", within["k"], {})
    for worse in (Measured(120, 0, 1000), Measured(100, 8, 1000), Measured(100, 0, 1001), Measured(1, 0, 1 << 20)):
        assert breaks("sm_80", worse, budget)
    # Spills and shared memory have limits of their own, whatever the budget says and under any release of Triton.
    for allowed in ({"k": [100, 8, 1 << 20]}, {}, None):
        for target in ("sm_80", "sm_90"):
            assert breaks(target, Measured(1, 8, 1), allowed)
        assert breaks("sm_100", Measured(1, 0, 1 << 19), allowed)
    assert not breaks("sm_86", Measured(1, 8, 1), None)
    assert not breaks("sm_90", Measured(1, 8, 1), None, case._replace(head_size=128))
    assert CONTRASTIVE.spill_rule(None, "sm_80", "gradient_tile") == 0


@pytest.mark.parametrize("text", [None, "{}", '{"triton": "this release"}'])
def test_a_missing_budget_is_a_failure(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is lost or empty must not read as "another release's"."""
    triton = pytest.importorskip("triton")
    budget = tmp_path / "budget.json"
    if text is not None:
        budget.write_text(text.replace("this release", ".".join(triton.__version__.split(".")[:2])))
    case = ATTENTION.cases[0]
    lost = ATTENTION._replace(budget=budget)
    monkeypatch.setattr(aot, "suite", lambda name: lost)

    class Pool:
        def __init__(self, *_: Any, **__: Any):
            pass

        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def map(self, function: Any, jobs: list[Any]) -> list[dict[str, Measured]]:
            return [{"short_forward": Measured(1, 0, 1)} for _ in jobs]

    monkeypatch.setattr(aot, "ProcessPoolExecutor", Pool)
    assert "has no budget" in aot.check("cms_attention", [(case, "sm_90")], 1)[0]
    assert aot.check("cms_attention", [(case, "sm_90")], 1, write=True) == []
    assert json.loads(budget.read_text())[f"sm_90: {case}"] == {"short_forward": [1, 0, 1]}
    assert aot.check("cms_attention", [(case, "sm_90")], 1) == []


def test_the_command_compiles_everything_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: dict[str, int] = {}

    def check(name: str, jobs: list[Any], processes: int, write: bool) -> list[str]:
        compiled[name] = len(jobs)
        return ["too much"] if write else []

    monkeypatch.setattr(aot, "check", check)
    assert aot.main([]) == 0
    targets = len(aot.TARGETS)
    assert compiled == {
        "cms_attention": len(ATTENTION.cases) * targets,
        "contrastive": len(CONTRASTIVE.cases) * targets,
        "layer": len(LAYER.cases) * targets,
    }
    assert aot.main(["contrastive", "--write"]) == 1
    for wrong in (["contrastif"], ["--only", "sm_70"]):
        with pytest.raises(SystemExit) as stopped:
            aot.main(wrong)
        assert stopped.value.code != 0


@pytest.mark.parametrize("rules", [ATTENTION, CONTRASTIVE, LAYER], ids=aot.SUITES)
def test_every_call_has_a_budget_that_obeys_the_rules(rules: aot.Suite) -> None:
    budget = rules.read_budget()
    assert re.fullmatch(r"\d+\.\d+", budget.pop("triton"))
    calls = {f"{target}: {case}": (case, target) for case in rules.cases for target in aot.TARGETS}
    assert set(budget) == set(calls)
    for key, kernels in budget.items():
        case, target = calls[key]
        assert complaints(rules, case, target, {k: Measured(*used) for k, used in kernels.items()}, kernels) == []


@needs_compiler
@pytest.mark.parametrize(
    ("rules", "case", "kernel"),
    [
        (ATTENTION, Case(128, 64, "bfloat16", REAL), "medium_forward"),
        (ATTENTION, Case(4096, 64, "bfloat16", (47, 709), 16384, frames_wanted=True), "shift_forward"),
        (CONTRASTIVE, test_contrastive_compile.Case(4096, 768, "bfloat16"), "statistics"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_amd_waves_see_what_others_of_their_program_wrote(rules: aot.Suite, case: Any, kernel: str) -> None:
    """Kernels that exchange data through global memory between two barriers keep LLVM's memory model of CDNA.

    Its backend puts no ``s_waitcnt vmcnt(0)`` before ``s_barrier``, and need not: the waves of a workgroup run on one
    compute unit, whose vector L1 they share and reach in order, unless in tgsplit mode (LLVM, User Guide for AMDGPU
    Backend, Memory Model gfx942). What it needs is fences of workgroup scope around the barrier, or it may move loads
    and stores across; and that mode off.
    """
    pytest.importorskip("triton")
    launch = next(launch for launch in rules.launches(case, "gfx942") if launch.name == kernel)
    barriers = inspect.getsource(launch.kernel.fn).count("tl.debug_barrier()")
    compiled = aot.compile_launch(launch, "gfx942")
    fenced = r'fence syncscope\("workgroup"\) release[^\n]*\n\s*(tail )?call void @llvm\.amdgcn\.s\.barrier\(\)[^\n]*\n'
    fenced += r'\s*fence syncscope\("workgroup"\) acquire'
    assert barriers > 0
    assert len(re.findall(fenced, compiled.asm["llir"])) >= barriers
    assert re.findall(r"\.amdhsa_tg_split (\d)", compiled.asm["amdgcn"]) == ["0"]
