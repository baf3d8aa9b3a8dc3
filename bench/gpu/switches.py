"""Stage "switches": what each change of the kernels gains that was decided without a GPU, against the way before it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from bench import names
from bench.gpu import attention, loss
from bench.gpu.runner import Context, each

WITHOUT = "without"


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _low_tiles() -> Any:
    """One tile for all short sequences, with the configuration of padded batches."""
    from cmsbert_fast.kernels.cms_attention import launch

    return _set(launch, "SHORT_TILES", {})


def _aligned_rows() -> Any:
    from cmsbert_fast.kernels.cms_attention import aligned

    return _set(aligned, "ITEM_SIZE", 0)  # of no dtype


def _sorted_rows() -> Any:
    from cmsbert_fast.ops.contrastive import triton

    return _set(triton, "SORTS", False)


def _one_exponential() -> Any:
    from cmsbert_fast.kernels.contrastive import call

    return _set(call, "LARGEST_BOUND", 0.0)


OF_ATTENTION: dict[str, Callable[[], Any]] = {"low tiles": _low_tiles, "aligned rows": _aligned_rows}
OF_LOSS: dict[str, Callable[[], Any]] = {"sorted rows": _sorted_rows, "one exponential": _one_exponential}


class Case(NamedTuple):
    """A case of another stage without one of the changes."""

    case: Any
    change: str

    def __str__(self) -> str:
        return f"{self.case}, {WITHOUT} {self.change}"


def cases(rehearsal: bool = False) -> tuple[list[Case], list[Case]]:
    """Attention at two batches; the loss. The stages of these measure the way with all changes."""
    calls = [
        attention.Case("mosi", n, backward) for n in ((2,) if rehearsal else (1024, 4096)) for backward in (False, True)
    ]
    rows = [loss.Case(n) for n in ((20,) if rehearsal else (32768, 4096))]
    return [Case(x, change) for x in calls for change in OF_ATTENTION], [
        Case(x, change) for x in rows for change in OF_LOSS
    ]


def run(context: Context) -> None:
    """All cases."""
    device = torch.device(context.device)
    of_attention, of_loss = cases(context.rehearsal)

    def measure_attention(case: Case) -> dict[str, Any]:
        with OF_ATTENTION[case.change]():
            return attention.measure_case(case.case, device)

    def measure_loss(case: Case) -> dict[str, Any]:
        with OF_LOSS[case.change]():
            return loss.measure_case(case.case, device)

    each(context, names.ATTENTION, of_attention, measure_attention)
    each(context, names.CONTRASTIVE, of_loss, measure_loss)


def compile_case(case: Case) -> None:
    """Compiles what a case launches."""
    if case.change in OF_ATTENTION:
        with OF_ATTENTION[case.change]():
            attention.compile_case(case.case)
    else:
        with OF_LOSS[case.change]():
            loss.compile_case(case.case)
