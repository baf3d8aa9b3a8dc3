"""A run's epochs as a table, from its log."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cmsbert_fast.training.log import LOG

ROWS = 20  # of longer runs, as many are shown
_METRICS = 4  # columns of them
_NOT_METRICS = ("step", "epoch", "nu")


def epoch_table(folder: Path) -> str:
    """Each epoch of a run with its losses and first metrics; "" if none has ended.

    Of more than :data:`ROWS` epochs, some are shown at even distances, besides the best and the last; the last line
    says so.
    """
    steps: dict[int, list[float]] = {}
    epochs: dict[int, Mapping[str, Any]] = {}
    best = 0
    with open(folder / LOG, encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            if record["event"] == "train" and record["loss"] is not None:
                steps.setdefault(record["epoch"], []).append(record["loss"])
            elif record["event"] == "valid":
                epochs[record["epoch"]] = record
            elif record["event"] == "test":
                best = record["epoch"]
    if not epochs:
        return ""
    names = [name for name in next(iter(epochs.values())) if name not in ("event", *_NOT_METRICS)]
    losses = [name for name in names if name.endswith("_loss")]
    names = [*losses, *[name for name in names if name not in losses][:_METRICS]]
    nu = ["nu"] if any(record.get("nu") is not None for record in epochs.values()) else []
    titles = [f"valid {name}" if name in losses else name for name in (*names, *nu)]
    rows = [["epoch", "train loss", *(title.replace("_", " ") for title in titles)]]
    shown = _shown(sorted(epochs), best)
    for epoch in shown:
        values = [fmean(steps[epoch]) if epoch in steps else None, *(epochs[epoch].get(name) for name in (*names, *nu))]
        rows.append([f"{epoch}{' *' if epoch == best else ''}", *map(_cell, values)])
    notes = ["* best on validation, tested"] if best else []
    if len(shown) < len(epochs):
        notes.append(f"{len(shown)} of {len(epochs)} epochs; all are in {LOG}")
    return "\n".join([*_aligned(rows), *(f"({note})" for note in notes)])


def _shown(epochs: Sequence[int], best: int) -> list[int]:
    if len(epochs) <= ROWS:
        return list(epochs)
    spread = {epochs[round(k * (len(epochs) - 1) / (ROWS - 1))] for k in range(ROWS)}
    return sorted(spread | ({best} & set(epochs)))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
