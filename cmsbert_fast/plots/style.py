"""The style that all figures share, and how they are written: PNG and SVG; the same numbers give the same bytes."""

import contextlib
import functools
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.figure import Figure, FigureBase
from matplotlib.rcsetup import cycler

from cmsbert_fast import atomic
from cmsbert_fast.plots import fonts

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Okabe and Ito's colours, told apart with every kind of colour blindness; the yellow is too light for lines.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, "#000000", "#7F7F7F")
AMOUNT = "inferno"  # of colour maps: from little to much
SIGNED = "coolwarm"  # from negative over 0 to positive
GREY, PALE = "0.45", "0.9"

_STYLE: Any = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: figures look the same everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 9,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "0.3",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "image.interpolation": "nearest",
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    "svg.hashsalt": "cmsbert",
    "svg.fonttype": "path",  # looks the same without our fonts
    "axes.prop_cycle": cycler(color=list(COLOURS)),
    "text.parse_math": False,  # a "$" in transcripts and names would start a formula
}
_FORMATS = {"png": {"Software": None}, "svg": {"Date": None}}  # with the metadata that would differ by time and version


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Lets a function draw in this style."""

    @functools.wraps(draw)
    def drawn(*arguments: _P.args, **options: _P.kwargs) -> _R:
        with _applied():
            return draw(*arguments, **options)

    return drawn


def save(figure: Figure, stem: Path) -> None:
    """Writes ``stem.png`` and ``stem.svg``, each atomically.

    Characters that no font has are drawn as boxes, and a sentence on stderr says which font to install.
    """
    with _applied(), warnings.catch_warnings():  # matplotlib's own, a line a glyph
        warnings.filterwarnings("ignore", message="Glyph .*missing from|Matplotlib currently does not support")
        fonts.cover(figure)
        for suffix, metadata in _FORMATS.items():
            path = stem.with_name(f"{stem.name}.{suffix}")
            atomic.replace_file(path, functools.partial(figure.savefig, format=suffix, metadata=metadata))


@contextlib.contextmanager
def _applied() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a user's matplotlibrc says
        matplotlib.rcParams.update(_STYLE)
        yield


def head(figure: FigureBase, text: str, inches: float, size: float = 8) -> None:
    """Prints a title at the upper left, in lines that fit a width; ``size`` in points."""
    figure.suptitle(wrapped(text, inches, size), x=0.01, ha="left", fontsize=size)


_SHAPELESS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # categories: control characters, joiners, surrogates, ...
_CHANGES = re.compile("[\ufe00-\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0100-\U000e01ef]")  # variants, skin, key caps


def drawable(text: str) -> str:
    """Text on one line, without what has no shape of its own or only changes that of an emoji."""
    kept = (c for c in " ".join(text.split()) if unicodedata.category(c) not in _SHAPELESS)
    return _CHANGES.sub("", "".join(kept))


def wrapped(text: str, inches: float, size: float) -> str:
    """Drawable text in lines that fit a width; ``size`` in points. Capitals count more, and Chinese characters twice.

    matplotlib's own wrapping would read a "$" as a formula.
    """
    units = max(10, int(inches * 72 / (0.56 * size)))
    wide = sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.3 * c.isupper() for c in text)
    units = max(5, int(units * len(text) / (len(text) + wide))) if text else units
    return "\n".join(drawable(line) for part in text.splitlines() for line in textwrap.wrap(part, units) or [""])
