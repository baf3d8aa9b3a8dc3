"""The usual metrics (SPEC section 7): one function for sentiment scores, one for emotion classes."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, f1_score, recall_score


def sentiment_metrics(predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Every metric of MOSI and MOSEI.

    Args:
        predictions: Predicted scores, (n,) or (n, 1), any real dtype.
        labels: True scores in [-3, 3], (n,) or (n, 1).

    Returns:
        ``mae``, ``corr`` (Pearson) and, in percent, ``acc2_non_negative`` / ``f1_non_negative`` (negative against
        non-negative, all samples), ``acc2_positive`` / ``f1_positive`` (negative against positive, samples with label 0
        left out), ``acc7`` and ``acc5`` (both sides clipped to [-3, 3] or [-2, 2] and rounded half to even). F1 is
        weighted by the true classes' sizes.

        ``corr`` is 0 if predictions or labels are constant: unlike NaN, 0 can be compared and averaged.
        ``acc2_positive`` and ``f1_positive`` are NaN if every label is 0.

    Raises:
        ValueError: The sizes differ, there is no sample, or a value is not finite.
    """
    predicted, true = _pair(predictions, labels, np.float64)
    if not (np.isfinite(predicted).all() and np.isfinite(true).all()):
        raise ValueError("a prediction or a label is not finite")
    scored = true != 0
    non_negative = _binary(predicted >= 0, true >= 0)
    positive = _binary(predicted[scored] > 0, true[scored] > 0)
    return {
        "mae": float(np.abs(predicted - true).mean()),
        "corr": _pearson(predicted, true),
        "acc2_non_negative": non_negative[0],
        "f1_non_negative": non_negative[1],
        "acc2_positive": positive[0],
        "f1_positive": positive[1],
        "acc7": _rounded_accuracy(predicted, true, 3),
        "acc5": _rounded_accuracy(predicted, true, 2),
    }


def emotion_metrics(predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Metrics of IEMOCAP, in percent: ``wa`` (accuracy) and ``ua`` (mean recall over the classes in the labels).

    Args:
        predictions: Predicted class indices, (n,).
        labels: True class indices, (n,).

    Raises:
        ValueError: The sizes differ or there is no sample.
    """
    predicted, true = _pair(predictions, labels, np.int64)
    recall = recall_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)
    return {"wa": 100 * float(accuracy_score(true, predicted)), "ua": 100 * float(recall)}


def _pair(predictions: ArrayLike, labels: ArrayLike, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    predicted: np.ndarray = np.asarray(predictions, dtype).reshape(-1)
    true: np.ndarray = np.asarray(labels, dtype).reshape(-1)
    if predicted.shape != true.shape:
        raise ValueError(f"{predicted.size} predictions for {true.size} labels")
    if not true.size:
        raise ValueError("no sample to measure")
    return predicted, true


def _pearson(predicted: np.ndarray, true: np.ndarray) -> float:
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return 0.0
    return float(np.corrcoef(predicted, true)[0, 1])


def _binary(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    if not true.size:
        return float("nan"), float("nan")
    f1 = f1_score(true, predicted, average="weighted", zero_division=0)
    return 100 * float(accuracy_score(true, predicted)), 100 * float(f1)


def _rounded_accuracy(predicted: np.ndarray, true: np.ndarray, limit: int) -> float:
    classes = [np.rint(np.clip(values, -limit, limit)) for values in (predicted, true)]
    return 100 * float(np.mean(classes[0] == classes[1]))
