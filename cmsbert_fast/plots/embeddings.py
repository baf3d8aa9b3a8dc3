"""The common embedding space of the modalities, as in Fig. 3, with its alignment in numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from cmsbert_fast.plots import style
from cmsbert_fast.plots.style import drawable

_MARKERS = {"linguistic": "^", "visual": "o", "acoustic": "*"}
_SIZES = {"linguistic": 13, "visual": 11, "acoustic": 22}
_PERPLEXITY = 30.0
_MOST = 300  # of each modality


class _Palette(NamedTuple):
    """The colour of each sample: of its score, its class, or one for all."""

    values: np.ndarray
    colours: ScalarMappable
    classes: tuple[str, ...] | None
    scores: bool


@style.styled
def plot_embeddings(
    embeddings: Mapping[str, np.ndarray | None],
    labels: np.ndarray | None,
    *,
    classes: Sequence[str] | None = None,
    numbers: Mapping[str, Any] | None = None,
    title: str = "",
    max_samples: int = _MOST,
    seed: int = 0,
) -> Figure:
    """t-SNE of all modalities together, and of each by itself.

    Triangles are linguistic, circles visual, stars acoustic. The colour is the sentiment or the class. Embeddings are
    first normalised to length 1, so that distances are those of the cosine: the contrastive loss sees only directions
    (Eq. 17).

    Args:
        embeddings: z_m by modality ("linguistic", "visual", "acoustic"), each (n, d), numpy arrays or CPU tensors; None
            for a modality that the model lacks.
        labels: (n,) sentiment scores, or class indices if ``classes`` is given; None where they are not known.
        classes: Names of the classes; None for sentiment scores.
        numbers: Of :func:`cmsbert_fast.training.alignment.alignment`, printed below.
        title: Printed above the figure, before method and sample size.
        max_samples: Maximum number of samples; more are subsampled at random.
        seed: Seed of the draw and of t-SNE.

    Raises:
        ValueError: There is no embedding, there are fewer than 2 samples, or sizes differ.
    """
    given = {m: np.asarray(embeddings[m]) for m in _MARKERS if embeddings.get(m) is not None}
    total = len(next(iter(given.values()), ()))
    if total < 2:
        raise ValueError("a map of the embedding space needs at least one modality and 2 samples")
    labels = np.zeros(total) if labels is None else np.asarray(labels).reshape(-1)
    for modality, z in given.items():
        if z.ndim != 2 or z.shape[0] != labels.size:
            raise ValueError(f"{modality} embeddings of shape {z.shape} do not fit {labels.size} labels")
    if total > max_samples:
        chosen = np.sort(np.random.default_rng(seed).choice(total, max_samples, replace=False))
        labels, given = labels[chosen], {m: z[chosen] for m, z in given.items()}
    points, perplexity = _project(given, seed)
    lines = _lines(numbers) if numbers else []
    figure = Figure(figsize=(7.2, 4.9 + 0.16 * len(lines)), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=[4.9, 0.05 + 0.16 * len(lines)])
    upper, lower = (figure.add_subfigure(grid[row]) for row in (0, 1))
    panels = upper.subplot_mosaic([["all", m] for m in given], width_ratios=[2.6, 1])
    palette = _palette(labels, classes)
    _draw(panels["all"], points, palette, 1.4)
    for modality, z in given.items():
        _draw(panels[modality], _project({modality: z}, seed)[0], palette, 0.7)
        panels[modality].set_title(f"{modality} by itself", pad=2)
    _explain(upper, panels, palette, tuple(points))
    sample = f"{labels.size} of {total}" if labels.size < total else str(total)
    method = f"t-SNE of z (cosine, perplexity {perplexity:g}), {sample} utterances, {len(given)} modalities"
    style.head(upper, f"{title}\n{method}".strip(), 7.0)
    if lines:
        lower.text(0.01, 0.98, "\n".join(lines), va="top", family="DejaVu Sans Mono", fontsize=6.8)
    return figure


def _palette(labels: np.ndarray, classes: Sequence[str] | None) -> _Palette:
    if classes is not None:
        colours = [style.COLOURS[i % len(style.COLOURS)] for i in range(len(classes))]
        scale = ScalarMappable(Normalize(-0.5, len(classes) - 0.5), ListedColormap(colours))
        return _Palette(labels, scale, tuple(map(drawable, classes)), False)
    limit = max(1.0, float(np.ceil(np.abs(labels).max())))
    scale = ScalarMappable(Normalize(-limit, limit), colormaps[style.SIGNED])
    return _Palette(labels, scale, None, bool(labels.any()))


def _draw(ax: Axes, points: Mapping[str, np.ndarray], palette: _Palette, size: float) -> None:
    for modality, xy in points.items():
        ax.scatter(
            xy[:, 0],
            xy[:, 1],
            s=_SIZES[modality] * size,
            c=palette.values,
            cmap=palette.colours.cmap,
            norm=palette.colours.norm,  # type: ignore[arg-type]
            marker=_MARKERS[modality],
            linewidths=0.25,
            edgecolors="0.35",
        )
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _explain(figure: Any, panels: Mapping[str, Axes], palette: _Palette, modalities: tuple[str, ...]) -> None:
    """The legend, and the scale of the scores."""
    ax = panels["all"]
    for modality in modalities:
        ax.scatter([], [], s=2 * _SIZES[modality], color=style.GREY, marker=_MARKERS[modality], label=_legend(modality))
    for i, name in enumerate(palette.classes or ()):
        ax.scatter([], [], marker="s", s=25, color=palette.colours.to_rgba(np.array(i)), label=name)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=min(5, len(ax.get_legend_handles_labels()[0])))
    if palette.scores:
        bar = figure.colorbar(palette.colours, ax=list(panels.values()), shrink=0.6, aspect=22, pad=0.02)
        bar.set_label("sentiment score (label)")
        bar.outline.set_visible(False)


def _project(embeddings: Mapping[str, np.ndarray], seed: int) -> tuple[dict[str, np.ndarray], float]:
    """Two t-SNE coordinates of every embedding, (n, 2) by modality, and the perplexity."""
    z = np.concatenate(list(embeddings.values())).astype(np.float64)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    perplexity = round(min(_PERPLEXITY, (len(z) - 1) / 3), 1)
    init = "pca" if min(z.shape) > 2 and np.ptp(z, axis=0).any() else "random"
    points = TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(z)
    return dict(zip(embeddings, np.split(points, len(embeddings)), strict=True)), perplexity


def _lines(numbers: Mapping[str, Any]) -> list[str]:
    """The alignment as a small table: a column a direction."""
    lines: list[list[str]] = []
    if "recall_at_1" in numbers:
        names = list(numbers["recall_at_1"])
        lines.append(["", *(_arrow(name) for name in names), "chance"])
        for rank in ("at_1", "at_5"):
            cells = [f"{numbers[f'recall_{rank}'][name]:.1f}" for name in names]
            chance = f"{numbers['recall_by_chance'][rank]:.1f}"
            lines.append([f"retrieval, recall {rank.replace('_', ' ')}, %", *cells, chance])
    for key, label, digits, chance in (
        ("neighbour_correlation", "corr. of nearest neighbours' scores", 2, "0.00"),
        ("neighbour_agreement", "nearest neighbour has the class, %", 1, ""),
    ):
        if key not in numbers:
            continue
        values = numbers[key]
        own = {name: value for name, value in values.items() if len(set(name.split("_to_"))) == 1}
        cross = {name: value for name, value in values.items() if name not in own}
        by_chance = chance or f"{numbers['agreement_by_chance']:.1f}"
        for group in (cross, own):
            if group and (group is own or not lines):
                lines.append(["", *(_arrow(name) for name in group), "chance"])
            if group:
                lines.append([label, *(f"{value:.{digits}f}" for value in group.values()), by_chance])
    width = max(len(line[0]) for line in lines) if lines else 0
    return [line[0].ljust(width) + "".join(cell.rjust(8) for cell in line[1:]) for line in lines]


def _legend(modality: str) -> str:
    return f"{modality} ({modality[0].upper()})"


def _arrow(name: str) -> str:
    first, second = name.split("_to_")
    return f"{first[0].upper()}→{second[0].upper()}"
