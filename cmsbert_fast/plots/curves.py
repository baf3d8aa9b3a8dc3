"""Learning curves of several systems, a panel each, with bands over their runs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmsbert_fast.plots import style
from cmsbert_fast.plots.style import drawable

_ACROSS = 4
_SHOWN = 97  # percent of all values that the axis shows: the first epochs of some systems are far worse


class Curve(NamedTuple):
    """A run: epochs 1, 2, ... and the values after them, each (E,)."""

    epochs: np.ndarray
    values: np.ndarray


@style.styled
def plot_curves(
    systems: Mapping[str, Sequence[Curve]], label: str, lower: bool, title: str, nu: Mapping[str, Sequence[Curve]]
) -> Figure:
    """Mean and standard deviation of the runs at each epoch, every run in thin lines, a dot at the best epoch of each.

    Where some runs have stopped earlier, the mean of the others is dashed.

    Args:
        systems: The runs of each; at least one system and run.
        label: Of the values.
        lower: Whether lower is better.
        title: Printed above.
        nu: The same of the weight of the contrastive loss, for the systems that have one: a last panel.
    """
    count = len(systems) + bool(nu)
    columns = min(_ACROSS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(1.85 * columns + 0.5, 1.6 * rows + 0.7), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    low, high, cut = _limits([c.values for curves in systems.values() for c in curves], lower)
    for i, (name, curves) in enumerate(systems.items()):
        ax = panels[i]
        _draw(ax, curves, style.BLUE)
        for curve in curves:
            best = int((curve.values if lower else -curve.values).argmin())
            ax.plot(curve.epochs[best], curve.values[best], "o", color=style.VERMILION, markersize=3, zorder=4)
        ax.set_ylim(low, high)
        runs = "1 run" if len(curves) == 1 else f"{len(curves)} runs"
        ax.set_title(f"{drawable(name)} ({runs})", fontsize=7.5)
        if i % columns == 0:
            ax.set_ylabel(label)
        else:
            ax.tick_params(labelleft=False)
    if nu:
        _draw_nu(panels[len(systems)], nu)
    for ax in panels[:count]:
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    for ax in panels[count:]:
        ax.remove()
    _explain(figure, title, cut)
    return figure


def _limits(values: Sequence[np.ndarray], lower: bool) -> tuple[float, float, bool]:
    """What the axis shows, and whether something lies outside."""
    both = np.concatenate(values)
    both = both[np.isfinite(both)] if np.isfinite(both).any() else np.zeros(1)
    low, high = float(both.min()), float(both.max())
    if lower:
        high = float(np.percentile(both, _SHOWN))
    else:
        low = float(np.percentile(both, 100 - _SHOWN))
    margin = 0.06 * max(high - low, 1e-3)
    return low - margin, high + margin, bool(((both < low - margin) | (both > high + margin)).any())


def _draw(ax: Axes, curves: Sequence[Curve], colour: str, label: str | None = None) -> None:
    longest = max(curves, key=lambda curve: len(curve.epochs)).epochs
    values = np.full((len(curves), len(longest)), np.nan)
    for row, curve in zip(values, curves, strict=True):
        row[: len(curve.values)] = curve.values
        if len(curves) > 1:
            ax.plot(curve.epochs, curve.values, color=colour, linewidth=0.4, alpha=0.35)
    whole = int(min(len(curve.values) for curve in curves))
    mean = np.nanmean(values, axis=0)
    marker = "o" if len(longest) == 1 else None
    ax.plot(longest[:whole], mean[:whole], color=colour, label=label, marker=marker, markersize=3)
    ax.plot(longest[whole - 1 :], mean[whole - 1 :], color=colour, linestyle=(0, (3, 2)), linewidth=0.9)
    if len(curves) > 1:
        spread = values[:, :whole].std(axis=0, ddof=1)
        band = (mean[:whole] - spread, mean[:whole] + spread)
        ax.fill_between(longest[:whole], *band, color=colour, alpha=0.2, linewidth=0)


def _draw_nu(ax: Axes, nu: Mapping[str, Sequence[Curve]]) -> None:
    for i, (name, curves) in enumerate(nu.items()):
        _draw(ax, curves, style.COLOURS[i % len(style.COLOURS)], drawable(name))
    ax.set_ylim(bottom=0)
    ax.set_title(r"$\nu$, weight of the contrastive loss", fontsize=7.5, parse_math=True)
    ax.legend(fontsize=5.5, handlelength=1.2)


def _explain(figure: Figure, title: str, cut: bool) -> None:
    text = (
        f"{title}\nline: mean over runs; band: ± standard deviation; thin: each run; dashed: the runs that go on; "
        "dot: best epoch of a run"
    )
    if cut:
        text += f"; the worst {100 - _SHOWN} % of the values lie outside the axis"
    style.head(figure, text, figure.get_figwidth() - 0.1, 7.5)
