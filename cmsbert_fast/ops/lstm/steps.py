"""The order in which the recurrence runs: step by step, within a step the longest sequence first, without padding.

It is that of a PackedSequence: the rows of a time step are a slice, and those that go on are the first of it.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class TimeSteps(NamedTuple):
    """The packed rows in the order of time.

    Attributes:
        rows: (F,) int64 on the device of the frames; without those of no sequence.
        batch_sizes: (steps,) int64 on the host: how many sequences are alive.
    """

    rows: Tensor
    batch_sizes: Tensor


def time_steps(cu_seqlens: Tensor, device: torch.device) -> TimeSteps:
    """The order of time of packed sequences; waits for the device if ``cu_seqlens`` is not on the host."""
    cu_seqlens = cu_seqlens.cpu().long()
    if len(cu_seqlens) == 2:  # already in order: sorting would take longer than the projector
        rows = torch.arange(*cu_seqlens.tolist())
        batch_sizes = torch.ones_like(rows)
    else:
        ordered, order = cu_seqlens.diff().sort(descending=True, stable=True)
        step = torch.arange(int(ordered[0]) if len(ordered) else 0)[:, None]
        alive = step < ordered
        rows, batch_sizes = (cu_seqlens[:-1][order] + step)[alive], alive.sum(dim=1)
    if device.type == "cuda":
        rows = rows.pin_memory()  # or the copy would wait for the device
    return TimeSteps(rows.to(device, non_blocking=True), batch_sizes)


def slices(batch_sizes: Tensor) -> list[slice]:
    """Where each time step lies among the rows in the order of time."""
    ends = batch_sizes.cumsum(0).tolist()
    return [slice(end - size, end) for end, size in zip(ends, batch_sizes.tolist(), strict=True)]


def previous(steps: list[slice]) -> list[slice | None]:
    """For each step, where the sequences alive in it lie in the step before; None for the first."""
    return [
        None if before is None else slice(before.start, before.start + step.stop - step.start)
        for before, step in zip([None, *steps], steps, strict=False)
    ]
