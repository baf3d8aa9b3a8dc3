"""The report of a table: its numbers as one JSON value, from which all files are made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast import atomic
from cmsbert_fast.experiments import curves, forest, render, results, significance
from cmsbert_fast.experiments.measures import LOWER_IS_BETTER
from cmsbert_fast.experiments.plan import Cell
from cmsbert_fast.experiments.results import Found
from cmsbert_fast.experiments.tables import Row, Table, read_table
from cmsbert_fast.plots import style
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.lock import turn
from cmsbert_fast.training.report import write_csv
from cmsbert_fast.training.strict_json import finite, read_object, write_json

PLAN = "plan.json"  # of the last command: which runs are in which row


def write_plan(
    root: Path, name: str, cells: Mapping[str, Sequence[tuple[Row, Cell, Mapping[int, list[Path]]]]]
) -> None:
    """Remembers which runs a table is made of, for :func:`write_report`.

    Args:
        root: The output folder.
        name: The table, as for :func:`~cmsbert_fast.experiments.tables.read_table`.
        cells: For each data set the rows, and the folders of their runs by seed.
    """
    rows_of = {
        data: [
            {
                "label": row.label,
                "printed": _printed_label(row, cell),
                "reason": cell.reason,
                "notes": list(cell.notes),
                "runs": {str(seed): [str(folder) for folder in folders] for seed, folders in runs.items()},
            }
            for row, cell, runs in rows
        ]
        for data, rows in cells.items()
    }
    path = root / PLAN
    with turn(root):  # another runner keeps its tables
        plan = planned_tables(root) if path.exists() else {}
        write_json(path, {**plan, name: rows_of})


def _printed_label(row: Row, cell: Cell) -> str:
    """GloVe is (G), a checkpoint's own word embeddings are (E)."""
    own = cell.settings is not None and cell.settings.word_vectors == "bert"
    return row.label.replace("(G)", "(E)") if own else row.label


def planned_tables(root: Path) -> dict[str, Any]:
    """What :func:`write_plan` has written.

    Raises:
        UsageError: Nothing yet, or it is damaged.
    """
    found = read_object(root / PLAN, "remove it, and run the commands of all its tables again")
    if found is None:
        raise UsageError(f"There is no plan in {root}; run the tables first, or name their folder by --output.")
    return found


def write_report(root: Path, name: str, configs: Path, resamples: int = significance.RESAMPLES) -> dict[str, Any]:
    """Writes all files of a table below ``tables`` from the folders of its runs; trains nothing.

    Returns:
        The contents of the JSON file.
    """
    with turn(root):  # files of two runners must not get into each other's way
        return _write_report(root, read_table(name, configs), planned_tables(root)[name], resamples)


def _write_report(root: Path, table: Table, plan: Mapping[str, Any], resamples: int) -> dict[str, Any]:
    sections = {data: _section(root, table, data, rows, resamples) for data, rows in plan.items()}
    value = finite({"table": table.name, "title": table.title, "resamples": resamples, "data": sections})
    folder = root / "tables"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{table.name}.json", value)
    for suffix, text in (("md", render.markdown(table, value)), ("tex", render.latex(table, value))):
        _write(folder / f"{table.name}.{suffix}", text)
    write_csv(folder / f"{table.name}.csv", render.csv_rows(table, value))
    figure = forest.draw(table, value)
    if figure is not None:
        style.save(figure, folder / table.name)
    for data, section in value["data"].items():
        curves.draw(folder / curves.name(table.name, data), root, f"{table.title}; {data}", section)
    return value


