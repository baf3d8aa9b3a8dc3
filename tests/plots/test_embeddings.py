"""The map of the common space: markers, colours, numbers, and what it groups."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from cmsbert_fast.plots import style
from cmsbert_fast.plots.embeddings import plot_embeddings
from cmsbert_fast.training.alignment import alignment


def panels(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.findobj(Axes) if points(ax)]


def points(ax: Axes) -> list:
    return [c for c in ax.collections if isinstance(c, PathCollection) and len(c.get_offsets())]


def test_a_marker_per_modality_and_the_sentiment_as_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.linspace(-3, 3, 12, dtype=np.float32)
    embeddings = {"linguistic": rng.normal(size=(12, 8)), "visual": None, "acoustic": rng.normal(size=(12, 8))}
    numbers = alignment({m: z for m, z in embeddings.items() if z is not None}, labels)
    figure = plot_embeddings(embeddings, labels, numbers=numbers, title="its normal")
    together, *alone = panels(figure)
    assert [text.get_text() for text in together.get_legend().get_texts()] == ["linguistic (L)", "acoustic (A)"]
    assert [ax.get_title() for ax in alone] == ["linguistic by itself", "acoustic by itself"]
    assert [len(c.get_offsets()) for c in points(together)] == [12, 12]
    for collection in points(together):
        np.testing.assert_array_equal(collection.get_array(), labels)
        assert collection.get_clim() == (-3, 3)
    # Triangle (3 corners and the closing point) and star (5 points out, 5 in).
    assert [len(c.get_paths()[0].vertices) for c in points(together)] == [4, 11]
    texts = " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
    assert "t-SNE" in texts
    assert "12 utterances, 2 modalities" in texts
    assert "L→A" in texts
    assert f"{numbers['recall_at_1']['linguistic_to_acoustic']:.1f}" in texts
    assert "sentiment score" in " ".join(ax.get_ylabel() for ax in figure.findobj(Axes))
    style.save(figure, tmp_path / "embeddings")


def test_what_points_the_same_way_is_grouped() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 20)
    directions = np.eye(6)[groups] + 0.01 * rng.normal(size=(40, 6))
    figure = plot_embeddings({"linguistic": directions}, groups, classes=["sad", "happy"])
    ax = panels(figure)[0]
    xy = np.asarray(points(ax)[0].get_offsets())
    within = max(np.linalg.norm(xy[groups == g] - xy[groups == g].mean(0), axis=1).mean() for g in (0, 1))
    assert np.linalg.norm(xy[:20].mean(0) - xy[20:].mean(0)) > 2 * within
    # Only directions count; powers of two leave no rounding behind.
    lengths = 2.0 ** rng.integers(-4, 5, size=(40, 1))
    again = plot_embeddings({"linguistic": directions * lengths}, groups, classes=["sad", "happy"])
    np.testing.assert_array_equal(xy, np.asarray(points(panels(again)[0])[0].get_offsets()))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["linguistic (L)", "sad", "happy"]


def test_a_repeatable_sample_of_many() -> None:
    z, labels = np.random.default_rng(0).normal(size=(50, 4)), np.arange(50.0)
    offsets = [
        np.asarray(points(panels(plot_embeddings({"linguistic": z}, labels, max_samples=10))[0])[0].get_offsets())
        for _ in range(2)
    ]
    assert offsets[0].shape == (10, 2)
    np.testing.assert_array_equal(*offsets)


def test_two_samples_are_enough_and_one_is_not() -> None:
    plot_embeddings({"linguistic": np.eye(2)}, None)
    with pytest.raises(ValueError, match="2 samples"):
        plot_embeddings({"linguistic": np.ones((1, 2))}, np.array([1.0]))
    with pytest.raises(ValueError, match="labels"):
        plot_embeddings({"linguistic": np.ones((3, 2))}, np.array([1.0, 2.0]))
