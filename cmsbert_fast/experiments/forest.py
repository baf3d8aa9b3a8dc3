"""The forest plot of a table: how far each row is from the reference, with intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cmsbert_fast.experiments.tables import SOURCES, Metric, Table
from cmsbert_fast.plots import style

_PRINTED = {"paper": ("s", style.VERMILION), "own": ("^", style.GREEN), "mmsa": ("D", style.PURPLE)}
_NAMES = {
    "mae": "MAE",
    "corr": "correlation",
    "acc2_non_negative": "Acc-2 neg./non-neg., %",
    "acc2_positive": "Acc-2 neg./pos., %",
    "f1_non_negative": "F1 neg./non-neg., %",
    "f1_positive": "F1 neg./pos., %",
    "acc7": "Acc-7, %",
    "acc5": "Acc-5, %",
    "wa": "WA, %",
    "ua": "UA, %",
}


@style.styled
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
    height = 0.75 + 0.24 * len(table.rows)
    figure = Figure(figsize=(1.75 * across + 1.6, height * len(sections) + 0.8), layout="constrained")
    axes = figure.subplots(len(sections), across, squeeze=False, sharey=True)
    for axis, (data, section, metric, name) in zip(axes.flat, panels, strict=True):
        _panel(axis, section, metric, name)
        axis.set_title(style.drawable(f"{data}: {_NAMES.get(name, name)}"), fontsize=7)
    labels = [style.drawable(row["label"]) for row in panels[0][1]["rows"]]
    axes[0, 0].set_yticks(range(len(labels)), labels)
    axes[0, 0].set_ylim(len(labels) - 0.5, -0.5)  # from top to bottom
    differences = any(_compared(section) for _, section, *_ in panels)
    title = table.title + (f"; difference from {table.reference}" if differences else "")
    style.head(figure, title, figure.get_figwidth() - 0.2, 9)
    printed = [
        source for source in _PRINTED if any(source in row["figures"] for _, s, *_ in panels for row in s["rows"])
    ]
    figure.legend(handles=_legend(differences, printed), loc="outside lower center", ncols=4)
    return figure


def _compared(section: Mapping[str, Any]) -> bool:
    return any(row.get("comparison") for row in section["rows"])


def _panel(axis: Any, section: Mapping[str, Any], metric: Metric, name: str) -> None:
    differences = _compared(section)
    axis.grid(axis="y", color=style.PALE, linewidth=0.5)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    if differences:
        axis.axvline(0, color=style.GREY, linewidth=0.8)
    for y, row in enumerate(section["rows"]):
        compared = (row.get("comparison") or {}).get(name)
        if compared:
            if compared["resolvable"] is not None:
                axis.fill_betweenx([y - 0.35, y + 0.35], -compared["resolvable"], compared["resolvable"], color="0.88")
            if compared["cluster_interval"]:
                axis.plot(_numbers(compared["cluster_interval"]), [y, y], color=style.BLUE, linewidth=0.8)
            axis.plot(_numbers(compared["interval"]), [y, y], color=style.BLUE, linewidth=2.6)
            axis.plot(compared["difference"], y, "o", color="white", markersize=2.2, zorder=3)
        elif not differences:
            found = (row.get("pooled") or row.get("metrics") or {}).get(name)
            if found:
                axis.plot(_numbers(found["interval"]), [y, y], color=style.BLUE, linewidth=2.6)
                axis.plot(found["mean"], y, "o", color="white", markersize=2.2, zorder=3)
            for source, (marker, color) in _PRINTED.items():
                printed = row["figures"].get(source, {}).get(name)
                if printed is not None:
                    axis.plot(printed, y, marker, markerfacecolor="none", color=color, markersize=4)
    axis.xaxis.get_major_locator().set_params(nbins=4)
    axis.set_xlabel("lower is better" if metric.lower else "higher is better", fontsize=7)


def _legend(differences: bool, printed: list[str]) -> list[Any]:
    """What the marks mean, as far as they are drawn."""
    marks: list[Any] = [Line2D([], [], color=style.BLUE, linewidth=2.6, label="95 % interval, seeds and examples")]
    if differences:
        marks.append(Line2D([], [], color=style.BLUE, linewidth=0.8, label="95 % interval, whole videos"))
        return [*marks, Patch(color="0.88", label="less than 80 % power")]
    for source in printed:
        marker, color = _PRINTED[source]
        line = Line2D([], [], marker=marker, color=color, linestyle="", markerfacecolor="none", markersize=4)
        line.set_label(f"printed: {SOURCES[source]}")
        marks.append(line)
    return marks


def _numbers(interval: Any) -> np.ndarray:
    return np.array(interval, np.float64)
