"""Figures drawn from small inputs: what stands where, and that it can be written."""

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from cmsbert_fast.data.embedded import Event
from cmsbert_fast.training import plots
from cmsbert_fast.training.plots import plot_embeddings, plot_shift_maps

TOKENS = ["[CLS]", "its", "normal", "[SEP]"]


def gates(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((len(TOKENS), frames), np.float32)


def test_shift_maps_show_every_layer_with_words_down_and_frames_across(tmp_path: Path) -> None:
    maps = [(gates(7, seed), gates(11, seed + 10)) for seed in range(4)]
    events = [Event("visual", "gaze down", 2, 5), Event("acoustic", "rising pitch", 6, 9)]
    figure = plot_shift_maps(maps, TOKENS, layers=[0, 1, 4, 5], events=events, title="its normal")
    panels = sorted((p for p in figure.subfigs if p.axes), key=lambda p: p.get_suptitle())  # 3.9 lists them by columns
    images = [ax.images[0] for panel in panels for ax in panel.axes if ax.get_xlabel()]
    assert [panel.get_suptitle() for panel in panels] == ["layer 0", "layer 1", "layer 4", "layer 5"]
    for image, expected in zip(images, [g for pair in maps for g in pair], strict=True):
        np.testing.assert_array_equal(image.get_array(), expected)
    visual, acoustic = (ax for ax in panels[0].axes if ax.get_xlabel())
    assert [label.get_text() for label in visual.get_yticklabels()] == TOKENS
    assert [text.get_text() for text in visual.texts] == ["gaze down"]
    assert [text.get_text() for text in acoustic.texts] == ["rising pitch"]
    assert [list(line.get_xdata()) for line in visual.lines][-1] == [1.5, 4.5]  # frames 2, 3 and 4
    figure.savefig(tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 10_000


def test_shift_maps_with_the_oldest_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    get_figure = Axes.get_figure

    def before_3_10(self: Axes, *arguments: object, **options: object) -> object:
        if sys._getframe(1).f_code.co_filename == plots.__file__:  # matplotlib's own calls are those of its version
            assert not {*arguments, *options}
        return get_figure(self, *arguments, **options)

    monkeypatch.setattr(Axes, "get_figure", before_3_10)
    plot_shift_maps([(gates(3), None)], TOKENS, events=[Event("visual", "gaze down", 0, 2)])


def test_shift_maps_of_one_modality_and_one_frame(tmp_path: Path) -> None:
    figure = plot_shift_maps([(None, gates(1)), (gates(0), gates(1))], TOKENS)
    for panel in figure.subfigs:
        (ax,) = (ax for ax in panel.axes if ax.get_xlabel())
        assert ax.get_xlabel() == "acoustic frame"
        assert [label.get_text() for label in ax.get_yticklabels()] == TOKENS
    figure.savefig(tmp_path / "maps.png")


def test_shift_maps_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="no CMS map"):
        plot_shift_maps([], TOKENS)
    with pytest.raises(ValueError, match="no CMS map"):
        plot_shift_maps([(None, None)], TOKENS)
    with pytest.raises(ValueError, match="tokens"):
        plot_shift_maps([(gates(3), None)], TOKENS[:-1])


def test_embeddings_have_a_marker_per_modality_and_the_sentiment_as_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.linspace(-3, 3, 12, dtype=np.float32)
    embeddings = {"linguistic": rng.normal(size=(12, 8)), "visual": None, "acoustic": rng.normal(size=(12, 8))}
    figure = plot_embeddings(embeddings, labels, title="its normal")
    ax = figure.axes[0]
    drawn = [c for c in ax.collections if len(c.get_offsets())]
    assert [len(c.get_offsets()) for c in drawn] == [12, 12]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["linguistic", "acoustic"]
    for collection in drawn:
        np.testing.assert_array_equal(collection.get_array(), labels)
        assert collection.get_clim() == (-3, 3)
    # Triangle (3 corners and the closing point) and star (5 points out, 5 in).
    assert [len(c.get_paths()[0].vertices) for c in drawn] == [4, 11]
    figure.savefig(tmp_path / "embeddings.png")
    assert (tmp_path / "embeddings.png").stat().st_size > 10_000


def test_embeddings_group_what_points_the_same_way() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 20)
    directions = np.eye(6)[groups] + 0.01 * rng.normal(size=(40, 6))
    figure = plot_embeddings({"linguistic": directions}, groups, classes=["sad", "happy"])
    ax = figure.axes[0]
    xy = np.asarray(ax.collections[0].get_offsets())
    within = max(np.linalg.norm(xy[groups == g] - xy[groups == g].mean(0), axis=1).mean() for g in (0, 1))
    assert np.linalg.norm(xy[:20].mean(0) - xy[20:].mean(0)) > 2 * within
    # Only directions count; powers of two leave no rounding behind.
    lengths = 2.0 ** rng.integers(-4, 5, size=(40, 1))
    again = plot_embeddings({"linguistic": directions * lengths}, groups, classes=["sad", "happy"])
    np.testing.assert_array_equal(xy, np.asarray(again.axes[0].collections[0].get_offsets()))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["linguistic", "sad", "happy"]


def test_dollars_are_no_formulas(tmp_path: Path) -> None:
    text = r"$\frac{1 a$"
    figure = plot_shift_maps([(gates(2), gates(3))], [text, "$", "$x^", "]"], title=text)
    figure.savefig(tmp_path / "maps.png")
    figure = plot_embeddings({"linguistic": np.eye(4)}, np.array([0, 1, 0, 1]), classes=[text, "$^$"], title=text)
    figure.savefig(tmp_path / "embeddings.png")
    assert [label.get_text() for label in figure.axes[0].get_legend().get_texts()] == ["linguistic", text, "$^$"]


def test_embeddings_draw_a_repeatable_sample_of_many() -> None:
    z, labels = np.random.default_rng(0).normal(size=(50, 4)), np.arange(50.0)
    offsets = [
        np.asarray(plot_embeddings({"linguistic": z}, labels, max_samples=10).axes[0].collections[0].get_offsets())
        for _ in range(2)
    ]
    assert offsets[0].shape == (10, 2)
    np.testing.assert_array_equal(*offsets)


def test_two_samples_are_enough_and_one_is_not() -> None:
    plot_embeddings({"linguistic": np.eye(2)}, np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="2 samples"):
        plot_embeddings({"linguistic": np.ones((1, 2))}, np.array([1.0]))
    with pytest.raises(ValueError, match="labels"):
        plot_embeddings({"linguistic": np.ones((3, 2))}, np.array([1.0, 2.0]))
