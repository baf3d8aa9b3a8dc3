"""Metrics against values worked out by hand, at the edges where published scripts differ."""

import math

import numpy as np
import pytest

from cmsbert_fast.data.task import LabelKind, Labels
from cmsbert_fast.training.metrics import (
    emotion_metrics,
    metrics_of,
    presence_metrics,
    sentiment_metrics,
    sims_metrics,
)


def test_sentiment_metrics_by_hand() -> None:
    labels = [3.0, 1.5, 0.0, -0.4, -2.5, -1.0]
    predictions = [2.0, -0.5, 0.2, 0.1, -3.7, -1.0]
    metrics = sentiment_metrics(predictions, labels)
    assert metrics["mae"] == pytest.approx((1.0 + 2.0 + 0.2 + 0.5 + 1.2 + 0.0) / 6)
    p, y = np.array(predictions), np.array(labels)
    covariance = ((p - p.mean()) * (y - y.mean())).mean()
    assert metrics["corr"] == pytest.approx(covariance / (p.std() * y.std()))
    # All six: wrong are 1.5 (predicted negative) and -0.4 (predicted non-negative).
    assert metrics["acc2_non_negative"] == pytest.approx(100 * 4 / 6)
    # Without the zero label: the same two wrong, of five. True: 2 positive, 3 negative.
    assert metrics["acc2_positive"] == pytest.approx(100 * 3 / 5)
    f1_positive, f1_negative = 2 * 1 / (2 * 1 + 1 + 1), 2 * 2 / (2 * 2 + 1 + 1)
    assert metrics["f1_positive"] == pytest.approx(100 * (2 * f1_positive + 3 * f1_negative) / 5)
    # Rounded: labels 3 2 0 -0 -2 -1 (half to even), predictions 2 -0 0 0 -3 -1.
    assert metrics["acc7"] == pytest.approx(100 * 3 / 6)
    # Clipped to [-2, 2]: labels 2 2 0 0 -2 -1, predictions 2 0 0 0 -2 -1.
    assert metrics["acc5"] == pytest.approx(100 * 5 / 6)


def test_weighted_f1_weighs_by_the_true_labels() -> None:
    # Swapping the arguments of f1_score changes the weights: 3 of 4 are truly positive, 2 of 4 predicted so.
    metrics = sentiment_metrics([1, 1, -1, -1], [1, 1, 1, -1])
    f1_positive, f1_negative = 2 * 2 / (2 * 2 + 1), 2 * 1 / (2 * 1 + 1)
    assert metrics["f1_positive"] == pytest.approx(100 * (3 * f1_positive + f1_negative) / 4)


def test_scores_are_clipped_and_then_rounded_half_to_even() -> None:
    # Half up would make 3, 1, -2 and 0 of these; half away from zero 3, 1, -3 and -1.
    metrics = sentiment_metrics([2.5, 0.5, -2.5, -0.5, 3.4], [2.0, 0.0, -2.0, 0.0, 3.0])
    assert metrics["acc7"] == 100.0


def test_zero_is_non_negative_but_not_positive() -> None:
    metrics = sentiment_metrics([0.0, 0.0, -1.0], [0.0, 2.0, -1.0])
    assert metrics["acc2_non_negative"] == 100.0
    assert metrics["acc2_positive"] == 50.0


def test_constant_predictions_have_correlation_zero() -> None:
    assert sentiment_metrics([0.1, 0.1, 0.1], [1.0, -1.0, 0.3])["corr"] == 0.0
    assert sentiment_metrics([0.1, 0.2, 0.1], [1.0, 1.0, 1.0])["corr"] == 0.0
    assert sentiment_metrics([0.1], [1.0])["corr"] == 0.0


def test_negative_positive_is_undefined_without_a_scored_sample() -> None:
    metrics = sentiment_metrics([0.3, -0.3], [0.0, 0.0])
    assert math.isnan(metrics["acc2_positive"])
    assert math.isnan(metrics["f1_positive"])
    assert metrics["acc2_non_negative"] == 50.0


def test_a_column_is_not_broadcast_against_a_row() -> None:
    column, row = np.array([[1.0], [2.0], [-3.0]], np.float32), np.array([1.0, 2.0, -3.0], np.float32)
    assert sentiment_metrics(column, row)["mae"] == 0.0


@pytest.mark.parametrize(("predictions", "labels"), [([1.0], [1.0, 2.0]), ([], []), ([float("nan")], [1.0])])
def test_what_cannot_be_measured_is_refused(predictions: list[float], labels: list[float]) -> None:
    with pytest.raises(ValueError):
        sentiment_metrics(predictions, labels)


