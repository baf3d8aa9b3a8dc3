"""CMS maps of one utterance, as in Fig. 1: rows of words and of what is seen and heard, and the gates of layers below.

The gates are g_ij of Eq. 1-2: how far frame j shifts word piece i. All maps of a figure have one colour scale. The axis
of frames has seconds where their times are known, else it numbers them; its label says which.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from cmsbert_fast.plots import style
from cmsbert_fast.plots.style import drawable

_MOST_LAYERS = 4  # drawn whole; of more, so many and the means of all
_ROW = 0.135  # inches a word piece
_LANE = 0.17  # inches an event
_LETTER = 0.062  # inches, at most, of the words above a map
_UPRIGHT = 0.1  # inches that an upright word takes
_GAP = 1e-4  # seconds between frames, from which on a map is blank there
_SENSES = {"visual": "face", "acoustic": "voice"}
_GATE = r"gate $g_{ij}$ (Eq. 1, 2)"


class Span(NamedTuple):
    """Frames ``start`` to ``stop - 1`` and what they are."""

    name: str
    start: int
    stop: int


class Event(Protocol):
    """Something to see or hear in frames ``start`` to ``stop - 1`` of a modality ("visual" or "acoustic")."""

    @property
    def modality(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...


class _Column(NamedTuple):
    """A modality: how many frames it has, the words that are said during them, and what happens.

    ``times`` are start and stop of each frame in seconds, ascending; None: frames are numbered from 1.
    """

    modality: str
    frames: int
    words: list[Span]
    events: list[Event]
    times: np.ndarray | None

    def left(self, frame: int) -> float:
        """Where a frame begins on the axis."""
        return frame + 0.5 if self.times is None else float(self.times[frame, 0])

    def right(self, frame: int) -> float:
        """Where a frame ends on the axis."""
        return frame + 1.5 if self.times is None else float(self.times[frame, 1])

    def ends(self, part: Span | Event) -> tuple[float, float]:
        """Where a word or an event begins and ends on the axis."""
        return self.left(part.start), self.right(min(part.stop, self.frames) - 1)

    @property
    def label(self) -> str:
        """Of the axis."""
        return f"{self.modality} frame number" if self.times is None else f"{self.modality} frames, time (s)"

    @property
    def width(self) -> float:
        """In inches."""
        inches = max(0.11 * self.frames, 0.15 * len(self.words))
        if self.times is not None and self.words:
            shortest = min(np.subtract(*self.ends(span)[::-1]) for span in self.words)
            inches = max(inches, _UPRIGHT * (self.right(self.frames - 1) - self.left(0)) / shortest)
        return float(np.clip(inches, 1.1, 7.5))


class _Row(NamedTuple):
    """A row of panels: "events" (with so many lanes), "words", "map" (of the layer in that place) or "means"."""

    kind: str
    height: float  # inches
    place: int = 0
    lanes: int = 0


class _Maps(NamedTuple):
    """By layer the gates of each modality that has frames, (N, N_m); the layers' numbers, and how many there are."""

    gates: list[dict[str, np.ndarray]]
    layers: list[int]
    depth: int
    tokens: list[str]
    whole: bool = False
    limits: tuple[float, float] | None = None

    @property
    def frames(self) -> dict[str, int]:
        return {name: gates.shape[1] for panel in self.gates for name, gates in sorted(panel.items(), reverse=True)}

    def scale(self) -> ScalarMappable:
        """From 0 to the largest gate; where gates are negative too, from minus to plus the largest."""
        values = np.concatenate([gates.ravel() for panel in self.gates for gates in panel.values()])
        low, high = self.limits or (float(values.min()), float(values.max()))
        most = max(-low, high, 1e-6)
        signed = low < 0
        cmap = colormaps[style.SIGNED if signed else style.AMOUNT]
        return ScalarMappable(Normalize(-most if signed else 0.0, most), cmap)

    def label(self, place: int) -> str:
        return f"layer {self.layers[place] + 1} of {self.depth}"


