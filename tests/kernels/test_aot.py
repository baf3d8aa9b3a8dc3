"""The rules that ahead-of-time compiles are held to (:mod:`tests.kernels.aot`), and what budgets alone cannot say."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.kernels import aot, test_cms_attention_compile, test_contrastive_compile, test_layer_compile
from tests.kernels.aot import FINGERPRINT, Checked, Measured, MeasuredCall, complaints, needs_compiler
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


class Pool:
    """In place of the pool of processes: calls here, and counts what was compiled."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def map(self, function: Any, jobs: list[Any]) -> list[MeasuredCall]:
        of_now = "of now"
        kernels = {"short_forward": Measured(1, 0, 1)}
        return [MeasuredCall(of_now, None if known == of_now else kernels) for *_, known in jobs]


@pytest.fixture
def budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the budget of the attention's suite lies."""
    moved = ATTENTION._replace(budget=tmp_path / "budget.json")
    monkeypatch.setattr(aot, "suite", lambda name: moved)
    monkeypatch.setattr(aot, "ProcessPoolExecutor", Pool)
    return moved.budget


@pytest.mark.parametrize("text", [None, "{}", '{"triton": "this release"}'])
def test_a_missing_budget_is_a_failure(text: str | None, budget: Path) -> None:
    """A file that is lost or empty must not read as "another release's"."""
    triton = pytest.importorskip("triton")
    if text is not None:
        budget.write_text(text.replace("this release", ".".join(triton.__version__.split(".")[:2])))
    case = ATTENTION.cases[0]
    assert "has no budget" in aot.check("cms_attention", [(case, "sm_90")], 1).complaints[0]
    assert aot.check("cms_attention", [(case, "sm_90")], 1, write=True) == ([], 1, True)
    assert json.loads(budget.read_text())[f"sm_90: {case}"] == {"fingerprint": "of now", "short_forward": [1, 0, 1]}
    assert aot.check("cms_attention", [(case, "sm_90")], 1) == ([], 0, False)


def test_only_what_changed_is_compiled(budget: Path) -> None:
    pytest.importorskip("triton")
    jobs = [(case, "sm_90") for case in ATTENTION.cases[:2]]
    aot.check("cms_attention", jobs, 1, write=True)
    lines = json.loads(budget.read_text())
    changed = f"sm_90: {ATTENTION.cases[1]}"
    lines[changed] = {"fingerprint": "of another kernel", "short_forward": [0, 0, 0]}
    lines[f"sm_90: {ATTENTION.cases[0]}"]["short_forward"] = [1, 0, 1 << 20]  # the fixed rules hold for all
    budget.write_text(json.dumps(lines))

    complaints, compiled, renewable = aot.check("cms_attention", jobs, 1)
    assert (compiled, renewable) == (1, False)
    assert [line for line in complaints if "do not fit" in line and str(ATTENTION.cases[0]) in line]
    assert [line for line in complaints if "budget 0" in line and changed in line]
    assert aot.check("cms_attention", jobs, 1, compile_all=True).compiled == 2
    assert aot.check("cms_attention", jobs, 1, write=True).compiled == 1
    assert json.loads(budget.read_text())[changed]["fingerprint"] == "of now"


@needs_compiler
def test_a_fingerprint_is_of_all_that_decides_the_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    case = test_layer_compile.Case(768, "float32")

    def fingerprint(case: Any = case, target: str = "sm_90", change: Any = lambda launch: launch) -> str:
        launch = change(LAYER.launches(case, target)[0])
        return aot.program_of(launch, target).fingerprint

    known = fingerprint()
    warps = {"num_warps": 16}
    others = [
        fingerprint(test_layer_compile.Case(768, "float16")),
        fingerprint(test_layer_compile.Case(768, "float32", dropout=False)),
        fingerprint(test_layer_compile.Case(384, "float32")),
        fingerprint(target="sm_80"),
        fingerprint(change=lambda launch: launch._replace(options=launch.options | warps)),
    ]
    assert fingerprint() == known
    with monkeypatch.context() as patch:
        patch.setattr(triton, "__version__", "0.0")
        others.append(fingerprint())
    files = aot.source_files("cmsbert_fast.kernels.residual_norm")
    assert {"residual_norm.py", "common.py"} <= {path.name for path in files}  # itself, and what it calls
    for path in files:
        changed = tmp_path / path.name
        changed.write_text(path.read_text() + "\n")
        with monkeypatch.context() as patch:
            patch.setattr(aot, "source_files", lambda _, new=changed, old=path: [new if p == old else p for p in files])
            others.append(fingerprint())
    assert fingerprint() == known
    assert len({known, *others}) == 1 + len(others)

    name, index = "layer", LAYER.cases.index(case)
    of_call = json.loads(LAYER.budget.read_text())[f"sm_90: {case}"]["fingerprint"]
    if triton.__version__ == "3.7.1":  # whose fingerprints are committed
        assert aot.measure_call((name, index, "sm_90", of_call)) == MeasuredCall(of_call, None)
    measured = aot.measure_call((name, index, "sm_90", None))
    assert measured.kernels is not None
    assert len(measured.kernels) == 4


def test_the_command_takes_everything_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, int] = {}
    all_compiled = []

    def check(name: str, jobs: list[Any], processes: int, write: bool, compile_all: bool) -> Checked:
        calls[name] = len(jobs)
        all_compiled.append(compile_all)
        return Checked(["too much"] if write else [], 0)

    monkeypatch.setattr(aot, "check", check)
    assert aot.main([]) == 0
    targets = len(aot.TARGETS)
    assert calls == {
        "cms_attention": len(ATTENTION.cases) * targets,
        "contrastive": len(CONTRASTIVE.cases) * targets,
        "layer": len(LAYER.cases) * targets,
    }
    assert not any(all_compiled)
    all_compiled.clear()
    assert aot.main(["layer", "--quick"]) == 0
    assert aot.main(["contrastive", "--all"]) == 0
    assert all_compiled == [True, True]
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
        assert re.fullmatch("[0-9a-f]{16}", kernels.pop(FINGERPRINT))
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