def test_emotion_metrics_by_hand() -> None:
    # Class 0: 3 of 4 right; class 1: 1 of 2; class 2 occurs only as a prediction and has no recall to average.
    metrics = emotion_metrics([0, 0, 0, 2, 1, 0], [0, 0, 0, 0, 1, 1])
    assert metrics["wa"] == pytest.approx(100 * 4 / 6)
    assert metrics["ua"] == pytest.approx(100 * (3 / 4 + 1 / 2) / 2)
    # F1: class 0 has 1 wrong and 1 missed for 3 right, class 1 one missed for 1 right; weighted 4 to 2.
    assert metrics["f1"] == pytest.approx(100 * (4 * (6 / 8) + 2 * (2 / 3)) / 6)


def test_sims_metrics_are_mmsas() -> None:
    # Classes are half-open, (low, high], and float32 decides: labels at a cut belong below it.
    labels = np.array([-1.0, -0.8, -0.4, 0.0, 0.1, 0.2, 0.7, 0.8, 1.0, -0.1], np.float32)
    guessed = np.array([-0.75, -0.6, -0.1, 0.05, 0.11, 0.7, 0.71, 1.4, -0.3, -0.1], np.float32)
    metrics = sims_metrics(guessed, labels)
    assert list(metrics) == ["mae", "corr", "acc2", "acc3", "acc5", "f1"]
    # acc2, <= 0 against > 0: 0.0 and 1.0 are wrong.
    assert metrics["acc2"] == pytest.approx(80)
    # acc3: true - - - 0 0 + + + + -, guessed - - - 0 + + + + - -.
    assert metrics["acc3"] == pytest.approx(80)
    # acc5: true -- -- - 0 0 + + ++ ++ -, guessed -- - - 0 + + ++ ++ - -.
    assert metrics["acc5"] == pytest.approx(60)
    # Of five true negatives one is missed, of five positives one: precision and recall 4/5 each way.
    assert metrics["f1"] == pytest.approx(80)
    assert sims_metrics(guessed.astype(float), labels.astype(float)) == metrics  # as the model's rows may be float64


def test_each_kind_has_the_metrics_that_mean_something() -> None:
    scores, true = np.array([[0.5], [-0.5], [0.25]]), np.array([1.0, -1.0, 0.5])
    names = {kind: list(metrics_of(Labels(kind), scores, true)) for kind in LabelKind if "scores" in kind.value}
    signed = ["mae", "corr", "acc2_non_negative", "f1_non_negative", "acc2_positive", "f1_positive"]
    assert names == {
        LabelKind.SENTIMENT: [*signed, "acc7", "acc5"],
        LabelKind.SIMS: ["mae", "corr", "acc2", "acc3", "acc5", "f1"],
        LabelKind.SIGNED: signed,
        LabelKind.SCORE: ["mae", "corr"],
    }
    logits, classes = np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 2.0]]), np.array([0, 1, 0])
    found = metrics_of(Labels(LabelKind.CLASSES, ("a", "b")), logits, classes)
    assert found == {"wa": pytest.approx(200 / 3), "ua": 75.0, "f1": pytest.approx(200 / 3)}


def test_presence_of_several_labels_by_hand() -> None:
    predicted = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], bool)
    true = np.array([[1, 0], [1, 0], [0, 0], [0, 1]], np.float32)
    found = presence_metrics(predicted, true, ("happy", "fear"))
    assert found["acc_happy"] == 50.0
    assert found["ua_happy"] == 50.0
    assert found["f1_happy"] == 50.0  # one of two right in both, either way
    # The constant "absent" is right three times of four, and tells nothing: 50.
    assert (found["acc_fear"], found["ua_fear"]) == (75.0, 50.0)
    assert found["f1_fear"] == pytest.approx(100 * 0.75 * (2 * 3 / (2 * 3 + 1)))
    assert found["acc"] == 62.5
    assert found["f1"] == pytest.approx((found["f1_happy"] + found["f1_fear"]) / 2)
    logits = np.where(predicted, 0.1, -0.1)
    assert metrics_of(Labels(LabelKind.SEVERAL, ("happy", "fear")), logits, true) == found
    with pytest.raises(ValueError, match="shape"):
        presence_metrics(predicted, true[:, :1], ("happy", "fear"))
    with pytest.raises(ValueError, match="no sample"):
        presence_metrics(predicted[:0], true[:0], ("happy", "fear"))
