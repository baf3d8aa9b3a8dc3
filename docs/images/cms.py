"""Draws ``cms.svg`` beside this file: context-driven modality shifting (Fig. 2a of the paper, Eq. 1-7).

Our own drawing. To draw it again: ``python docs/images/cms.py``.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from cmsbert_fast.plots import style

WORDS = ("the", "acting", "is", "normal")
TEXT, FACE, VOICE, SUM = "#DCE9F5", "#FBE3D2", "#DDF1E8", "#F1F1F1"
INK = "0.2"


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    """A labelled box; (x, y) is its lower left corner."""
    shape = FancyBboxPatch(
        (x, y), width, height, "round,pad=0,rounding_size=0.08", facecolor=colour, edgecolor=INK, lw=0.8
    )
    ax.add_patch(shape)
    label = ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5, color=INK)
    label.set_parse_math(True)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: str = "arc3") -> None:
    """An arrow between two points."""
    ax.add_patch(
        FancyArrowPatch(start, end, connectionstyle=bend, arrowstyle="-|>", mutation_scale=9, lw=0.9, color=INK)
    )


def note(ax: Axes, x: float, y: float, text: str, ha: str = "center", size: float = 7.5) -> None:
    """A text without a box."""
    ax.text(x, y, text, ha=ha, va="center", fontsize=size, color=style.GREY).set_parse_math(True)


def frames(ax: Axes, x: float, y: float, count: int, colour: str, name: str) -> None:
    """A row of frames."""
    for j in range(count):
        ax.add_patch(Rectangle((x + 0.42 * j, y), 0.36, 0.5, facecolor=colour, edgecolor=INK, lw=0.7))
    note(ax, x + 0.21 * count, y - 0.22, name)


def gates(ax: Axes, x: float, y: float, count: int, colour: str, seed: int) -> None:
    """A map of gates: words down, frames across; dark is open."""
    values = np.random.default_rng(seed).beta(0.5, 1.0, size=(len(WORDS), count))
    for (i, j), value in np.ndenumerate(values):
        place = (x + 0.42 * j, y + 0.42 * (len(WORDS) - 1 - i))
        ax.add_patch(Rectangle(place, 0.4, 0.4, facecolor=colour, alpha=0.08 + 0.9 * value, linewidth=0))
    ax.add_patch(
        Rectangle(
            (x - 0.02, y - 0.02), 0.42 * count + 0.02, 0.42 * len(WORDS) + 0.02, fill=False, edgecolor=INK, lw=0.7
        )
    )


@style.styled
def draw() -> Figure:
    """The whole drawing."""
    figure = Figure(figsize=(8.6, 4.5))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 17.2), ylim=(0, 9))
    ax.set_axis_off()
    # Left: what there is.
    for i, word in enumerate(WORDS):
        box(ax, 0.3, 7.75 - 0.52 * i, 1.35, 0.44, word, TEXT)
    note(ax, 0.98, 8.5, r"words $X_i$")
    frames(ax, 0.3, 3.6, 5, FACE, r"frames of the face $V_j$")
    frames(ax, 0.3, 1.5, 7, VOICE, r"frames of the voice $A_j$")
    # Gates.
    gates(ax, 4.6, 5.0, 5, style.VERMILION, 3)
    gates(ax, 4.6, 1.6, 7, style.GREEN, 5)
    note(ax, 5.65, 7.0, r"$g^v_{ij}=\sigma(W_{gv}[X_i;V_j]+b_v)$   (1)", size=8.5)
    note(ax, 6.05, 3.6, r"$g^a_{ij}=\sigma(W_{ga}[X_i;A_j]+b_a)$   (2)", size=8.5)
    for target in ((4.5, 6.1), (4.5, 2.9)):
        arrow(ax, (1.75, 6.9), target, "arc3,rad=-0.08")
    arrow(ax, (2.5, 3.95), (4.5, 5.5), "arc3,rad=0.1")
    arrow(ax, (3.3, 1.75), (4.5, 2.1))
    # Shift.
    box(ax, 8.6, 3.55, 2.35, 1.5, "mean over all\nframes, gated\n" + r"$a_i$   (3, 4)", SUM)
    arrow(ax, (6.8, 5.6), (8.5, 4.6))
    arrow(ax, (7.65, 2.5), (8.5, 3.9))
    note(ax, 7.75, 5.45, r"$\times\,W_vV_j$")
    note(ax, 8.45, 2.95, r"$\times\,W_aA_j$")
    # Attention.
    for i, name in enumerate("QKV"):
        y = 6.1 - 2.0 * i
        box(ax, 12.2, y, 1.75, 0.75, rf"$X_iW^{name}+a_i$", TEXT)
        arrow(ax, (11.0, 4.3), (12.1, y + 0.37))
        arrow(ax, (14.0, y + 0.37), (14.8, 4.45))
    box(ax, 14.85, 3.6, 2.0, 1.7, "self-attention\nof BERT\n(5, 6, 7)", SUM)
    arrow(ax, (1.75, 7.9), (13.1, 6.95), "arc3,rad=-0.12")
    arrow(ax, (15.85, 5.35), (15.85, 6.5))
    note(ax, 15.85, 6.75, r"$z_i$", size=10)
    note(
        ax,
        8.6,
        0.65,
        "In every layer, each with its own weights; without gates and shifts it is BERT. Numbers: equations.",
    )
    return figure


if __name__ == "__main__":
    style.save(draw(), Path(__file__).with_name("cms"))
    Path(__file__).with_name("cms.png").unlink()  # pages show the SVG
