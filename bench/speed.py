"""The picture of speed in the README: what others take for the same, relative to cmsbert-clr.

The rivals of these races are in it, whether they lost or won: forms of our own code are left out, and padded forms that
were slower than another. What was not measured has no bar.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import measure, names
from bench.goals import Interval, Result
from bench.tables import time_text
from cmsbert_fast import atomic
from cmsbert_fast.plots import style

_PANELS = (
    ("Training step, 32 utterances", names.STEP, (names.STEP_CASE, names.VARIANTS)),
    ("Inference, 64 utterances", names.INFERENCE, (names.inference_case(64),)),
    ("Inference, 1 utterance", names.INFERENCE, (names.inference_case(1),)),
)
_OURS = (names.OURS_CLR, names.CLR)
_LEFT_OUT = {*_OURS, names.OURS_BFLOAT16, names.CMS, names.SAME_PACKED, names.SAME_TO_50, names.LITERAL}
_LABELS = {
    names.TEXT_BERT: "Hugging Face BERT, text only, padded",
    names.MAG_BERT: "MAG-BERT as published, padded to 50",
    names.MODEL_PADDED: "the same model in PyTorch, padded to 50",
    names.SAME_TO_THE_LONGEST: "the same model in PyTorch, padded",
    names.SAME_COMPILED: "the same model, torch.compile, padded",
    names.BERT: "text-only BERT, packed by this code",
    names.MAG: "MAG-BERT, packed by this code",
    names.ONNXRUNTIME: "onnxruntime BERT, text only, padded",
    names.OPENVINO: "OpenVINO BERT, text only, padded",
    names.in_groups(names.ONNXRUNTIME, names.GROUPS): "onnxruntime BERT, by 4 lengths",
    names.in_groups(names.OPENVINO, names.GROUPS): "OpenVINO BERT, by 4 lengths",
}


class Row(NamedTuple):
    """A bar: what it is of, when it was measured, the median seconds of both, theirs / ours with its 95 % interval."""

    label: str
    date: str
    ours: float
    theirs: float
    ratio: Interval

    def __str__(self) -> str:
        return f"{self.label}: {self.ratio[0]:.2f} ({time_text(self.theirs)} / {time_text(self.ours)})"


class _Theme(NamedTuple):
    paper: str
    ink: str
    faster: str  # colour of what takes longer than ours
    slower: str


_THEMES = {
    "": _Theme("white", "0.2", style.BLUE, style.VERMILION),
    "-dark": _Theme("#0d1117", "0.85", style.SKY, style.ORANGE),
}


def panels(results: Sequence[Result]) -> dict[str, list[Row]]:
    """What there is to draw of one machine: rows by the title of their panel, the slowest rival first.

    Of a rival in several races, the last counts.
    """
    found = {}
    for title, suite, cases in _PANELS:
        rows: dict[str, Row] = {}
        races = [r for r in results if r["kind"] == "race" and r["suite"] == suite and r["case"] in cases]
        for race in sorted(races, key=lambda race: race["datetime"]):
            ours = next(race["seconds"][name] for name in _OURS if name in race["seconds"])
            for name, theirs in race["seconds"].items():
                if name not in _LEFT_OUT:
                    value, low, high = measure.ratio(ours, theirs)
                    medians = float(np.median(ours)), float(np.median(theirs))
                    label, date = _LABELS.get(name, name), race["datetime"][:10]
                    rows[name] = Row(label, date, *medians, (1 / value, 1 / high, 1 / low))
        if rows:
            found[title] = sorted(rows.values(), key=lambda row: -row.ratio[0])
    return found


def description(machine: str, found: dict[str, list[Row]]) -> str:
    """The picture in words; the file holds it."""
    parts = [f"{title}: {'; '.join(map(str, rows))}." for title, rows in found.items()]
    return " ".join([f"Time relative to cmsbert-clr on {machine}.", *parts])


def plot_speed(machine: str, results: Sequence[Result], stem: Path) -> None:
    """Writes ``stem.svg`` and ``stem-dark.svg``; neither where no race of the picture was measured.

    Args:
        machine: The name of the machine.
        results: All of that machine.
        stem: Of the files.
    """
    found = panels(results)
    if not found:
        return
    for suffix, theme in _THEMES.items():
        path = stem.with_name(f"{stem.name}{suffix}.svg")
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(machine, found, theme, path)


@style.styled
def _write(machine: str, found: dict[str, list[Row]], theme: _Theme, path: Path) -> None:
    heights = [len(rows) for rows in found.values()]
    figure = Figure(figsize=(7.6, 0.75 + 0.42 * len(found) + 0.2 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(found), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    longest = max(row.ratio[2] for rows in found.values() for row in rows)
    for place, (ax, (title, rows)) in enumerate(zip(axes, found.items(), strict=True)):
        _bars(ax, place, rows, theme)
        ax.set_title(title, loc="left", color=theme.ink, fontweight="bold")
    axes[-1].set_xlim(0, 1.28 * longest)
    dates = sorted({row.date for rows in found.values() for row in rows})
    measured = f"time / time of cmsbert-clr (1: as fast), 95 % interval; {' to '.join(dates[:1] + dates[1:][-1:])}"
    axes[-1].set_xlabel(measured, color=theme.ink)
    text = f"{machine}, BERT-base shape, MOSI's lengths, float32. Orange: faster than cmsbert-clr."
    figure.suptitle(text, x=0.01, ha="left", fontsize=8, color=theme.ink)
    metadata = {"Date": None, "Description": description(machine, found)}
    atomic.replace_file(
        path, lambda draft: figure.savefig(draft, format="svg", facecolor=theme.paper, metadata=metadata)
    )


def _bars(ax: Axes, place: int, rows: Sequence[Row], theme: _Theme) -> None:
    """The rows from top to bottom; the SVG calls a bar ``bar-PANEL-ROW``."""
    for i, row in enumerate(rows):
        value, low, high = row.ratio
        colour = theme.faster if value >= 1 else theme.slower
        (bar,) = ax.barh(i, value, height=0.72, color=colour, xerr=[[value - low], [high - value]], ecolor=theme.ink)
        bar.set_gid(f"bar-{place}-{i}")
        text = f"{value:.2f}   {time_text(row.theirs)} / {time_text(row.ours)}"
        ax.annotate(
            text, (max(high, 1), i), (5, 0), textcoords="offset points", va="center", fontsize=6.5, color=theme.ink
        )
    ax.axvline(1, color=theme.ink, linewidth=0.8, linestyle=(0, (3, 2)))
    ax.set_yticks(range(len(rows)), [row.label for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(colors=theme.ink)
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_color(theme.ink)
    ax.set_facecolor(theme.paper)
