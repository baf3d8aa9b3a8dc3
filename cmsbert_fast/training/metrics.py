"""The usual metrics (SPEC section 7), by kind of label: none is computed where it means nothing."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, f1_score, recall_score

from cmsbert_fast.data.task import LabelKind, Labels

# Upper limits of CH-SIMS's classes but the last, as MMSA has them; a score at a limit is in the class below.
_SIMS_CUTS = {"acc2": (0.0,), "acc3": (-0.1, 0.1), "acc5": (-0.7, -0.1, 0.1, 0.7)}


def metrics_of(labels: Labels, logits: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """The metrics that the field reports for labels of a kind.

    Args:
        labels: What the labels are.
        logits: What the model gives, (n, K); K = 1 for scores.
        true: Scores or class indices, (n,); of several labels at once 1 and 0, (n, K).

    Raises:
        ValueError: The sizes differ, there is no sample, or a score is not finite.
    """
    if labels.kind is LabelKind.CLASSES:
        return emotion_metrics(logits.argmax(axis=1), true)
    if labels.kind is LabelKind.SEVERAL:
        return presence_metrics(logits > 0, true, labels.classes)
    scores = logits[:, 0]
    if labels.kind is LabelKind.SENTIMENT:
        return sentiment_metrics(scores, true)
    if labels.kind is LabelKind.SIMS:
        return sims_metrics(scores, true)
    return score_metrics(scores, true, signed=labels.kind is LabelKind.SIGNED)


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
    predicted, true = _scores(predictions, labels)
    return {
        **score_metrics(predicted, true, signed=True),
        "acc7": _rounded_accuracy(predicted, true, 3),
        "acc5": _rounded_accuracy(predicted, true, 2),
    }


def score_metrics(predictions: ArrayLike, labels: ArrayLike, signed: bool) -> dict[str, float]:
    """Metrics of scores on any scale: ``mae`` and ``corr``; where their sign means something, both binary ones too.

    Arguments, values and errors as in :func:`sentiment_metrics`.
    """
    predicted, true = _scores(predictions, labels)
    found = {"mae": float(np.abs(predicted - true).mean()), "corr": _pearson(predicted, true)}
    if not signed:
        return found
    scored = true != 0
    non_negative = _accuracy_and_f1(predicted >= 0, true >= 0)
    positive = _accuracy_and_f1(predicted[scored] > 0, true[scored] > 0)
    return found | {
        "acc2_non_negative": non_negative[0],
        "f1_non_negative": non_negative[1],
        "acc2_positive": positive[0],
        "f1_positive": positive[1],
    }


def sims_metrics(predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Metrics of CH-SIMS, whose scores lie in [-1, 1]: ``mae``, ``corr`` and, in percent, ``acc2``, ``acc3``, ``acc5``.

    The classes of ``acc2`` are [-1, 0] and (0, 1], with cuts at -0.1 and 0.1 for ``acc3``, and at -0.7 and 0.7 besides
    for ``acc5``. ``f1`` is that of ``acc2``, weighted. As MMSA computes them, in float32: the label 0.1 is at the cut.

    Arguments and errors as in :func:`sentiment_metrics`.
    """
    predicted, true = _scores(predictions, labels)
    found = score_metrics(predicted, true, signed=False)
    for name, cuts in _SIMS_CUTS.items():
        limits = np.array(cuts, np.float32)
        below = [np.searchsorted(limits, values.astype(np.float32), side="left") for values in (predicted, true)]
        found[name] = 100 * float(np.mean(below[0] == below[1]))
    return found | {"f1": _accuracy_and_f1(predicted > 0, true > 0)[1]}


def presence_metrics(predictions: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> dict[str, float]:
    """Metrics of several labels at once (the emotions of MOSEI), in percent.

    Args:
        predictions: Which labels are predicted, (n, K) bool.
        labels: Which are there, (n, K).
        classes: Their K names.

    Returns:
        For each label ``acc_NAME``, the accuracy of its presence, ``ua_NAME``, the mean of the recalls of present and
        absent (a constant has 50), and ``f1_NAME``, weighted; and ``acc``, ``ua`` and ``f1``, their means.

    Raises:
        ValueError: The sizes differ or there is no sample.
    """
    predicted, true = np.asarray(predictions, bool), np.asarray(labels).astype(bool)
    if predicted.shape != true.shape or true.shape[1:] != (len(classes),):
        raise ValueError(f"predictions of shape {predicted.shape} for labels of {true.shape} and {len(classes)} names")
    if not len(true):
        raise ValueError("no sample to measure")
    found = {"acc": 0.0, "ua": 0.0, "f1": 0.0}
    for k, name in enumerate(classes):
        one = emotion_metrics(predicted[:, k], true[:, k])
        for mean, value in (("acc", one["wa"]), ("ua", one["ua"]), ("f1", one["f1"])):
            found[f"{mean}_{name}"] = value
            found[mean] += value / len(classes)
    return found


def emotion_metrics(predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Metrics of classes such as IEMOCAP's, in percent.

    ``wa`` is the accuracy, ``ua`` the mean recall over the classes in the labels, ``f1`` weighted by the true classes'
    sizes.

    Args:
        predictions: Predicted class indices, (n,).
        labels: True class indices, (n,).

    Raises:
        ValueError: The sizes differ or there is no sample.
    """
    predicted, true = _pair(predictions, labels, np.int64)
    recall = recall_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)
    accuracy, f1 = _accuracy_and_f1(predicted, true)
    return {"wa": accuracy, "ua": 100 * float(recall), "f1": f1}


def _scores(predictions: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    predicted, true = _pair(predictions, labels, np.float64)
    if not (np.isfinite(predicted).all() and np.isfinite(true).all()):
        raise ValueError("a prediction or a label is not finite")
    return predicted, true


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


def _accuracy_and_f1(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    if not true.size:
        return float("nan"), float("nan")
    f1 = f1_score(true, predicted, average="weighted", zero_division=0)
    return 100 * float(accuracy_score(true, predicted)), 100 * float(f1)


def _rounded_accuracy(predicted: np.ndarray, true: np.ndarray, limit: int) -> float:
    classes = [np.rint(np.clip(values, -limit, limit)) for values in (predicted, true)]
    return 100 * float(np.mean(classes[0] == classes[1]))