@style.styled
def plot_shift_maps(
    shift_maps: Sequence[tuple[np.ndarray | None, np.ndarray | None]],
    tokens: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    depth: int | None = None,
    whole: bool = False,
    limits: tuple[float, float] | None = None,
    words: Mapping[str, Sequence[Span]] | None = None,
    events: Sequence[Event] = (),
    times: Mapping[str, np.ndarray] | None = None,
    title: str = "",
) -> Figure:
    """Word pieces down, frames across, one row a layer; bright is an open gate.

    Of more than four layers, four are drawn whole, the first and last among them, and below them the mean over the
    word pieces for every layer. An utterance with one frame a modality has one map: word pieces by layers.

    Args:
        shift_maps: For every CMS layer, the gates (visual (N, N_v) or None, acoustic (N, N_a) or None) of the
            utterance, numpy arrays or CPU tensors, without padding. A map without frames is treated as None.
        tokens: The N row labels.
        layers: Numbers of the layers, from 0; 0, 1, ... by default. They are printed from 1.
        depth: Number of layers of the encoder; by default as many as there are maps.
        whole: Draw every layer whole, however many there are.
        limits: The smallest and the largest gate that the colours are to show, where figures share them; by default
            those of the maps.
        words: By modality, the frames during which each word is said, where that is known: a row above the maps.
        events: What is seen and heard: further rows.
        times: By modality, start and stop of each frame in seconds (N_m, 2), where they are known: the axis has seconds
            then. Frames that do not follow one another in time are numbered, as without it.
        title: Printed above.

    Raises:
        ValueError: There is no map to draw, or a map does not have one row per token.
    """
    maps = _checked(shift_maps, tokens, layers, depth)._replace(whole=whole, limits=limits)
    known = {name: _following((times or {}).get(name), count) for name, count in maps.frames.items()}
    if max(maps.frames.values()) == 1:
        return _plot_by_layer(maps, known, title)
    columns = []
    for name, count in maps.frames.items():
        spans = [span for span in (words or {}).get(name, ()) if span.start < count]
        columns.append(_Column(name, count, spans, [event for event in events if event.modality == name], known[name]))
    rows = _rows(maps, columns)
    height = sum(row.height for row in rows) + 0.12 * len(rows) + 1.1
    engine = ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.03, hspace=0.02, wspace=0.02)
    figure = Figure(figsize=(sum(column.width for column in columns) + 2.2, height), layout=engine)
    ratios = {"width_ratios": [c.width for c in columns], "height_ratios": [row.height for row in rows]}
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex="col", gridspec_kw=ratios)
    scale = maps.scale()
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        _draw(axes[i, j], maps, row, column, scale, first=j == 0)
    for j, column in enumerate(columns):
        axes[-1, j].set(xlim=_limits(column, columns), xlabel=column.label)
        axes[-1, j].xaxis.get_major_locator().set_params(integer=column.times is None, min_n_ticks=1)
    _finish(figure, scale, axes[[row.kind == "map" for row in rows]], title)
    return figure


def _checked(
    shift_maps: Sequence[tuple[np.ndarray | None, np.ndarray | None]],
    tokens: Sequence[str],
    layers: Sequence[int] | None,
    depth: int | None,
) -> _Maps:
    named = [{"visual": visual, "acoustic": acoustic} for visual, acoustic in shift_maps]
    arrays = [{name: np.asarray(gates) for name, gates in panel.items() if gates is not None} for panel in named]
    panels = [{name: gates for name, gates in panel.items() if gates.size} for panel in arrays]
    if not any(panels):
        raise ValueError("no CMS map to draw: the model has no CMS layer or the utterance has no frame")
    for gates in (gates for panel in panels for gates in panel.values()):
        if gates.ndim != 2 or gates.shape[0] != len(tokens):
            raise ValueError(f"a map of shape {gates.shape} does not fit {len(tokens)} tokens")
    numbers = list(range(len(panels)) if layers is None else layers)
    return _Maps(panels, numbers, depth or max(numbers) + 1, [drawable(token) for token in tokens])


