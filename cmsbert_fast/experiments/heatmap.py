"""The figure of a search: validation score by pairs of settings, and the best to expect by budget."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from cmsbert_fast.plots import style

_COLOURS = "viridis_r"  # bright is good
_SCORE = "validation score, lower is better"
_MOST_VALUES = 8  # of a setting with a row or column of its own


@style.styled
def draw(name: str, points: Sequence[Mapping[str, Any]], scores: Sequence[float], budget: Sequence[float]) -> Figure:
    """A heat map for each pair of settings with few values, the mean over all others; else a point a trial.

    Args:
        name: The title.
        points: Of each trial.
        scores: Of each trial, lower is better.
        budget: The expected best score of 1, 2, ... trials.
    """
    settings = list(points[0])
    pairs = list(itertools.combinations(settings, 2)) or [(setting, setting) for setting in settings]
    figure = Figure(figsize=(3.4 * (len(pairs) + 1), 3.2), layout="constrained")
    axes = figure.subplots(1, len(pairs) + 1, squeeze=False)[0]
    scale = ScalarMappable(Normalize(min(scores), max(scores)), _COLOURS)  # one for all: maps can be compared
    for axis, (x, y) in zip(axes, pairs, strict=False):
        values = [sorted({point[s] for point in points}) for s in (x, y)]
        if x != y and max(map(len, values)) <= _MOST_VALUES:
            _map(axis, points, scores, (x, y), values, scale)
        else:
            drawn = [point[y] for point in points] if x != y else list(scores)
            axis.scatter([point[x] for point in points], drawn, c=scores, cmap=scale.cmap, norm=scale.norm)
            if _spans(values[0]):
                axis.set_xscale("log")
                _print_plainly(axis.xaxis)
            if x != y and _spans(values[1]):
                axis.set_yscale("log")
                _print_plainly(axis.yaxis)
        axis.set_xlabel(x)
        axis.set_ylabel(y if x != y else _SCORE)
    figure.colorbar(scale, ax=axes[-2], label=_SCORE, aspect=22)
    axes[-1].plot(range(1, len(budget) + 1), budget)
    axes[-1].set_xlabel("random trials")
    axes[-1].set_ylabel("expected best score")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(style.drawable(name), x=0.01, ha="left")
    return figure


def _map(
    axis: Any,
    points: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    names: tuple[str, str],
    values: Sequence[list[Any]],
    scale: ScalarMappable,
) -> None:
    means = np.full((len(values[1]), len(values[0])), np.nan)
    for (j, a), (i, b) in itertools.product(enumerate(values[0]), enumerate(values[1])):
        found = [s for p, s in zip(points, scores, strict=True) if (p[names[0]], p[names[1]]) == (a, b)]
        if found:
            means[i, j] = np.mean(found)
    image = axis.imshow(means, cmap=scale.cmap, norm=scale.norm, aspect="auto")
    for (i, j), mean in np.ndenumerate(means):
        if np.isfinite(mean):
            red, green, blue, _ = image.cmap(image.norm(mean))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axis.text(j, i, f"{mean:.3f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axis.spines[:].set_visible(False)
    axis.set_xticks(range(len(values[0])), [f"{v:g}" if isinstance(v, float) else str(v) for v in values[0]])
    axis.set_yticks(range(len(values[1])), [f"{v:g}" if isinstance(v, float) else str(v) for v in values[1]])


def _print_plainly(axis: Any) -> None:
    """Numbers of a logarithmic axis as 0.001: powers of ten would be formulas, which texts are not read as."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _spans(values: Sequence[Any]) -> bool:
    """Whether numbers are better seen on a logarithmic axis."""
    numbers = [v for v in values if isinstance(v, (int, float))]
    return len(numbers) == len(values) and min(numbers) > 0 and max(numbers) >= 10 * min(numbers)
