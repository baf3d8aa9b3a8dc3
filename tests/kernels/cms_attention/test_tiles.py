"""The table of tile sizes, the tuner that fills it, and the precision of float32 products."""

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsbert_fast.ops.attention import triton as attention_triton
from cmsbert_fast.ops.capability import HAS_TRITON
from tests.interpreter import INTERPRETED
from tests.kernels.cms_attention.cases import DEVICE, runs_kernels


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_table_serves_every_call_with_what_its_kernel_takes() -> None:
    tiles = attention_triton.kernels.launch.tiles
    table = tiles.table()["cms_attention"]
    for row in table:
        kernel = getattr(attention_triton.kernels.launch, f"{row['kernel']}_kernel")
        assert set(row["config"]) <= {*kernel.arg_names, "num_warps", "num_stages"}
    longest = {"short": 64, "medium": 128}
    for name in {row["kernel"] for row in table}:
        for item_size in (2, 4):
            if item_size == 4 and name.startswith("short"):
                continue
            tokens = longest.get(name.split("_")[0], 1 << 20)
            for head_size, (width, padded) in itertools.product((1, 64, 65, 128), ((192, 0), (192, 1), (256, 0))):
                sizes = {"tokens": tokens, "head_size": head_size, "batch": 128, "width": width, "padded": padded}
                config = tiles.configuration("cms_attention", name, "sm_90", item_size, **sizes)
                assert config["num_warps"] in (4, 8)
    with pytest.raises(LookupError, match="no row"):
        tiles.configuration("cms_attention", "short_forward", "sm_90", 2, tokens=65, head_size=64)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("backwards", [False, True])