def _following(times: np.ndarray | None, count: int) -> np.ndarray | None:
    """Start and stop of the first ``count`` frames, each until the next begins at most; None: they do not follow."""
    if times is None or len(times) < count:
        return None
    found = np.array(times[:count], dtype=np.float64)
    ascending = bool((np.diff(found[:, 0]) > 0).all() and (found[:, 1] > found[:, 0]).all())
    if not ascending or not np.isfinite(found).all():
        return None
    near = found[:-1, 1] > found[1:, 0] - _GAP
    found[:-1, 1][near] = found[1:, 0][near]
    return found


def _limits(column: _Column, columns: Sequence[_Column]) -> tuple[float, float]:
    """The ends of an axis; modalities with times have the same."""
    same = [column] if column.times is None else [other for other in columns if other.times is not None]
    return min(other.left(0) for other in same), max(other.right(other.frames - 1) for other in same)


def _rows(maps: _Maps, columns: Sequence[_Column]) -> list[_Row]:
    """The rows from top to bottom."""
    rows = []
    lanes = max(len(column.events) for column in columns)
    if lanes:
        rows.append(_Row("events", _LANE * lanes, lanes=lanes))
    letters = max((len(span.name) for column in columns for span in column.words), default=0)
    if letters:
        rows.append(_Row("words", 0.08 + _LETTER * letters))
    count = len(maps.gates)
    chosen = list(range(count)) if maps.whole else _spread(count)
    rows += [_Row("map", max(0.7, _ROW * len(maps.tokens)), place=place) for place in chosen]
    if len(chosen) < len(maps.gates):
        rows.append(_Row("means", max(0.5, 0.11 * len(maps.gates))))
    return rows


def _spread(count: int) -> list[int]:
    """The layers to draw whole: all, or four as evenly spread as possible."""
    if count <= _MOST_LAYERS:
        return list(range(count))
    return [round(i * (count - 1) / (_MOST_LAYERS - 1)) for i in range(_MOST_LAYERS)]


def _draw(ax: Axes, maps: _Maps, row: _Row, column: _Column, scale: ScalarMappable, first: bool) -> None:
    """One panel; ``first``: it has the labels of the row."""
    if row.kind == "events":
        _draw_events(ax, column)
        ax.set_ylim(row.lanes - 0.5, -0.5)
        return
    if row.kind == "words":
        _draw_words(ax, column, first)
        return
    if row.kind == "means":
        _draw_means(ax, maps, column, scale, first)
    else:
        _draw_map(ax, maps, row.place, column, scale, first)
    for edge in {edge for event in column.events for edge in column.ends(event)}:
        ax.axvline(edge, color="white", linewidth=0.7, linestyle=(0, (2, 2)))


def _draw_map(ax: Axes, maps: _Maps, place: int, column: _Column, scale: ScalarMappable, first: bool) -> None:
    _image(ax, maps.gates[place].get(column.modality), scale, column.times)
    ax.set_yticks(range(len(maps.tokens)), maps.tokens if first else [], fontsize=6.5)
    ax.tick_params(axis="y", length=0 if not first else 2)
    if first:
        ax.set_ylabel(maps.label(place))


def _draw_means(ax: Axes, maps: _Maps, column: _Column, scale: ScalarMappable, first: bool) -> None:
    missing = np.full(column.frames, np.nan)
    panels = [panel.get(column.modality) for panel in maps.gates]
    rows = [missing if gates is None else gates.mean(axis=0) for gates in panels]
    _image(ax, np.stack(rows), scale, column.times)
    numbers = [str(layer + 1) for layer in maps.layers]
    ax.set_yticks(range(len(numbers)), numbers if first else [], fontsize=5.5)
    ax.tick_params(axis="y", length=0)
    if first:
        ax.set_ylabel("every layer,\nmean of words")


def _image(ax: Axes, gates: np.ndarray | None, scale: ScalarMappable, times: np.ndarray | None = None) -> None:
    """The map, a column a frame: as wide as the frame lasts where it has times, and blank between frames."""
    ax.spines[:].set_visible(False)
    if gates is None:
        ax.set_axis_off()
        return
    values, (rows, columns) = np.asarray(gates, np.float32), gates.shape
    if times is None:
        extent = (0.5, columns + 0.5, rows - 0.5, -0.5)  # columns are numbered from 1
        ax.imshow(values, aspect="auto", cmap=scale.cmap, norm=scale.norm, extent=extent)  # type: ignore[arg-type]
        return
    blank = np.flatnonzero(times[1:, 0] > times[:-1, 1]) + 1
    edges = np.append(np.insert(times[:, 0], blank, times[blank - 1, 1]), times[-1, 1])
    values = np.insert(values, blank, np.nan, axis=1)
    ax.pcolorfast(edges, np.arange(rows + 1) - 0.5, values, cmap=scale.cmap, norm=scale.norm)  # type: ignore[arg-type]
    ax.set_ylim(rows - 0.5, -0.5)


