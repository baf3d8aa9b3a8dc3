"""CMS maps drawn from small inputs: what stands where, and in which colours."""

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmsbert_fast.data.embedded import Event
from cmsbert_fast.plots import shift_maps, style
from cmsbert_fast.plots.shift_maps import Span, plot_shift_maps

TOKENS = ["[CLS]", "its", "normal", "[SEP]"]
LAYERS = {"layers": [0, 1, 4, 5], "depth": 6}


def gates(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((len(TOKENS), frames), np.float32)


def maps_of(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.images]


def test_every_layer_is_a_row_and_every_modality_a_column() -> None:
    maps = [(gates(7, seed), gates(11, seed + 10)) for seed in range(4)]
    figure = plot_shift_maps(maps, TOKENS, **LAYERS)
    panels = maps_of(figure)
    for panel, expected in zip(panels, [g for pair in maps for g in pair], strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), expected)
    assert [ax.get_ylabel() for ax in panels[::2]] == [f"layer {n} of 6" for n in (1, 2, 5, 6)]
    assert [ax.get_ylabel() for ax in panels[1::2]] == [""] * 4
    assert [label.get_text() for label in panels[0].get_yticklabels()] == TOKENS
    assert not any(label.get_text() for label in panels[1].get_yticklabels())
    assert [ax.get_xlabel() for ax in panels[-2:]] == ["visual frame number", "acoustic frame number"]
    assert panels[0].get_xlim() == (0.5, 7.5)  # frames are numbered from 1


def test_one_scale_for_all_maps_and_a_named_bar() -> None:
    maps = [(gates(3), gates(4)), (10 * gates(3, 1), gates(4, 2))]
    figure = plot_shift_maps(maps, TOKENS)
    largest = max(g.max() for pair in maps for g in pair)
    assert {ax.images[0].get_clim() for ax in maps_of(figure)} == {(0.0, float(largest))}
    bars = [ax for ax in figure.axes if "Eq. 1, 2" in ax.get_ylabel()]
    assert len(bars) == 1
    assert "g_{ij}" in bars[0].get_ylabel()
    signed = plot_shift_maps([(gates(3) - 0.5, None)], TOKENS)
    low, high = maps_of(signed)[0].images[0].get_clim()
    assert low == -high
    assert maps_of(signed)[0].images[0].cmap.name == style.SIGNED


def test_words_and_events_stand_above_their_frames() -> None:
    events = [Event("visual", "gaze down", 2, 5), Event("visual", "smile", 3, 4), Event("acoustic", "rising", 6, 9)]
    words = {"visual": [Span("its", 0, 3), Span("normal", 3, 7)], "acoustic": [Span("its", 0, 11)]}
    figure = plot_shift_maps([(gates(7), gates(11))], TOKENS, words=words, events=events)
    face, voice, seen, heard, visual, acoustic = figure.axes[:6]
    assert (face.get_ylabel(), voice.get_ylabel()) == ("face", "voice")
    assert [text.get_text() for text in face.texts] == ["gaze down", "smile"]
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_y()) for bar in face.patches]
    assert [bar[:2] for bar in bars] == [(2.5, 5.5), (3.5, 4.5)]  # frames 3, 4 and 5 of 1, 2, ...
    assert bars[0][2] != bars[1][2]  # a lane each: nothing strikes through a name
    assert [text.get_text() for text in voice.texts] == ["rising"]
    assert [(t.get_text(), t.get_position()[0]) for t in seen.texts] == [("its", 2.0), ("normal", 5.5)]
    assert [t.get_text() for t in heard.texts] == ["its"]
    assert not visual.texts
    assert not acoustic.texts
    assert face.get_shared_x_axes().joined(face, visual)


def test_of_many_layers_some_are_whole_and_all_have_their_mean() -> None:
    maps = [(gates(3, seed), None) for seed in range(12)]
    *whole, means = maps_of(plot_shift_maps(maps, TOKENS))
    assert [ax.get_ylabel() for ax in whole] == [f"layer {n} of 12" for n in (1, 5, 8, 12)]
    expected = np.stack([visual.mean(axis=0) for visual, _ in maps])
    np.testing.assert_allclose(means.images[0].get_array(), expected, rtol=1e-6)
    assert [label.get_text() for label in means.get_yticklabels()] == [str(n) for n in range(1, 13)]


def test_chosen_layers_are_all_whole_and_figures_may_share_their_colours() -> None:
    maps = [(gates(3, seed), None) for seed in range(6)]
    figure = plot_shift_maps(maps, TOKENS, layers=[0, 2, 3, 5, 7, 11], depth=12, whole=True, limits=(0.25, 7.5))
    panels = maps_of(figure)
    assert [ax.get_ylabel() for ax in panels] == [f"layer {n} of 12" for n in (1, 3, 4, 6, 8, 12)]
    assert {ax.images[0].get_clim() for ax in panels} == {(0.0, 7.5)}
    signed = plot_shift_maps(maps[:1], TOKENS, limits=(-9.0, 2.0))
    assert maps_of(signed)[0].images[0].get_clim() == (-9.0, 9.0)


