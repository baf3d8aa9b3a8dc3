"""Results as pictures. The same results give the same bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from bench import names
from bench.goals import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _subplots(width: float, height: float) -> "tuple[Figure, Axes]":
    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "cmsbert"
    return plt.subplots(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def plot_growth(results: Sequence[Result], path: Path) -> None:
    """Time over size, both relative to the smallest size."""
    figure, axes = _subplots(7, 4.2)
    for result in results:
        medians = np.array([np.median(result["seconds"][str(size)]) for size in result["sizes"]])
        label = f"{result['suite']}: {result['case']}"
        axes.loglog(np.array(result["sizes"]) / result["sizes"][0], medians / medians[0], marker="o", label=label)
    axes.plot([1, 64], [1, 64], color="0.7", linestyle="--", linewidth=1, label="linear")
    axes.set_xlabel("size / smallest size")
    axes.set_ylabel("time / time at the smallest size")
    axes.legend(fontsize=7)
    _save(figure, path)


def plot_race(result: Result, path: Path) -> None:
    """A bar for each contender, ours coloured."""
    contenders = list(result["seconds"])[::-1]
    medians = [np.median(result["seconds"][name]) for name in contenders]
    ends = np.array([np.quantile(result["seconds"][name], [0.25, 0.75]) for name in contenders])
    figure, axes = _subplots(7, 0.5 + 0.42 * len(contenders))
    errors = np.abs(ends.T - np.array(medians))
    colors = ["#4477aa" if names.is_ours(name) else "0.75" for name in contenders]
    axes.barh(contenders, medians, xerr=errors, color=colors)
    axes.set_xlabel("seconds (median, quartiles)")
    axes.set_title(f"{result['suite']}: {result['case']}", fontsize=9)
    _save(figure, path)
