"""Metrics against values worked out by hand, at the edges where published scripts differ."""

import math

import numpy as np
import pytest

from cmsbert_fast.training.metrics import emotion_metrics, sentiment_metrics


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
