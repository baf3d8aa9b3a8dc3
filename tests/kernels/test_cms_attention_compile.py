"""Ahead-of-time compiles of the CMS attention kernels, held to a committed budget: see :mod:`tests.kernels.aot`."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.kernels import aot
from tests.kernels.aot import Launch

DTYPES = ("float32", "float16", "bfloat16")


class Case(NamedTuple):
    """One call whose launches are compiled."""

    length: int  # longest sequence
    head_size: int
    dtype: str
    sizes: tuple[int, int]  # frame sizes, 0 = absent
    frames: int = 500
    dropout: float = 0.1
    packed: bool = True
    frames_wanted: bool = False

    def __str__(self) -> str:
        form = "packed" if self.packed else "padded"
        return f"{self.length} x {self.head_size} {self.dtype} {form}, frames {self.frames} x {self.sizes}"


REAL = (47, 74)  # MOSI
CASES = [
    *(Case(n, d, t, REAL) for n in (50, 128) for d in (64, 128) for t in DTYPES),
    *(Case(4096, d, t, (47, 709), 16384, frames_wanted=True) for d in (64, 128) for t in DTYPES),
    *(Case(n, 64, "bfloat16", (128, 128), packed=False, frames_wanted=True) for n in (64, 128)),
    Case(50, 64, "float16", (0, 74), dropout=0.0),
    Case(50, 64, "float16", (0, 0), dropout=0.0),
    Case(700, 64, "float16", (0, 0), packed=False),
]
# Every kernel of the three shape classes, on targets in turn.
QUICK = [
    (Case(50, 64, "bfloat16", REAL), "sm_90"),
    (Case(128, 64, "float32", REAL), "sm_80"),
    (Case(128, 64, "float16", REAL), "gfx942"),
    (Case(4096, 64, "bfloat16", (47, 709), 16384, frames_wanted=True), "sm_86"),
    (Case(700, 64, "float16", (0, 0), packed=False), "sm_100"),
]


def launches(case: Case, target: str) -> list[Launch]:
    """The kernels a call launches on ``target``, with their arguments."""
    import torch
    from cmsbert_fast.kernels import cms_attention as kernels

    n, d, heads, batch, dtype = case.length, case.head_size, 12, 2, getattr(torch, case.dtype)
    hidden = heads * d
    lead = (2 * n,) if case.packed else (batch, n)
    frame_lead = (2 * case.frames,) if case.packed else (batch, case.frames)
    cu = torch.tensor([0, n, 2 * n], dtype=torch.int32) if case.packed else None
    # q, k, v and both token gates as a model makes them: columns of one projection, rounded up to 16.
    projected = torch.zeros(*lead, 3 * hidden + 16, dtype=dtype)
    q, k, v = projected[..., : 3 * hidden].unflatten(-1, (3, heads, d)).unbind(-3)

    def modality(i: int, size: int) -> Any:
        if size == 0:
            return None
        return kernels.Modality(
            projected[..., 3 * hidden + i],
            torch.zeros(frame_lead, dtype=dtype),
            torch.zeros(*frame_lead, size, dtype=dtype),
            torch.zeros(hidden, size, dtype=dtype),
            None if cu is None else torch.tensor([0, case.frames, 2 * case.frames], dtype=torch.int32),
            None if case.packed else torch.ones(frame_lead, dtype=torch.bool),
            case.frames,
        )

    visual, acoustic = modality(0, case.sizes[0]), modality(1, case.sizes[1])
    mask = None if case.packed else torch.ones(lead, dtype=torch.bool)
    seed = torch.zeros(1, dtype=torch.int64)
    call = kernels.Call(q, k, v, visual, acoustic, cu, mask, n, "sigmoid", d**-0.5, case.dropout, seed)

    def forward_and_backward() -> None:
        out, saved = kernels.forward(call)
        kernels.backward(call, torch.zeros(q.shape, dtype=dtype), out, saved, (case.frames_wanted,) * 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "device_class", lambda device: target)
        return aot.record(forward_and_backward)


def spill_rule(case: Case, target: str, kernel: str) -> int | None:
    """Heads of 64 do not spill on sm_80 and sm_90.

    Triton 3.6 keeps one number of one float32 kernel in memory, 3.7 (the budget's) none; tiles without would be slower.
    """
    if case.head_size > 64 or target not in ("sm_80", "sm_90"):
        return None
    return 8 if (kernel, case.dtype) == ("attention_backward_key", "float32") else 0


SUITE = aot.Suite(CASES, QUICK, launches, spill_rule, Path(__file__).with_name("cms_attention_budget.json"))


def test_registers_spills_and_shared_memory() -> None:
    aot.run_quick("cms_attention")
