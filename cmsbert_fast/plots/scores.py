"""A scatter plot of predicted scores against true ones."""

import numpy as np
from matplotlib.figure import Figure

from cmsbert_fast.plots import style


@style.styled
def plot_scores(predicted: np.ndarray, true: np.ndarray, title: str) -> Figure:
    """Every example as a point, and the line of perfect predictions; both axes have one scale.

    Args:
        predicted, true: Scores, (n,).
        title: Printed above.
    """
    figure = Figure(figsize=(3.6, 3.9), layout="constrained")
    ax = figure.subplots()
    both = np.concatenate([predicted, true])
    margin = 0.05 * max(float(np.ptp(both)), 1e-3)
    limits = (float(both.min()) - margin, float(both.max()) + margin)
    ax.plot(limits, limits, color=style.GREY, linewidth=0.8, linestyle="--", label="predicted = true", zorder=1)
    ax.scatter(true, predicted, s=9, alpha=0.45, linewidths=0, color=style.BLUE, label="utterance")
    ax.set(xlim=limits, ylim=limits, xlabel="true score", ylabel="predicted score", aspect="equal")
    error = float(np.abs(np.asarray(predicted, np.float64) - true).mean())
    ax.text(0.98, 0.03, f"n = {len(true)}, MAE {error:.3f}", transform=ax.transAxes, ha="right", fontsize=7)
    style.head(figure, title, 3.4)
    ax.legend(loc="upper left")
    return figure
