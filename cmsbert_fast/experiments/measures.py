"""The metrics as functions of weighted sums over examples.

A resample of a test set is a weight per example: how often it was drawn. Every metric here follows from a few sums of
weighted per-example columns, so the metrics of thousands of resamples are one matrix product, counts @ columns.
With all weights 1, they are those of :mod:`cmsbert_fast.training.metrics`.
"""

from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np

LOWER_IS_BETTER = frozenset({"mae"})
_UNSIGNED = frozenset({"mae", "corr"})  # of scores on any scale
_SIGNED = _UNSIGNED | {f"{name}_{form}" for name in ("acc2", "f1") for form in ("non_negative", "positive")}
_SENTIMENT = _SIGNED | {"acc7", "acc5"}
_ROUNDING = 1e-12  # relative; a variance below it is that of constants


class Measure(Protocol):
    """Metrics of predictions for one test set."""

    def columns(self, predictions: np.ndarray) -> np.ndarray:
        """Per-example columns (n, F) of predictions (n,)."""

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics, each (...), of weighted sums of these columns, (..., F)."""

    def means(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """Those metrics that are means over all examples, as the values (n,) that they average."""


def meaningful(metrics: Collection[str]) -> frozenset[str]:
    """The metrics of :class:`ScoreMeasure` that mean something for scores whose runs have these metrics.

    CH-SIMS's scores have an ``acc5`` of other classes, and ``acc3``.
    """
    if "acc7" in metrics:
        return _SENTIMENT
    return _SIGNED if "acc2_positive" in metrics else _UNSIGNED


class ScoreMeasure:
    """Metrics of scores: mae, corr; of those with a sign acc2 and f1 in both forms; of MOSI's and MOSEI's acc7, acc5.

    Args:
        labels: True scores, (n,).
        names: The metrics that mean something for them.
    """

    def __init__(self, labels: np.ndarray, names: frozenset[str] = _SENTIMENT) -> None:
        self._names = names
        self.labels = np.asarray(labels, np.float64)
        self._centre = self.labels.mean()

    def columns(self, predictions: np.ndarray) -> np.ndarray:
        return np.stack(list(self._columns(predictions).values()), axis=1)

    def _columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        predicted, true = np.asarray(predictions, np.float64), self.labels
        # Centred, so that the moments lose no digits to a mean.
        p, y = predicted - predicted.mean(), true - self._centre
        found = {"weight": np.ones_like(true), "p": p, "y": y, "pp": p * p, "yy": y * y, "py": p * y}
        found |= {name: values / 100 if name != "mae" else values for name, values in self.means(predicted).items()}
        scored = true != 0
        for form, positive, counted in (
            ("non_negative", (true >= 0, predicted >= 0), np.ones_like(scored)),
            ("positive", (true > 0, predicted > 0), scored),
        ):
            for t in (0, 1):
                for q in (0, 1):
                    cell = (positive[0] == t) & (positive[1] == q) & counted
                    found[f"{form}{t}{q}"] = cell.astype(np.float64)
        return found

    def means(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        predicted, true = np.asarray(predictions, np.float64), self.labels
        found = {"mae": np.abs(predicted - true)}
        found["acc2_non_negative"] = 100.0 * ((predicted >= 0) == (true >= 0))
        for name, limit in (("acc7", 3), ("acc5", 2)):
            classes = [np.rint(np.clip(values, -limit, limit)) for values in (predicted, true)]
            found[name] = 100.0 * (classes[0] == classes[1])
        return {name: values for name, values in found.items() if name in self._names}

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        names = list(self._columns(self.labels))
        s = dict(zip(names, np.moveaxis(sums, -1, 0), strict=True))
        found = {"mae": s["mae"] / s["weight"], "corr": _correlation(s)}
        for form in ("non_negative", "positive"):
            cells = np.stack([s[f"{form}{t}{q}"] for t in (0, 1) for q in (0, 1)], axis=-1)
            confusion = confusion_metrics(cells.reshape(*cells.shape[:-1], 2, 2))
            found[f"acc2_{form}"], found[f"f1_{form}"] = confusion["wa"], confusion["f1"]
        found |= {name: 100 * s[name] / s["weight"] for name in ("acc7", "acc5") if name in s}
        return {name: values for name, values in found.items() if name in self._names}


class ClassMeasure:
    """Metrics of classes: wa, ua, f1.

    Args:
        labels: True classes, (n,) int.
        count: How many classes there are, K.
    """

    def __init__(self, labels: np.ndarray, count: int) -> None:
        self.labels, self.count = np.asarray(labels, np.int64), count

    def columns(self, predictions: np.ndarray) -> np.ndarray:
        cells = self.labels * self.count + np.asarray(predictions, np.int64)
        return (cells[:, None] == np.arange(self.count**2)).astype(np.float64)

    def means(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        return {"wa": 100.0 * (self.labels == predictions)}

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return confusion_metrics(sums.reshape(*sums.shape[:-1], self.count, self.count))


def confusion_metrics(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, mean recall and weighted F1 in percent, of weights by true and predicted class, (..., K, K).

    A class without true examples is left out of the mean recall; a class that is neither true nor predicted has F1 0.
    All are NaN where there is no weight.
    """
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    true, predicted = counts.sum(-1), counts.sum(-2)
    total = true.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(true > 0, right / true, 0.0).sum(-1) / (true > 0).sum(-1)
        f1 = np.where(true + predicted > 0, 2 * right / (true + predicted), 0.0)
        return {
            "wa": 100 * right.sum(-1) / total,
            "ua": 100 * recall,
            "f1": 100 * (true * f1).sum(-1) / total,
        }


def measured(measure: Measure, predictions: np.ndarray) -> dict[str, float]:
    """The metrics of predictions (n,), every example counted once."""
    found = measure.metrics(measure.columns(predictions).sum(axis=0))
    return {name: float(value) for name, value in found.items()}


def _correlation(s: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pearson's correlation; 0 where one side is constant."""
    covariance = s["py"] - s["p"] * s["y"] / s["weight"]
    variances = []
    for name in ("p", "y"):
        variance = s[name * 2] - s[name] ** 2 / s["weight"]
        variances.append(np.where(variance > _ROUNDING * s[name * 2], variance, 0.0))
    scale = np.sqrt(variances[0] * variances[1])
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
