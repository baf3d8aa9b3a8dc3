"""Confusion matrices of classes."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from cmsbert_fast.plots import style
from cmsbert_fast.plots.style import drawable

_PANELS_PER_ROW = 3


@style.styled
def plot_confusion(counts: Mapping[str, np.ndarray], classes: Sequence[str], title: str = "") -> Figure:
    """Rows are true classes, columns predicted ones, colours the share of the true class, numbers examples.

    Args:
        counts: By the panel's title, how many examples of each true class were predicted as which, (K, K).
        classes: The K names.
        title: Printed above all panels.
    """
    names = list(map(drawable, classes))
    columns = min(len(counts), _PANELS_PER_ROW)
    rows = -(-len(counts) // columns)
    side = 1.2 + 0.42 * len(names)
    figure = Figure(figsize=(columns * side + 0.9, rows * (side + 0.2) + 0.4), layout="constrained")
    if title:
        style.head(figure, title, figure.get_figwidth() - 0.2)
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for ax, (name, matrix) in zip(panels, counts.items(), strict=False):
        share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        image = ax.imshow(share, cmap="Blues", vmin=0, vmax=100)
        ax.set_title(drawable(name))
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(names)), names)
        ax.set(xlabel="predicted", ylabel="true")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        for (true, predicted), count in np.ndenumerate(matrix):
            colour = "white" if share[true, predicted] > 50 else "black"
            ax.text(predicted, true, str(count), ha="center", va="center", color=colour, fontsize=7)
    for ax in panels[len(counts) :]:
        ax.remove()
    bar = figure.colorbar(image, ax=list(panels[: len(counts)]), label="% of the true class", shrink=0.8, aspect=22)
    bar.outline.set_visible(False)
    return figure
