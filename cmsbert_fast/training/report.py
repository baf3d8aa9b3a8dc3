"""The results of runs: ``results.json``, ``predictions.csv``, and a table of several runs."""

import csv
import dataclasses
import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmsbert_fast import __version__, atomic
from cmsbert_fast.data.task import LabelKind, Labels
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.evaluate import Predictions
from cmsbert_fast.training.settings import TrainingSettings

RESULTS = "results.json"
_PACKAGES = ("torch", "triton", "transformers", "numpy", "scikit-learn")
# Decimals in tables; percentages have 1.
_DIGITS = {"mae": 3, "corr": 3}


def read_results(folder: Path) -> dict[str, Any] | None:
    """The contents of a run's ``results.json``; None if the run is not finished.

    A run that was not to be tested has no "test" in it.

    Raises:
        UsageError: The file is damaged.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if (
            all(isinstance(found[part], dict) for part in ("settings", "data", "valid"))
            and found["data"]["fingerprint"]
        ):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UsageError(f"{path} is damaged; remove it to test the run again from its checkpoint.")


def write_predictions(path: Path, predictions: Predictions, labels: Labels) -> None:
    """Writes the rows of :func:`prediction_rows`."""
    write_csv(path, prediction_rows(predictions, labels.classes, labels.kind is LabelKind.SEVERAL))


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Writes a table atomically."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    atomic.replace_file(path, write)


def prediction_rows(predictions: Predictions, classes: Sequence[str], several: bool = False) -> list[list[str]]:
    """Header and rows of a table of predictions: id, label if known, prediction.

    A prediction is a score; with ``classes``, the most probable class, followed by the probability of each; with
    ``several`` at once, all classes whose probability is above 0.5, separated by spaces, followed by the same.
    """
    labels, logits = predictions.labels, predictions.logits
    columns: dict[str, Sequence[str]] = {"id": predictions.ids}
    if several:
        if labels is not None:
            columns["label"] = _sets(labels > 0, classes)
        columns["prediction"] = _sets(logits > 0, classes)
    elif not classes:
        # As float32 prints: 0.2, not 0.20000000298023224.
        if labels is not None:
            columns["label"] = [str(label) for label in labels.numpy().astype(np.float32)]
        columns["prediction"] = [str(score) for score in logits[:, 0].numpy().astype(np.float32)]
    else:
        if labels is not None:
            columns["label"] = [classes[label] for label in labels.tolist()]
        columns["prediction"] = [classes[best] for best in logits.argmax(dim=1).tolist()]
    if classes:
        probabilities = logits.sigmoid() if several else logits.softmax(dim=1)
        for name, chances in zip(classes, probabilities.T.tolist(), strict=True):
            columns[f"probability_{name}"] = [f"{chance:.6f}" for chance in chances]
    return [list(columns), *(list(row) for row in zip(*columns.values(), strict=True))]


def _sets(present: torch.Tensor, classes: Sequence[str]) -> list[str]:
    """The names of the classes that are present, (n, K) bool -> n texts."""
    return [" ".join(name for name, there in zip(classes, row, strict=True) if there) for row in present.tolist()]


def provenance(settings: TrainingSettings, ranks: Ranks, backend: str | None) -> dict[str, Any]:
    """What it takes to repeat a run: settings, backend, versions, machine, and a checkout's commit."""
    versions = {"python": platform.python_version(), "cmsbert_fast": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "settings": dataclasses.asdict(settings),
        "backend": backend,
        "versions": versions,
        "commit": _commit(),
        "machine": {
            "world_size": ranks.world_size,
            "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
        },
    }


def table(results: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Test metrics of several runs: a row per variant, mean and standard deviation over its seeds and folds.

    Args:
        results: The contents of each run's ``results.json``.

    Returns:
        A Markdown table, and the same as rows ``{"variant", "runs", "mean": {...}, "std": {...}}``. ``std`` is the
        sample standard deviation (n - 1), None for a single run.
    """
    rows = []
    for variant in dict.fromkeys(r["settings"]["variant"] for r in results):
        runs = [r for r in results if r["settings"]["variant"] == variant]
        values = {name: [_number(r["test"].get(name)) for r in runs] for name in runs[0]["test"]}
        rows.append(
            {
                "variant": variant,
                "runs": [{"seed": r["settings"]["seed"], "fold": r["settings"]["fold"]} for r in runs],
                "mean": {name: float(np.mean(v)) for name, v in values.items()},
                "std": {name: float(np.std(v, ddof=1)) if len(v) > 1 else None for name, v in values.items()},
            }
        )
    names = list(rows[0]["mean"])
    lines = [["variant", "runs", *names], ["---"] * (len(names) + 2)]
    for row in rows:
        cells = []
        for name in names:
            digits, std = _DIGITS.get(name, 1), row["std"][name]
            cells.append(f"{row['mean'][name]:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else ""))
        lines.append([row["variant"], str(len(row["runs"])), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join(
        "| " + " | ".join(c.ljust(w, "-" if c == "---" else " ") for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
    return text, rows


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _commit() -> str | None:
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:

        def git(*arguments: str) -> str:
            command = ["git", "-C", str(checkout), *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