def _draw_words(ax: Axes, column: _Column, first: bool) -> None:
    """The words, where they are said; upright if one of them is wider than its frames."""
    spans, ends = column.words, [column.ends(span) for span in column.words]
    inches = column.width / (column.right(column.frames - 1) - column.left(0))
    upright = any(_LETTER * len(span.name) > inches * (b - a) for span, (a, b) in zip(spans, ends, strict=True))
    _bare(ax, "word of\nthe frame" if first else "")
    ax.set_ylim(0, 1)
    for i, (span, (left, right)) in enumerate(zip(spans, ends, strict=True)):
        ax.axvspan(left, right, color="0.93" if i % 2 else "0.85", linewidth=0)
        ax.text(
            (left + right) / 2,
            0.04 if upright else 0.5,
            drawable(span.name),
            rotation=90 if upright else 0,
            ha="center",
            va="bottom" if upright else "center",
            fontsize=6.5,
        )


def _draw_events(ax: Axes, column: _Column) -> None:
    """A bar for each event in a lane of its own, its name beside it."""
    _bare(ax, _SENSES[column.modality])
    for lane, event in enumerate(sorted(column.events, key=lambda event: (event.start, event.stop))):
        left, right = column.ends(event)
        ax.barh(lane, right - left, left=left, height=0.42, color=style.VERMILION)
        after = column.right(column.frames - 1) - right >= left - column.left(0)  # the side with more room
        ax.annotate(
            drawable(event.name),
            (right if after else left, lane),
            (3 if after else -3, 0),
            textcoords="offset points",
            ha="left" if after else "right",
            va="center",
            fontsize=6.5,
        )


def _bare(ax: Axes, label: str) -> None:
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelleft=False, labelbottom=False)
    ax.set_ylabel(label, rotation=0, ha="right", va="center")


def _plot_by_layer(maps: _Maps, times: Mapping[str, np.ndarray | None], title: str) -> Figure:
    """One map for each modality, word pieces by layers: for utterances with one frame."""
    modalities = list(maps.frames)
    width = max(1.4, 0.28 * len(maps.gates))
    size = (width * len(modalities) + 2.4, max(1.0, _ROW * len(maps.tokens)) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(modalities), squeeze=False)
    scale = maps.scale()
    for column, modality in enumerate(modalities):
        ax = axes[0, column]
        missing = np.full((len(maps.tokens), 1), np.nan)
        _image(ax, np.concatenate([panel.get(modality, missing) for panel in maps.gates], axis=1), scale)
        ax.set_yticks(range(len(maps.tokens)), maps.tokens if column == 0 else [], fontsize=6.5)
        ax.set_xticks(range(1, len(maps.layers) + 1), [str(layer + 1) for layer in maps.layers])
        ax.set_xlabel(f"layer (of {maps.depth})")
        known = times[modality]
        lasts = "" if known is None else f",\n{known[0, 0]:.2f} to {known[0, 1]:.2f} s"
        ax.set_title(f"the only {modality} frame{lasts}")
    _finish(figure, scale, axes, title)
    return figure


def _finish(figure: Figure, scale: ScalarMappable, axes: Any, title: str) -> None:
    share = min(1.0, 3.0 / figure.get_figheight())
    bar = figure.colorbar(scale, ax=list(axes.flat), pad=0.02, aspect=22, shrink=share, anchor=(0, 1))
    bar.outline.set_visible(False)
    bar.ax.yaxis.label.set_parse_math(True)
    bar.set_label(_GATE)
    if title:
        style.head(figure, title, figure.get_figwidth() - 0.2)
