"""Figures of a run: CMS maps (Fig. 1), the common embedding space (Fig. 3), and confusion matrices of classes.

All return a ``matplotlib.figure.Figure`` without a window: ``figure.savefig(path)`` writes it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import offset_copy
from sklearn.manifold import TSNE

from cmsbert_fast.data.embedded import Event
from cmsbert_fast.models.cmsbert.outputs import SUBNETWORKS

_MARKERS = {"linguistic": "^", "visual": "o", "acoustic": "*"}
_PANELS_PER_ROW = 3


def plot_shift_maps(
    shift_maps: Sequence[tuple[np.ndarray | None, np.ndarray | None]],
    tokens: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    events: Sequence[Event] = (),
    title: str | None = None,
) -> Figure:
    """CMS maps of one utterance, as in Fig. 1: the gates g_ij of Eq. 1-2, tokens down, frames across.

    One panel per layer, visual frames to the left of acoustic ones. Bright is an open gate. Each map has its own scale
    and colour bar.

    Args:
        shift_maps: For every CMS layer, the gates (visual (N, N_v) or None, acoustic (N, N_a) or None) of the
            utterance, numpy arrays or CPU tensors, without padding. A map without frames is treated as None.
        tokens: The N row labels.
        layers: Layer numbers for the titles; 0, 1, ... by default.
        events: Spans to mark and name above their frames.
        title: Printed above all panels.

    Raises:
        ValueError: There is no map to draw, or a map does not have one row per token.
    """
    maps = [{"visual": visual, "acoustic": acoustic} for visual, acoustic in shift_maps]
    panels = [{name: np.asarray(gates) for name, gates in m.items() if gates is not None} for m in maps]
    panels = [{name: gates for name, gates in panel.items() if gates.size} for panel in panels]
    if not any(panels):
        raise ValueError("no CMS map to draw: the model has no CMS layer or the utterance has no frame")
    for gates in (gates for panel in panels for gates in panel.values()):
        if gates.ndim != 2 or gates.shape[0] != len(tokens):
            raise ValueError(f"a map of shape {gates.shape} does not fit {len(tokens)} tokens")
    numbers = range(len(panels)) if layers is None else layers

    columns = min(len(panels), _PANELS_PER_ROW)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, rows * (1.6 + 0.2 * len(tokens))), layout="constrained")
    if title:
        figure.suptitle(title, wrap=True)
    grid = figure.subfigures(rows, columns, squeeze=False).reshape(-1)
    for subfigure, panel, number in zip(grid, panels, numbers, strict=False):
        subfigure.suptitle(f"layer {number}", fontsize="medium")
        widths = [gates.shape[1] for gates in panel.values()]
        # A modality with one frame still needs room for its label.
        ratios = [max(width, 0.25 * max(widths)) for width in widths]
        axes = subfigure.subplots(1, len(panel), width_ratios=ratios, squeeze=False)[0] if panel else []
        for i, (ax, (modality, gates)) in enumerate(zip(axes, panel.items(), strict=True)):
            image = ax.imshow(gates, aspect="auto", interpolation="nearest", cmap="inferno")
            subfigure.colorbar(image, ax=ax, location="bottom", fraction=0.05, pad=0.02)
            ax.set_xlabel(f"{modality} frame")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.set_yticks(range(len(tokens)), tokens if i == 0 else [])
            _mark_events(figure, ax, [event for event in events if event.modality == modality])
    _print_as_written(figure)
    return figure


def plot_embeddings(
    embeddings: Mapping[str, np.ndarray | None],
    labels: np.ndarray,
    *,
    classes: Sequence[str] | None = None,
    title: str | None = None,
    max_samples: int = 400,
    seed: int = 0,
) -> Figure:
    """t-SNE of the modalities' embeddings in their common space, as in Fig. 3.

    Triangles are linguistic, circles visual, stars acoustic. The colour is the sentiment or the class. Embeddings are
    first normalised to length 1: the contrastive loss sees only their directions (Eq. 17).

    Args:
        embeddings: z_m by modality ("linguistic", "visual", "acoustic"), each (n, d), numpy arrays or CPU tensors; None
            for a modality that the model lacks.
        labels: (n,) sentiment scores, or class indices if ``classes`` is given.
        classes: Names of the classes; None for sentiment scores.
        title: Printed above the figure.
        max_samples: Maximum number of samples; more are subsampled at random.
        seed: Seed of the draw and of t-SNE.

    Raises:
        ValueError: There is no embedding, there are fewer than 2 samples, or sizes differ.
    """
    given = {m: np.asarray(embeddings[m]) for m in SUBNETWORKS if embeddings.get(m) is not None}
    labels = np.asarray(labels).reshape(-1)
    if not given or labels.size < 2:
        raise ValueError("a map of the embedding space needs at least one modality and 2 samples")
    for modality, z in given.items():
        if z.ndim != 2 or z.shape[0] != labels.size:
            raise ValueError(f"{modality} embeddings of shape {z.shape} do not fit {labels.size} labels")
    if labels.size > max_samples:
        chosen = np.sort(np.random.default_rng(seed).choice(labels.size, max_samples, replace=False))
        labels, given = labels[chosen], {m: z[chosen] for m, z in given.items()}
    figure = Figure(figsize=(7, 6), layout="constrained")
    ax = figure.add_subplot()
    _scatter(figure, ax, _project(given, seed), labels, classes)
    if title:
        ax.set_title(title)
    _print_as_written(figure)
    return figure


def plot_confusion(counts: Mapping[str, np.ndarray], classes: Sequence[str], title: str | None = None) -> Figure:
    """Confusion matrices: rows are true classes, columns predicted ones, colours the share of the true class.

    Args:
        counts: By the panel's title, how many examples of each true class were predicted as which, (K, K).
        classes: The K names.
        title: Printed above all panels.
    """
    columns = min(len(counts), _PANELS_PER_ROW)
    rows = -(-len(counts) // columns)
    side = 1.6 + 0.7 * len(classes)
    figure = Figure(figsize=(columns * side + 1, rows * side), layout="constrained")
    if title:
        figure.suptitle(title, wrap=True)
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for ax, (name, matrix) in zip(panels, counts.items(), strict=False):
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        ax.set_title(name)
        ax.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        ax.set_yticks(range(len(classes)), classes)
        ax.set_xlabel("predicted")
        ax.set_ylabel("true")
        for (true, predicted), count in np.ndenumerate(matrix):
            colour = "white" if share[true, predicted] > 0.5 else "black"
            ax.text(predicted, true, str(count), ha="center", va="center", color=colour)
    for ax in panels[len(counts) :]:
        ax.remove()
    figure.colorbar(image, ax=list(panels[: len(counts)]), label="share of the true class")
    _print_as_written(figure)
    return figure


def _project(embeddings: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Two t-SNE coordinates of every embedding, (n, 2) by modality."""
    z = np.concatenate(list(embeddings.values())).astype(np.float64)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, (len(z) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="random", random_state=seed).fit_transform(z)
    return dict(zip(embeddings, np.split(points, len(embeddings)), strict=True))


