"""Files of figures: both formats, the same bytes again, one style whatever a user's matplotlib is set to."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cmsbert_fast.plots import style
from cmsbert_fast.plots.confusion import plot_confusion
from cmsbert_fast.plots.scores import plot_scores


def scores() -> Figure:
    true = np.linspace(-3, 3, 20)
    return plot_scores(true + 0.1, true, "reviews, $test$ set")


def test_both_formats_and_the_same_bytes_again(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        style.save(scores(), tmp_path / name / "scatter")
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert set(found[0]) == {"scatter.png", "scatter.svg"}
    assert found[0] == found[1]
    assert found[0]["scatter.svg"].startswith(b"<?xml")


def test_a_users_settings_change_nothing(tmp_path: Path) -> None:
    style.save(scores(), tmp_path / "plain")
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.dpi": 30}):
        style.save(scores(), tmp_path / "set")
        assert matplotlib.rcParams["font.size"] == 20
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "set.svg").read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\tb\nc", "a b c"),
        ("\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}", "\N{THUMBS UP SIGN}"),
        ("#\ufe0f\u20e3", "#"),
        ("\x1b[31mred", "[31mred"),
        ("a\u200db", "ab"),
        ("电影", "电影"),
    ],
)
def test_drawable(text: str, expected: str) -> None:
    assert style.drawable(text) == expected


@pytest.mark.parametrize("text", ["um yeah the characters ", "UM YEAH THE CHARACTERS WEATHER "])
def test_a_title_stays_in_its_figure(text: str) -> None:
    figure = Figure(figsize=(4, 2))
    style.styled(style.head)(figure, text * 8, 3.8)
    FigureCanvasAgg(figure).draw()
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1


def test_wrapped_lines_fit_and_wide_characters_count_twice() -> None:
    latin = style.wrapped("word " * 40, 4, 8).split("\n")
    chinese = style.wrapped("电影" * 60, 4, 8).split("\n")
    assert len(latin) > 1
    assert max(map(len, latin)) > 1.5 * max(map(len, chinese))
    assert "".join(chinese) == "电影" * 60
    assert style.wrapped("one\ntwo", 4, 8) == "one\ntwo"


def test_confusion_matrices_show_shares_and_counts() -> None:
    counts = np.array([[8, 2], [0, 0]])
    figure = plot_confusion({"": counts}, ["sad", "happy"], "test")
    (ax,) = (ax for ax in figure.axes if ax.images)
    np.testing.assert_allclose(ax.images[0].get_array(), [[80, 20], [0, 0]])
    assert [text.get_text() for text in ax.texts] == ["8", "2", "0", "0"]
    assert ax.get_ylabel() == "true"
    assert any("% of the true class" in ax.get_ylabel() for ax in figure.axes)
