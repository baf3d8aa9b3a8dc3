"""The forest plot of a table: how far each row is from the reference, with intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cmsbert_fast.experiments.tables import Metric, Table

_PRINTED = {"paper": ("s", "C1"), "own": ("^", "C2"), "mmsa": ("D", "C3")}


def draw(table: Table, value: Mapping[str, Any]) -> Figure | None:
    """A panel for each data set and metric; None where no run has finished.

    With a reference: differences from it, thick for seeds and examples, thin for whole videos; grey is what the data
    resolve with 80 % power. Without: the means. Figures printed by others are shown beside ours where they are.
    """
    panels = [
        (data, section, metric, name)
        for data, section in value["data"].items()
        if any(row.get("metrics") for row in section["rows"])
        for metric in table.metrics
        for name in metric.names
    ]
    if not panels:
        return None
    sections = list(dict.fromkeys(data for data, *_ in panels))
    across = len(panels) // len(sections)
    height = 1.2 + 0.35 * len(table.rows)
    figure = Figure(figsize=(2.6 * across + 1.5, height * len(sections)), layout="constrained")
    axes = figure.subplots(len(sections), across, squeeze=False, sharey=True)
    for axis, (data, section, metric, name) in zip(axes.flat, panels, strict=True):
        _panel(axis, section, metric, name)
        axis.set_title(f"{data}: {name}", fontsize=8)
    labels = [row["label"] for row in panels[0][1]["rows"]]
    axes[0, 0].set_yticks(range(len(labels)), labels, fontsize=8)
    axes[0, 0].invert_yaxis()
    figure.suptitle(table.title + (f"\ndifference from {table.reference}" if table.reference else ""), fontsize=9)
    return figure


def _panel(axis: Any, section: Mapping[str, Any], metric: Metric, name: str) -> None:
    differences = any(row.get("comparison") for row in section["rows"])
    axis.tick_params(labelsize=7)
    if differences:
        axis.axvline(0, color="0.5", linewidth=0.8)
    for y, row in enumerate(section["rows"]):
        compared = (row.get("comparison") or {}).get(name)
        if compared:
            if compared["resolvable"] is not None:
                axis.fill_betweenx([y - 0.35, y + 0.35], -compared["resolvable"], compared["resolvable"], color="0.9")
            if compared["cluster_interval"]:
                axis.plot(_numbers(compared["cluster_interval"]), [y, y], color="C0", linewidth=1)
            axis.plot(_numbers(compared["interval"]), [y, y], color="C0", linewidth=3)
            axis.plot(compared["difference"], y, "o", color="C0", markersize=4)
        elif not differences:
            found = (row.get("pooled") or row.get("metrics") or {}).get(name)
            if found:
                axis.plot(_numbers(found["interval"]), [y, y], color="C0", linewidth=3)
                axis.plot(found["mean"], y, "o", color="C0", markersize=4)
            for source, (marker, color) in _PRINTED.items():
                printed = row["figures"].get(source, {}).get(name)
                if printed is not None:
                    axis.plot(printed, y, marker, markerfacecolor="none", color=color, markersize=5, label=source)
    axis.set_xlabel("lower is better" if metric.lower else "higher is better", fontsize=7)


def _numbers(interval: Any) -> np.ndarray:
    return np.array(interval, np.float64)