def _section(root: Path, table: Table, data: str, planned: Sequence[Any], resamples: int) -> dict[str, Any]:
    """The numbers of a table on one data set."""
    rows = {row.label: row for row in table.rows}
    found = {
        entry["label"]: results.find(root, {int(s): [Path(f) for f in fs] for s, fs in entry["runs"].items()})
        for entry in planned
    }
    ours = {label: f for label, f in found.items() if f.seeds}
    numbers = _numbers(table, ours, resamples)
    first = next(iter(ours.values()), None)
    shown = []
    for entry in planned:
        row, runs = rows[entry["label"]], found[entry["label"]]
        asked = len(entry["runs"])
        shown.append(
            {
                "label": entry["printed"],
                "variant": row.variant,
                "status": entry["reason"] or _status(runs, asked),
                "seeds": runs.seeds,
                "notes": [note for note in (row.note, *entry["notes"], runs.sentence) if note],
                **numbers.get(row.label, {}),
                "figures": {source: by_data[data] for source, by_data in row.figures.items() if data in by_data},
                "runs": runs.runs,
            }
        )
    clusters = results.videos(first.shared.ids) if first and first.shared else None
    return {
        "examples": len(first.shared.ids) if first and first.shared else None,
        "videos": None if clusters is None else int(clusters.max()) + 1,
        "rows": shown,
    }


def _status(runs: Found, asked: int) -> str:
    """What a reader must know of runs that are not there; empty if all are."""
    parts = []
    if runs.failed:
        parts.append(f"failed ({runs.failed} of {asked})")
    if runs.missing:
        parts.append("not run" if runs.missing == asked else f"not run ({runs.missing} of {asked})")
    return ", ".join(parts)


def _numbers(table: Table, ours: Mapping[str, Found], resamples: int) -> dict[str, dict[str, Any]]:
    """Means, spread, intervals and comparisons of the rows that have runs."""
    if not ours:
        return {}
    first = next(iter(ours.values())).shared
    assert first is not None
    for label, found in ours.items():
        if (
            found.shared is None
            or found.shared.ids != first.ids
            or not np.array_equal(found.shared.labels, first.labels)
        ):
            raise UsageError(
                f"{label} has another test set than the other rows of table {table.name}; use a new --output."
            )
    measure, clusters = first.measure(), results.videos(first.ids)
    systems = {label: found.predictions for label, found in ours.items()}
    drawn = significance.resample(measure, systems, resamples)
    by_video = None if clusters is None else significance.resample(measure, systems, resamples, clusters)
    numbers: dict[str, dict[str, Any]] = {label: {} for label in ours}
    for label, found in ours.items():
        intervals = {name: significance.interval(significance.spread(draws)) for name, draws in drawn[label].items()}
        if found.pooled:  # folds: each seed's metric is a mean over folds, the resamples are of all folds together
            numbers[label]["metrics"] = {name: _spread(values) for name, values in found.metrics.items()}
            numbers[label]["pooled"] = {n: {**_spread(v), "interval": intervals[n]} for n, v in found.pooled.items()}
        else:
            numbers[label]["metrics"] = {n: {**_spread(v), "interval": intervals[n]} for n, v in found.metrics.items()}
    _mark_best(numbers, drawn)
    if table.reference in systems and len(systems) > 1:
        compared = significance.compare(measure, systems, str(table.reference), drawn, by_video)
        for label, by_metric in compared.items():
            numbers[label]["comparison"] = {name: c._asdict() for name, c in by_metric.items()}
    return numbers


def _spread(values: np.ndarray) -> dict[str, Any]:
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std": std, "values": values.tolist()}


def _mark_best(numbers: dict[str, dict[str, Any]], drawn: significance.Resampled) -> None:
    """Marks the best row in each metric, and those whose difference from it has an interval with 0 in it."""
    for name in next(iter(drawn.values())):
        sign = 1 if name in LOWER_IS_BETTER else -1
        means = {label: row["metrics"][name]["mean"] for label, row in numbers.items()}
        best = min(means, key=lambda label: sign * means[label])
        for label, row in numbers.items():
            low, high = significance.interval(significance.spread(drawn[label][name], drawn[best][name]))
            row["metrics"][name]["best"] = means[label] == means[best]
            row["metrics"][name]["like_best"] = label != best and low <= 0 <= high


def _write(path: Path, text: str) -> None:
    atomic.replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))