def _scatter(
    figure: Figure, ax: Axes, points: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str] | None
) -> None:
    limit = max(1.0, float(np.ceil(np.abs(labels).max())))
    palette: dict = {"cmap": "coolwarm", "vmin": -limit, "vmax": limit}
    if classes is not None:
        palette = {"cmap": "tab10", "vmin": -0.5, "vmax": 9.5}
    for modality, xy in points.items():
        size = 40 if modality == "acoustic" else 22
        ax.scatter(
            xy[:, 0], xy[:, 1], s=size, c=labels, marker=_MARKERS[modality], linewidths=0.2, edgecolors="0.4", **palette
        )
        ax.scatter([], [], s=size, color="0.5", marker=_MARKERS[modality], label=modality)
    if classes is None:
        figure.colorbar(ax.collections[0], ax=ax, label="sentiment")
    else:
        colours = ax.collections[0].to_rgba(np.arange(len(classes)))
        for name, colour in zip(classes, colours, strict=True):
            ax.scatter([], [], marker="s", color=colour, label=name)
    ax.legend(loc="best", fontsize="small")
    ax.set_xticks([])
    ax.set_yticks([])


def _print_as_written(figure: Figure) -> None:
    # A "$" in transcripts and names would start a formula.
    for text in figure.findobj(Text):
        if text.get_wrap():  # wrapping parses formulas anyway
            text.set_text(text.get_text().replace("$", r"\$"))
        else:
            text.set_parse_math(False)


def _mark_events(figure: Figure, ax: Axes, events: Sequence[Event]) -> None:
    for lane, event in enumerate(sorted(events, key=lambda event: event.start)):
        left, right = event.start - 0.5, event.stop - 0.5
        for edge in (left, right):
            ax.axvline(edge, color="cyan", linewidth=0.8, linestyle=":")
        # Above the map, each in its own lane: events and their names may overlap.
        height = 4 + 13 * lane
        ax.annotate(
            event.name,
            ((left + right) / 2, 1),
            (0, height + 2),
            xycoords=ax.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
        bar = offset_copy(ax.get_xaxis_transform(), figure, y=height, units="points")
        ax.plot([left, right], [1, 1], color="tab:blue", linewidth=2, transform=bar, clip_on=False)