def test_one_frame_is_a_map_of_words_by_layers() -> None:
    maps = [(None, gates(1, seed)) for seed in range(6)]
    (ax,) = maps_of(plot_shift_maps(maps, TOKENS))
    np.testing.assert_array_equal(ax.images[0].get_array(), np.concatenate([acoustic for _, acoustic in maps], axis=1))
    assert [label.get_text() for label in ax.get_xticklabels()] == list("123456")
    assert ax.get_title() == "the only acoustic frame"


def test_known_times_are_seconds_on_the_axis() -> None:
    """A column is as wide as its frame lasts; both modalities have one range; what is not known is numbered."""
    spoken = np.array([[2.0, 2.2], [2.2, 2.7], [3.0, 3.4]])  # a pause before the last
    windows = np.stack([1.9 + 0.3 * np.arange(6), 2.3 + 0.3 * np.arange(6)], axis=1)  # overlap by 0.1 s
    words = {"visual": [Span("its", 0, 1), Span("normal", 1, 3)]}
    events = [Event("visual", "smile", 1, 2)]
    maps = [(gates(3), gates(6))]
    times = {"visual": spoken, "acoustic": windows}
    figure = plot_shift_maps(maps, TOKENS, words=words, events=events, times=times)
    visual, acoustic = maps_of(figure)
    assert [ax.get_xlabel() for ax in (visual, acoustic)] == ["visual frames, time (s)", "acoustic frames, time (s)"]
    assert visual.get_xlim() == acoustic.get_xlim() == pytest.approx((1.9, 3.8))
    np.testing.assert_allclose(visual.images[0]._Ax, [2.0, 2.2, 2.7, 3.0, 3.4])
    shown = np.asarray(visual.images[0].get_array())
    np.testing.assert_array_equal(shown[:, [0, 1, 3]], maps[0][0])
    assert np.isnan(shown[:, 2]).all()
    np.testing.assert_array_equal(acoustic.images[0].get_array(), maps[0][1])
    assert visual.get_ylim() == acoustic.get_ylim() == (3.5, -0.5)  # the first word above
    seen, said = figure.axes[0], figure.axes[2]
    assert [(t.get_text(), t.get_position()[0]) for t in said.texts] == [("its", 2.1), ("normal", 2.8)]
    assert [(bar.get_x(), bar.get_width()) for bar in seen.patches] == [pytest.approx((2.2, 0.5))]
    some = maps_of(plot_shift_maps(maps, TOKENS, times={"acoustic": windows}))
    assert [ax.get_xlabel() for ax in some] == ["visual frame number", "acoustic frames, time (s)"]
    assert [ax.get_xlim()[0] for ax in some] == pytest.approx([0.5, 1.9])


@pytest.mark.parametrize(
    "times", [[[0, 1], [0, 1], [1, 2]], [[0, 1], [1, 1], [1, 2]], [[0, 1], [np.nan, 2], [2, 3]], [[0, 1], [1, 2]]]
)
def test_times_that_do_not_follow_one_another_number_the_frames(times: list[list[float]]) -> None:
    (ax,) = maps_of(plot_shift_maps([(gates(3), None)], TOKENS, times={"visual": np.array(times, float)}))
    assert (ax.get_xlabel(), ax.get_xlim()) == ("visual frame number", (0.5, 3.5))


def test_the_only_frame_says_when_it_is() -> None:
    (ax,) = maps_of(plot_shift_maps([(None, gates(1))], TOKENS, times={"acoustic": np.array([[2.25, 6.5]])}))
    assert ax.get_title() == "the only acoustic frame,\n2.25 to 6.50 s"


def test_a_layer_without_a_modality_has_an_empty_panel(tmp_path: Path) -> None:
    figure = plot_shift_maps([(None, gates(2)), (gates(2), gates(2, 1))], TOKENS)
    assert len(maps_of(figure)) == 3
    style.save(figure, tmp_path / "maps")


def test_dollars_are_no_formulas(tmp_path: Path) -> None:
    text = r"$\frac{1 a$"
    words = {"visual": [Span(text, 0, 2)]}
    figure = plot_shift_maps([(gates(2), gates(3))], [text, "$", "$x^", "]"], words=words, title=text)
    style.save(figure, tmp_path / "maps")
    assert figure.get_suptitle() == text


def test_with_the_oldest_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    get_figure = Axes.get_figure

    def before_3_10(self: Axes, *arguments: object, **options: object) -> object:
        if sys._getframe(1).f_code.co_filename == shift_maps.__file__:  # matplotlib's own calls are of its version
            assert not {*arguments, *options}
        return get_figure(self, *arguments, **options)

    monkeypatch.setattr(Axes, "get_figure", before_3_10)
    plot_shift_maps([(gates(3), None)], TOKENS, events=[Event("visual", "gaze down", 0, 2)])


def test_what_does_not_fit_is_refused() -> None:
    for maps in ([], [(None, None)], [(gates(0), None)]):
        with pytest.raises(ValueError, match="no CMS map"):
            plot_shift_maps(maps, TOKENS)
    with pytest.raises(ValueError, match="tokens"):
        plot_shift_maps([(gates(3), None)], TOKENS[:-1])
