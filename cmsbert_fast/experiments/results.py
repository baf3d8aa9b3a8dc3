"""What the runs of a table have found: read from their folders, nothing else."""

import csv
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmsbert_fast.data.folds import video_of
from cmsbert_fast.experiments.measures import ClassMeasure, Measure, ScoreMeasure, meaningful, measured
from cmsbert_fast.experiments.pool import FAILURE
from cmsbert_fast.training import report
from cmsbert_fast.training.errors import UsageError

_OF_RUN = ("settings", "best_epoch", "epochs", "steps", "seconds", "parameters", "versions", "commit", "machine")
_SOMETIMES = ("alignment",)  # for systems with a common space


class Predicted(NamedTuple):
    """``predictions.csv`` of a run.

    Attributes:
        ids: n ids.
        labels, predictions: Scores, or class indices, (n,).
        classes: Names of the classes; empty: scores.
        metrics: Those of scores that mean something for them.
    """

    ids: list[str]
    labels: np.ndarray
    predictions: np.ndarray
    classes: tuple[str, ...]
    metrics: frozenset[str]

    def measure(self) -> Measure:
        """The metrics of its labels."""
        return ClassMeasure(self.labels, len(self.classes)) if self.classes else ScoreMeasure(self.labels, self.metrics)


class Found(NamedTuple):
    """The runs of a row on a data set.

    Attributes:
        seeds: Those of which every fold has finished.
        failed: How many seeds have a failed run.
        sentence: Why the first of them failed; "" if none has.
        missing: How many seeds are not finished for other reasons.
        predictions: (k, n): of all folds' test parts one after the other.
        metrics: Of each seed by name, (k,): the means over its folds.
        pooled: The same, of the predictions of all folds together; empty without folds.
        shared: The examples; those of the first seed.
        runs: What is known of each finished run.
    """

    seeds: list[int]
    failed: int
    sentence: str
    missing: int
    predictions: np.ndarray
    metrics: dict[str, np.ndarray]
    pooled: dict[str, np.ndarray]
    shared: Predicted | None
    runs: list[dict[str, Any]]


def read_predictions(folder: Path, metrics: Collection[str]) -> Predicted:
    """The predictions of a tested run, which has these metrics.

    Raises:
        UsageError: They are missing or damaged.
    """
    path = folder / "predictions.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        classes = tuple(n.removeprefix("probability_") for n in header if n.startswith("probability_"))
        names = [columns["label"], columns["prediction"]]
        if classes:
            place = {name: i for i, name in enumerate(classes)}
            labels, predictions = (np.array([place[v] for v in values]) for values in names)
        else:
            labels, predictions = (np.array(values, np.float64) for values in names)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{path} cannot be read ({type(error).__name__}); remove the run's results.json to test it again."
        ) from None
    return Predicted(list(columns["id"]), labels, predictions, classes, meaningful(metrics))


def find(root: Path, folders: dict[int, list[Path]]) -> Found:
    """What the runs of a row have found.

    Args:
        root: The output folder.
        folders: Those of the folds of each seed, below it.

    Raises:
        UsageError: A file of a run is damaged, or runs do not have the same test set.
    """
    seeds, failed, sentence, missing, parts, runs = [], 0, "", 0, [], []
    for seed, of_folds in folders.items():
        results = [report.read_results(root / folder) for folder in of_folds]
        if not all(found is not None and "test" in found for found in results):
            sentences = [_failure(root / folder) for folder in of_folds]
            broken = [text for text in sentences if text is not None]
            failed, missing = failed + bool(broken), missing + (not broken)
            sentence = sentence or next(iter(broken), "")
            continue
        seeds.append(seed)
        pairs = [(folder, r["test"]) for folder, r in zip(of_folds, results, strict=True) if r is not None]
        parts.append([read_predictions(root / folder, tested) for folder, tested in pairs])
        for folder, found in zip(of_folds, results, strict=True):
            assert found is not None
            facts = {name: found.get(name) for name in _OF_RUN}
            facts |= {name: found[name] for name in _SOMETIMES if name in found}
            metrics = {"test": found["test"], "valid": found["valid"], "fingerprint": found["data"]["fingerprint"]}
            runs.append({"seed": seed, "folder": str(folder), **metrics, **facts})
    if not seeds:
        return Found([], failed, sentence, missing, np.empty((0, 0)), {}, {}, None, runs)
    joined = [_joined(folds) for folds in parts]
    if any(other.ids != joined[0].ids for other in joined):
        raise UsageError(f"The runs beside {root / folders[seeds[0]][0]} have different test sets; use a new --output.")
    per_seed = [[measured(part.measure(), part.predictions) for part in folds] for folds in parts]
    metrics = {
        name: np.array([np.mean([fold[name] for fold in folds]) for folds in per_seed]) for name in per_seed[0][0]
    }
    whole = [measured(all_folds.measure(), all_folds.predictions) for all_folds in joined]
    pooled = {name: np.array([m[name] for m in whole]) for name in whole[0]} if len(parts[0]) > 1 else {}
    predictions = np.stack([all_folds.predictions for all_folds in joined])
    return Found(seeds, failed, sentence, missing, predictions, metrics, pooled, joined[0], runs)


def videos(ids: list[str]) -> np.ndarray | None:
    """The number of each example's video, (n,); None where every example is a video of its own."""
    names = [video_of(name) for name in ids]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names]) if 1 < len(numbers) < len(names) else None


def _joined(folds: list[Predicted]) -> Predicted:
    return Predicted(
        [name for part in folds for name in part.ids],
        np.concatenate([part.labels for part in folds]),
        np.concatenate([part.predictions for part in folds]),
        folds[0].classes,
        folds[0].metrics,
    )


def _failure(folder: Path) -> str | None:
    """Why a run failed; None if it did not."""
    path = folder / FAILURE
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["sentence"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return f"{FAILURE} of the run, which says why, cannot be read"
