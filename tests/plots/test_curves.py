"""Learning curves: means, bands, runs of different lengths."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from cmsbert_fast.plots import style
from cmsbert_fast.plots.curves import Curve, plot_curves


def curve(*values: float) -> Curve:
    return Curve(np.arange(1, len(values) + 1), np.array(values))


def test_mean_band_and_best_epochs(tmp_path: Path) -> None:
    runs = [curve(3, 1, 2, 4), curve(1, 3, 2)]
    figure = plot_curves({"A": runs, "B": [curve(2.0)]}, "validation MAE", True, "T", {"A": [curve(0.2, 0.1)]})
    a, b, nu = figure.axes
    assert (a.get_title(), b.get_title()) == ("A (2 runs)", "B (1 run)")
    assert a.get_ylabel() == "validation MAE"
    assert "nu" in nu.get_title()
    lines = [line for line in a.lines if to_hex(line.get_color()).upper() == style.BLUE]
    first, second, mean, rest = (list(line.get_ydata()) for line in lines)
    assert (first, second) == ([3, 1, 2, 4], [1, 3, 2])
    assert mean == [2, 2, 2]
    assert rest == [2, 4]  # one run goes on
    band = a.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(2 + 2**0.5)  # standard deviation of 3 and 1, n - 1
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in a.lines if line.get_marker() == "o"]
    assert dots == [(2, 1), (1, 1)]
    assert len(b.collections) == 0  # no band of one run
    style.save(figure, tmp_path / "curves")


def test_the_best_of_an_accuracy_is_the_highest_and_far_values_are_cut() -> None:
    figure = plot_curves({"A": [curve(1.0, *([60.0] * 48), 80.0)]}, "validation WA", False, "T", {})
    (ax,) = figure.axes
    assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"] == [50]
    assert ax.get_ylim()[0] > 50
    assert "outside the axis" in figure.get_suptitle()
    assert "outside" not in plot_curves({"A": [curve(1.0, 1.1)]}, "WA", False, "T", {}).get_suptitle()