def test_the_tightest_row_of_the_table_wins_before_the_device(backwards: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = attention_triton.kernels.launch.tiles
    rows = [
        {
            "kernel": "new",
            "device": device,
            "item_size": 2,
            "at_most": {"tokens": tokens, "head_size": head_size},
            "config": config,
        }
        for device, tokens, head_size, config in (
            ("*", 64, 64, {"num_warps": 1}),
            ("sm_90", 64, 128, {"num_warps": 2}),
            ("*", 64, 128, {"num_warps": 4}),
            ("sm_90", 128, 64, {"num_warps": 8}),
        )
    ]
    monkeypatch.setattr(tiles, "table", lambda: {"family": rows[::-1] if backwards else rows})
    found = {}
    for tokens, head_size in ((50, 64), (50, 65), (65, 64)):
        for device in ("sm_90", "sm_80"):
            with contextlib.suppress(LookupError):
                # Not the cached function: what it says of this table must not outlast the test.
                sizes = {"tokens": tokens, "head_size": head_size}
                config = tiles.configuration.__wrapped__("family", "new", device, 2, **sizes)
                found[device, tokens, head_size] = config["num_warps"]
    assert found == {
        ("sm_90", 50, 64): 1,
        ("sm_80", 50, 64): 1,
        ("sm_90", 50, 65): 2,
        ("sm_80", 50, 65): 4,
        ("sm_90", 65, 64): 8,
    }


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_a_row_of_a_small_batch_serves_no_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And any batch is served by a row that names none: of two that fit, the one with the bound is tighter."""
    tiles = attention_triton.kernels.launch.tiles
    shared = {"kernel": "new", "item_size": 2}
    rows = [
        shared | {"device": "sm_90", "at_most": {"tokens": 64, "head_size": 64}, "config": {"num_warps": 1}},
        shared | {"device": "*", "at_most": {"tokens": 64, "head_size": 64, "batch": 128}, "config": {"num_warps": 2}},
        shared | {"device": "*", "at_most": {"tokens": 64, "head_size": 64, "batch": 32}, "config": {"num_warps": 4}},
    ]
    monkeypatch.setattr(tiles, "table", lambda: {"family": rows})
    look_up = functools.partial(tiles.configuration.__wrapped__, "family", "new", "sm_90", 2, tokens=50, head_size=64)
    assert [look_up(batch=batch)["num_warps"] for batch in (1, 32, 33, 128, 129)] == [4, 4, 2, 2, 1]


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_short_sequences_take_low_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where packed, for padded ones are all as long as the longest; on sm_90, by whose compiles they were chosen."""
    kernels = attention_triton.kernels

    def heights(device: str, longest: int, packed: bool = True, head_size: int = 64) -> tuple[int, ...]:
        monkeypatch.setattr(kernels.launch.common, "device_class", lambda _: device)
        x = torch.zeros(1, longest, 1, head_size, dtype=torch.float16)
        cu = torch.tensor([0, longest], dtype=torch.int32) if packed else None
        x = x[0] if packed else x
        call = kernels.Call(x, x, x, None, None, cu, None, longest, "relu", 1.0, 0.0, None)
        return kernels.launch.Launcher(call).short_tiles

    assert [heights("sm_90", n) for n in (16, 17, 32, 33, 64)] == [
        (16,),
        (16, 32),
        (16, 32),
        (16, 32, 64),
        (16, 32, 64),
    ]
    assert heights("sm_90", 50, packed=False) == heights("sm_90", 50, head_size=128) == (64,)
    assert heights("sm_80", 50) == heights("gfx942", 50) == (64,)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_the_tuner_draws_mosis_lengths() -> None:
    from cmsbert_fast.kernels import tune as tuner

    drawn = tuner.lengths(50, 1024)
    assert drawn.max() == 50
    assert drawn.min() >= 4
    assert drawn.double().mean() == pytest.approx(14.8, abs=0.5)
    assert not torch.equal(drawn, drawn.sort().values)
    assert tuner.lengths(128, 1).tolist() == [128]
    call, d_out = tuner.example(tuner.Workload(128, 500, 16, 3, "float32", "cpu"))
    assert call.max_length == int(call.cu_seqlens.diff().max()) == 128
    assert call.visual.max_length == int(call.visual.cu_seqlens.diff().max()) == 500
    assert d_out.shape == call.query.shape


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_the_tuner_tunes_what_training_calls_and_its_rows_serve_nothing_wider(monkeypatch: pytest.MonkeyPatch) -> None:
    from cmsbert_fast.kernels import tune as tuner

    asked: list[tuple[bool, bool]] = []
    empty = attention_triton.kernels.launch.empty_gradients
    monkeypatch.setattr(
        attention_triton.kernels.launch,
        "empty_gradients",
        lambda call, wanted: (asked.append(wanted), empty(call, wanted))[1],
    )
    tuner.kernels_of(*tuner.example(tuner.Workload(50, 50, 64, 2, "bfloat16", "cpu")))
    assert asked == [(False, False)]
    monkeypatch.setattr(tuner, "tune", lambda *_: {"short_forward": {"HEADS": 3}})
    ((row,), _) = tuner.find(tuner.Workload(50, 50, 64, 300, "bfloat16", "cpu"), 0)
    assert row["at_most"] == {"tokens": 64, "head_size": 64, "batch": 300, "width": 64 + 128, "padded": 0}
    monkeypatch.setattr(attention_triton.kernels.launch.common, "device_class", lambda _: "sm_80")
    ((row,), _) = tuner.find(tuner.Workload(50, 50, 64, 300, "bfloat16", "cpu"), 0)
    assert row["at_most"]["padded"] == 1


@pytest.mark.skipif(not HAS_TRITON or INTERPRETED, reason="compiles; the interpreter is on or Triton is not installed")
def test_the_tuner_compiles_candidates_without_running_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton is asked for: the kernel in question only, warming up, with the candidate's configuration."""
    from triton.runtime.jit import JITFunction

    from cmsbert_fast.kernels import tune as tuner

    asked: list[tuple[str, bool, dict[str, int]]] = []

    def run(self: Any, *_: Any, grid: Any, warmup: bool, **named: Any) -> None:
        asked.append((self.fn.__name__, warmup, named))

    monkeypatch.setattr(JITFunction, "run", run)
    work = tuner.Workload(50, 50, 64, 2, "bfloat16", "cpu")
    call, d_out = tuner.example(work)
    kernels = tuner.kernels_of(call, d_out)
    assert kernels == ["short_forward", "short_backward", "short_gate_backward"]
    assert asked == []
    for kernel in kernels:
        for candidate in tuner.candidates(kernel)[-2:]:
            asked.clear()
            tuner.compile_candidate(call, d_out, kernel, candidate)
            ((name, warmup, named),) = asked
            assert (name, warmup) == (f"{kernel}_kernel", True)
            assert {key: named[key] for key in candidate} == candidate


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_tf32_only_where_the_user_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = attention_triton.kernels
    monkeypatch.setattr(kernels.launch.common, "device_class", lambda device: "sm_90")

    def precision(dtype: torch.dtype = torch.float32) -> str:
        x = torch.zeros(1, 2, 1, 16, dtype=dtype)
        call = kernels.Call(x, x, x, None, None, None, None, 2, "relu", 1.0, 0.0, None)
        return kernels.launch.Launcher(call).precision

    def allow(interface: str, tf32: bool) -> None:
        if interface == "fp32_precision":
            torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
        elif interface == "allow_tf32":
            torch.backends.cuda.matmul.allow_tf32 = tf32
        else:
            torch.set_float32_matmul_precision("high" if tf32 else "highest")

    before = torch.backends.cuda.matmul.fp32_precision, torch.get_float32_matmul_precision()
    try:
        assert precision() == "split"
        for interface in ("fp32_precision", "allow_tf32", "set_float32_matmul_precision"):
            allow(interface, True)
            assert precision() == "tf32", interface
            assert precision(torch.bfloat16) == "ieee"
            allow(interface, False)
            assert precision() == "split", interface
    finally:
        torch.set_float32_matmul_precision(before[1])
        torch.backends.cuda.matmul.fp32_precision = before[0]


@runs_kernels
def test_tuner_finds_the_fastest_correct_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    from cmsbert_fast.kernels import tune as tuner

    kernels = attention_triton.kernels
    monkeypatch.setattr(tuner, "CANDIDATES", {
        "short_forward": {"HEADS": (1, 2, 3, 4, 5, 6), "BLOCK_F": (16,), "num_warps": (4,), "num_stages": (1,)},
        "short_backward": {"HEADS": (1, 2), "num_warps": (4,), "num_stages": (1,)},
        "short_gate_backward": {"BLOCK_F": (16, 32), "BLOCK_C": (16,), "num_warps": (4,), "num_stages": (1,)},
    })  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, torch.float16)

    visual = kernels.Modality(random(1, 5), random(1, 3), random(1, 3, 5), random(48, 5), None, None, 3)
    qkv = [random(1, 5, 3, 16) for _ in range(3)]
    call = kernels.Call(*qkv, visual, None, None, None, 5, "relu", 0.25, 0.0, None)
    used: dict[str, dict[str, int]] = {}
    launch = kernels.launch
    run = launch.run
    failures: dict[int, Exception] = {
        4: tuner.triton.runtime.errors.OutOfResources(2, 1, "shared memory"),
        5: RuntimeError("PassManager::run failed"),
        6: tuner.triton.compiler.errors.CompilationError("", None, "no"),
    }

    def record(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], config: dict[str, int]) -> None:
        name = kernel.fn.__name__.removesuffix("_kernel")
        if name == "short_forward" and config["HEADS"] in failures:
            raise failures[config["HEADS"]]
        used[name] = config
        run(kernel, grid, arguments, config)
        if name == "short_forward" and config["HEADS"] == 3:
            arguments["out"].zero_()  # fast and wrong

    def milliseconds(_: Callable[[], Any]) -> float:
        heads = used["short_forward"]["HEADS"], used.get("short_backward", {}).get("HEADS", 1)
        return {1: 3.0, 2: 2.0, 3: 1.0}[heads[0]] + {1: 1.0, 2: 2.0}[heads[1]]

    committed = launch.tiles.configuration

    def one_head(family: str, kernel: str, *key: Any, **sizes: int) -> dict[str, int]:
        config = committed(family, kernel, *key, **sizes)
        return dict(config, HEADS=1) if "forward" in kernel else config

    monkeypatch.setattr(launch, "run", record)
    monkeypatch.setattr(launch.tiles, "configuration", one_head)
    left_out: Counter[str] = Counter()
    found = tuner.tune(call, random(1, 5, 3, 16), milliseconds, left_out)
    assert found == {"short_forward": {"HEADS": 2, "BLOCK_F": 16, "num_warps": 4, "num_stages": 1}}
    assert left_out == {"short_forward": 3}
    failures[5] = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        tuner.tune(call, random(1, 5, 3, 16), milliseconds)
