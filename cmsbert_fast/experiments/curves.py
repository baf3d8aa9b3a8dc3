"""What runs have logged after each epoch, for their learning curves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.experiments.tables import METRICS, Metric
from cmsbert_fast.plots import style
from cmsbert_fast.plots.curves import Curve, plot_curves
from cmsbert_fast.training.log import LOG

_START = '{"event": "valid"'


def name(table: str, data: str) -> str:
    """The name of the figure of a table and data set, without its suffix."""
    return f"{table}-curves-{data}"


def read_validation(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log after its epochs; empty where it is missing or damaged."""
    try:
        with open(folder / LOG, encoding="utf-8") as file:
            found = [json.loads(line) for line in file if line.startswith(_START)]
        return found if all(type(line["epoch"]) is int for line in found) else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def draw(stem: Path, root: Path, title: str, section: Mapping[str, Any]) -> None:
    """Draws the validation curves of a table's runs on one data set; nothing where none has a log.

    Args:
        stem: Of the figure.
        root: The output folder.
        title: Of the table and data set. The figure adds how many runs have no log, or a damaged one.
        section: The table's part of one data set, as in its JSON file.
    """
    logs = {
        row["label"]: [read_validation(root / run["folder"]) for run in row["runs"]]
        for row in section["rows"]
        if row["runs"]
    }
    metric = _metric([log for of_row in logs.values() for log in of_row])
    if metric is None:
        return
    systems = {label: _curves(of_row, metric.names[0]) for label, of_row in logs.items()}
    systems = {label: curves for label, curves in systems.items() if curves}
    nu = {label: curves for label, of_row in logs.items() if (curves := _curves(of_row, "nu"))}
    missing = sum(map(len, logs.values())) - sum(map(len, systems.values()))
    if missing:
        title += f" (not drawn, their log is missing or damaged: {missing} of {sum(map(len, logs.values()))} runs)"
    style.save(plot_curves(systems, f"validation {metric.label}", metric.lower, title, nu), stem)


def _metric(logs: list[list[dict[str, Any]]]) -> Metric | None:
    """That of selection, as far as the logs have it: MAE of scores, accuracy of classes."""
    return next(
        (METRICS[m] for m in ("mae", "wa") if any(METRICS[m].names[0] in line for log in logs for line in log)), None
    )


def _curves(logs: list[list[dict[str, Any]]], name: str) -> list[Curve]:
    curves = []
    for log in logs:
        points = [(line["epoch"], line[name]) for line in log if type(line.get(name)) in (int, float)]
        if points:
            curves.append(Curve(*(np.array(values, np.float64) for values in zip(*points, strict=True))))
    return curves
