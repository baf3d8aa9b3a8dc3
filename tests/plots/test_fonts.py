"""Fonts for other scripts, with a font made here: what is installed differs between machines."""

import warnings
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from cmsbert_fast.plots import fonts, style

KLINGON = "\uf8d0"  # for private use: no usual font has it


def make_font(path: Path, characters: str, family: str) -> Path:
    """A font in which every character is the same square."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 700), (800, 700), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", *(f"u{ord(c):04X}" for c in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):04X}" for c in characters})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWeightClass=400)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture(autouse=True)
def _only_matplotlibs_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing told yet."""
    manager = font_manager.fontManager
    own = [entry for entry in manager.ttflist if "mpl-data" in str(entry.fname)]
    monkeypatch.setattr(manager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *arguments: [])
    monkeypatch.setattr(fonts, "_told", set())


def figure_of(text: str) -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.5, text)
    return figure


def test_a_font_that_has_the_script_is_used(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    font_manager.fontManager.addfont(make_font(tmp_path / "k.ttf", KLINGON, "Klingon Sans"))
    figure = figure_of(f"a {KLINGON}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        style.save(figure, tmp_path / "figure")
    assert figure.texts[0].get_fontfamily() == ["DejaVu Sans", "Klingon Sans"]
    assert capsys.readouterr().err == ""


def test_a_font_installed_after_matplotlib_listed_them_is_found(tmp_path: Path, monkeypatch) -> None:
    path = make_font(tmp_path / "k.ttf", KLINGON, "New Sans")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *a: [str(tmp_path / "broken.ttf"), str(path)])
    assert fonts.fonts_for([KLINGON]) == (["New Sans"], [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("电影", ("Chinese characters", "影 电", "fonts-noto-cjk")),
        ("영화", ("Korean letters", "fonts-noto-cjk")),
        ("\N{THUMBS UP SIGN}", ("emoji", "fonts-symbola")),
        ("हिन्दी", ("Devanagari", "fonts-noto-core")),
    ],
)
def test_without_a_font_one_sentence(text: str, said: tuple, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's own, a line a glyph
        for name in ("one", "two"):
            style.save(figure_of(text), tmp_path / name)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: No installed font has the ")
    assert all(part in line for part in said)
    assert (tmp_path / "two.svg").exists()


def test_what_the_default_font_has_needs_no_other(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fonts, "fonts_for", None)
    style.save(figure_of("Übergröße, Кино, αβγ"), tmp_path / "figure")
