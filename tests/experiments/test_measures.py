"""Metrics from weighted sums are those of training, on the sample and on every resample."""

import numpy as np
import pytest

from cmsbert_fast.experiments import significance
from cmsbert_fast.experiments.measures import ClassMeasure, ScoreMeasure, meaningful, measured
from cmsbert_fast.training.metrics import emotion_metrics, score_metrics, sentiment_metrics, sims_metrics

GENERATOR = np.random.default_rng(1)
LABELS = np.round(GENERATOR.normal(0, 1.5, 23) * 5) / 5
LABELS[[2, 7]] = 0
SCORES = LABELS + GENERATOR.normal(0.1, 1, 23)
SCORES[4] = 0


@pytest.mark.parametrize("clusters", [None, np.arange(23) // 4], ids=["examples", "clusters"])
def test_scores_as_on_the_resampled_arrays(clusters):
    measure = ScoreMeasure(LABELS)
    (counts,) = significance.example_counts(23, 60, np.random.default_rng(0), clusters)
    found = measure.metrics(counts @ measure.columns(SCORES))
    for row in range(len(counts)):
        drawn = np.repeat(np.arange(23), counts[row].astype(int))
        expected = sentiment_metrics(SCORES[drawn], LABELS[drawn])
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected, abs=1e-9)


def test_classes_as_on_the_resampled_arrays():
    labels = np.array([0, 0, 1, 2, 2, 2, 1, 0, 3])
    predictions = np.array([0, 1, 1, 2, 0, 2, 2, 0, 0])
    measure = ClassMeasure(labels, 5)
    (counts,) = significance.example_counts(9, 60, np.random.default_rng(0))
    found = measure.metrics(counts @ measure.columns(predictions))
    for row in range(len(counts)):
        drawn = np.repeat(np.arange(9), counts[row].astype(int))
        expected = emotion_metrics(predictions[drawn], labels[drawn])
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected, abs=1e-9)


SIMS = np.clip(np.round(LABELS / 3, 1), -1, 1)


@pytest.mark.parametrize(
    ("metrics", "labels"),
    [
        (sims_metrics(SCORES / 3, SIMS), SIMS),
        (score_metrics(np.abs(SCORES), np.abs(LABELS), signed=False), np.abs(LABELS)),
        (score_metrics(SCORES * 9, LABELS * 9, signed=True), LABELS * 9),
        (sentiment_metrics(SCORES, LABELS), LABELS),
    ],
    ids=["sims", "unsigned", "signed", "sentiment"],
)
def test_of_each_kind_of_scores_what_means_something(metrics, labels):
    """CH-SIMS's Acc-5 is of other classes than MOSI's, and a strength has no sign."""
    found = measured(ScoreMeasure(labels, meaningful(metrics)), labels + 0.3)
    assert found.keys() == metrics.keys() - {"acc2", "acc3", "f1"} - ({"acc5"} if "acc3" in metrics else set())
    assert ScoreMeasure(labels, meaningful(metrics)).means(labels).keys() <= found.keys()


def test_large_means_cost_no_digits():
    assert measured(ScoreMeasure(LABELS + 1e6), SCORES + 2e6)["corr"] == pytest.approx(
        np.corrcoef(SCORES, LABELS)[0, 1], abs=1e-6
    )


def test_constant_predictions():
    found = measured(ScoreMeasure(LABELS), np.full(23, 0.1))
    assert found["corr"] == 0
    assert found == pytest.approx(sentiment_metrics(np.full(23, 0.1), LABELS), abs=1e-9)
    measure = ScoreMeasure(LABELS)
    same = np.zeros(23)
    same[3] = 7.0
    assert measure.metrics(same @ measure.columns(SCORES))["corr"] == 0  # one example, drawn seven times


def test_no_scored_example_has_no_binary_metric():
    found = measured(ScoreMeasure(np.zeros(3)), np.array([0.1, -0.2, 0.3]))
    assert np.isnan(found["acc2_positive"])
    assert np.isnan(found["f1_positive"])
    assert found["acc2_non_negative"] == pytest.approx(200 / 3)


def test_means_average_to_their_metrics():
    scores, classes = ScoreMeasure(LABELS), ClassMeasure(np.array([0, 1, 1]), 2)
    for measure, predictions in ((scores, SCORES), (classes, np.array([0, 0, 1]))):
        metrics = measured(measure, predictions)
        for name, values in measure.means(predictions).items():
            assert values.mean() == pytest.approx(metrics[name]), name
