"""What the tables are: rows, data sets, metrics and printed figures, read from ``configs/tables/``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cmsbert_fast.training.conversion import read_yaml
from cmsbert_fast.training.errors import UsageError

SOURCES = {"paper": "paper", "own": "own paper", "mmsa": "MMSA"}  # of figures that are not ours


class Metric(NamedTuple):
    """A column of a table: one metric, or one in both forms ("a/b").

    Attributes:
        label: As printed.
        names: As in ``results.json``.
        digits: Decimals printed.
        lower: Whether lower is better.
    """

    label: str
    names: tuple[str, ...]
    digits: int
    lower: bool = False


METRICS = {
    "mae": Metric("MAE", ("mae",), 3, lower=True),
    "corr": Metric("Corr", ("corr",), 3),
    "acc2": Metric("Acc-2", ("acc2_non_negative", "acc2_positive"), 2),
    "f1": Metric("F1", ("f1_non_negative", "f1_positive"), 2),
    "acc7": Metric("Acc-7", ("acc7",), 2),
    "acc5": Metric("Acc-5", ("acc5",), 2),
    "wa": Metric("WA", ("wa",), 1),
    "ua": Metric("UA", ("ua",), 1),
}


@dataclass(frozen=True, kw_only=True, eq=False)  # a row is itself: keys of dictionaries
class Row:
    """A row of a table.

    Attributes:
        label: As printed.
        variant: What is trained; None: cited only.
        preset: File of settings below ``configs``, ``{data}`` standing for the data set; None: the data set's own file.
        settings: Settings that set this row apart from others of its variant.
        figures: Printed figures by source, data set and metric.
        note: What to know about the figures.
        space: What tuning may change: a list of choices, or ``low``, ``high`` and perhaps ``log``, by setting.
    """

    label: str
    variant: str | None
    preset: str | None
    settings: Mapping[str, Any]
    figures: Mapping[str, Mapping[str, Mapping[str, float]]]
    note: str
    space: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        name: "1" for ``configs/tables/1.yaml``; names the files of the report.
        title: Printed above it.
        data: Its data sets, of which figures are known.
        metrics: Its columns.
        reference: Label of the row that the others are compared with; None: no comparison.
        folds: Number of folds of each run; None: the data's own splits.
        rows: From top to bottom.
    """

    name: str
    title: str
    data: tuple[str, ...]
    metrics: tuple[Metric, ...]
    reference: str | None
    folds: int | None
    rows: tuple[Row, ...]


def read_table(name: str, configs: Path) -> Table:
    """The table of a number, or of a YAML file of one's own.

    Raises:
        UsageError: There is none, or the file is not one.
    """
    path = configs / "tables" / f"{name}.yaml" if name.isalnum() else Path(name)
    if name.isalnum() and not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise UsageError(
            f"There is no table {name!r} in {path.parent}; choose from {known or 'a checkout of the project'}."
        )
    values = read_yaml(path)
    try:
        if unknown := values.keys() - {"title", "data", "metrics", "reference", "folds", "rows"}:
            raise ValueError(f"it has the unknown entry {', '.join(sorted(map(str, unknown)))}")
        metrics = tuple(METRICS[metric] for metric in values["metrics"])
        rows = tuple(_row(row, metrics) for row in values["rows"])
        table = Table(
            name=path.stem,
            title=str(values["title"]),
            data=tuple(values["data"]),
            metrics=metrics,
            reference=values.get("reference"),
            folds=values.get("folds"),
            rows=rows,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} is not a table ({type(error).__name__}: {error}); see configs/tables.") from None
    labels = [row.label for row in rows]
    if len(set(labels)) < len(labels) or (table.reference is not None and table.reference not in labels):
        raise UsageError(f"{path} must name each row once, and one of them as its reference.")
    return table


def _row(values: Mapping[str, Any], metrics: tuple[Metric, ...]) -> Row:
    unknown = values.keys() - {"label", "variant", "preset", "settings", "figures", "note", "space"}
    if unknown:
        raise ValueError(f"a row has the unknown entry {', '.join(sorted(map(str, unknown)))}")
    figures = {
        source: {data: _figures(str(text), metrics) for data, text in by_data.items()}
        for source, by_data in (values.get("figures") or {}).items()
    }
    if others := figures.keys() - SOURCES.keys():
        raise ValueError(f"figures are of {', '.join(SOURCES)}, not of {', '.join(sorted(map(str, others)))}")
    return Row(
        label=str(values["label"]),
        variant=values.get("variant"),
        preset=values.get("preset"),
        settings=values.get("settings") or {},
        figures=figures,
        note=values.get("note", ""),
        space=values.get("space") or {},
    )


def _figures(text: str, metrics: tuple[Metric, ...]) -> dict[str, float]:
    """Figures by metric, from ``0.901 0.698 -/80.80 -/80.70``.

    A figure alone where the table has two forms is of the first: that of the older papers.
    """
    cells = text.split()
    if len(cells) != len(metrics):
        raise ValueError(f"{text!r} has {len(cells)} cells for {len(metrics)} metrics")
    found: dict[str, float] = {}
    for metric, cell in zip(metrics, cells, strict=True):
        parts = cell.split("/")
        if len(parts) > len(metric.names):
            raise ValueError(f"{cell!r} has too many parts for {metric.label}")
        found |= {name: float(part) for name, part in zip(metric.names, parts, strict=False) if part != "-"}
    return found
