"""Stage "switches": what each change of the kernels gains that was decided without a GPU, against the way before it."""

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from bench import names
from bench.gpu import attention, loss
from bench.gpu.runner import Context, each


def _low_tiles() -> Any:
    """One tile for all short sequences, with the configuration of padded batches."""
    from cmsbert_fast.kernels.cms_attention import launch

    return patch.object(launch, "SHORT_TILES", {})


def _aligned_rows() -> Any:
    from cmsbert_fast.kernels.cms_attention import aligned

    return patch.object(aligned, "ITEM_SIZE", 0)  # of no dtype


def _sorted_rows() -> Any:
    from cmsbert_fast.ops.contrastive import triton

    return patch.object(triton, "SORTS", False)


def _one_exponential() -> Any:
    from cmsbert_fast.kernels.contrastive import call

    return patch.object(call, "LARGEST_BOUND", 0.0)


OF_ATTENTION: dict[str, Callable[[], Any]] = {"low tiles": _low_tiles, "aligned rows": _aligned_rows}
OF_LOSS: dict[str, Callable[[], Any]] = {"sorted rows": _sorted_rows, "one exponential": _one_exponential}


class Case(NamedTuple):
    """A case of another stage without one of the changes."""

    case: Any
    change: str

    def __str__(self) -> str:
        return f"{self.case}, without {self.change}"


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

    def measure(case: Case) -> dict[str, Any]:
        return _without(case, "measure_case", device)

    each(context, names.ATTENTION, of_attention, measure)
    each(context, names.CONTRASTIVE, of_loss, measure)


def compile_case(case: Case) -> None:
    """Compiles what a case launches."""
    _without(case, "compile_case")


def _without(case: Case, function: str, *more: Any) -> Any:
    """A function of the other stage on its case, while the change is taken back."""
    stage, take_back = (
        (attention, OF_ATTENTION[case.change]) if case.change in OF_ATTENTION else (loss, OF_LOSS[case.change])
    )
    with take_back():
        return getattr(stage, function)(case.case, *more)
