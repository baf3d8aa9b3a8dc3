"""A scatter plot of predicted scores against true ones."""

import numpy as np
from matplotlib.figure import Figure


def plot_scores(predicted: np.ndarray, true: np.ndarray, title: str) -> Figure:
    """Every example as a point, and the line of perfect predictions; both axes have one scale.

    Args:
        predicted, true: Scores, (n,).
        title: Printed above.
    """
    figure = Figure(figsize=(4.5, 4.8), layout="constrained")
    ax = figure.subplots()
    both = np.concatenate([predicted, true])
    margin = 0.05 * max(float(np.ptp(both)), 1e-3)
    limits = (float(both.min()) - margin, float(both.max()) + margin)
    ax.plot(limits, limits, color="0.6", linewidth=1, label="predicted = true")
    ax.scatter(true, predicted, s=12, alpha=0.5, linewidths=0)
    ax.set(xlim=limits, ylim=limits, xlabel="true score", ylabel="predicted score", aspect="equal")
    ax.set_title(title.replace("$", r"\$"), wrap=True)
    ax.legend(loc="upper left", fontsize="small")
    return figure
