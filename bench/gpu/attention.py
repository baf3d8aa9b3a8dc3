"""Stage "attention": CMS attention at ten shapes, forward and with backward, by kernel, as a graph, one by one."""

from typing import Any, NamedTuple

import torch

from bench import names
from bench.gpu import kernels
from bench.gpu.runner import Context, each
from bench.test_attention import with_gradients
from bench.workload import HEADS, HIDDEN, AttentionBatch, attention_bytes, attention_flops, draw_lengths
from cmsbert_fast import cms_attention

SHAPES: list[tuple[str | int, int]] = [
    ("mosi", 32), ("mosi", 1024), ("mosi", 4096), (50, 1024), (128, 512), (512, 128), ("mosi", 128), (50, 32),
    (128, 32), (512, 16),
]  # fmt: skip

SHORT = 64  # tokens of one tile


class Case(NamedTuple):
    """One shape and pass."""

    kind: str | int  # "mosi" or the length of all
    batch: int
    backward: bool
    varlen: bool = False  # the backend of this name, for sequences of several tiles

    def __str__(self) -> str:
        case = names.by_kernel(names.attention_case(*self[:3]))
        return names.by_varlen(case) if self.varlen else case


def run(context: Context) -> None:
    """All shapes; those of the goals first."""
    shapes: list[tuple[str | int, int]] = [(3, 2)] if context.rehearsal else SHAPES
    cases = [
        Case(kind, batch, backward, varlen)
        for kind, batch in shapes
        for varlen in (False, True)
        if not varlen or (isinstance(kind, int) and kind > SHORT)
        for backward in (False, True)
    ]
    each(context, names.ATTENTION, cases, lambda case: measure_case(case, torch.device(context.device)))


def measure_case(case: Case, device: torch.device) -> dict[str, Any]:
    """Times, least traffic and least work of a case."""
    lengths = draw_lengths(case.kind, case.batch)
    call = make_call(case, device)
    if device.type == "cuda" and not call()[0].isfinite().all():
        raise FloatingPointError("z is not finite")
    rounds = kernels.ROUNDS if device.type == "cuda" else 1
    found = kernels.times(call, device, rounds)
    found["bytes"] = attention_bytes(lengths, lengths, case.backward, 2)
    found["flops"] = attention_flops(lengths, lengths, case.backward)
    return found


def make_call(case: Case, device: torch.device) -> Any:
    """The call as a function without arguments: z and gradients."""
    lengths = draw_lengths(case.kind, case.batch)
    # Triton's interpreter is wrong for bfloat16.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    batch = AttentionBatch.draw(lengths, lengths, device, dtype, HEADS, HIDDEN // HEADS)
    grad = torch.randn_like(batch.inputs[0])
    arguments, options = batch.packed
    backend = "varlen" if case.varlen else "auto"
    return with_gradients(
        lambda: cms_attention(*arguments, **options, backend=backend), batch.inputs, grad, case.backward
    )


def compile_case(case: Case) -> None:
    """Compiles what a case launches: a few sequences have its variants, too, for counts do not specialise."""
    make_call(case._replace(batch=4), torch.device("cuda"))()
