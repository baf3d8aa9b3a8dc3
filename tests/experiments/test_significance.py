"""The tests of significance: against scipy, against hand examples, and on simulated tables."""

import numpy as np
import pytest
from scipy import stats

from cmsbert_fast.experiments import significance
from cmsbert_fast.experiments.measures import ScoreMeasure
from cmsbert_fast.experiments.significance import Interval


def simulated(generator, n=100, k=10, systems=("a", "b"), seed_spread=0.05, shift=0.0):
    """Runs that differ by luck only, on examples of different difficulty; those of ``a`` may have a ``shift``."""
    labels = generator.normal(0, 1.5, n)
    difficulty = generator.normal(0, 0.6, n)
    runs = {}
    for name in systems:
        scale = 1 + generator.normal(0, seed_spread, (k, 1))
        noise = generator.normal(0, 0.5, (k, n))
        runs[name] = labels + scale * (difficulty + noise) + (shift if name == "a" else 0) * np.sign(difficulty)
    return ScoreMeasure(labels), runs


def compare(measure, runs, **options):
    resampled = significance.resample(measure, runs, **options)
    return significance.compare(measure, runs, "b", resampled)["a"]


def test_examples_alone_as_scipy():
    """One seed a side: only the examples are drawn."""
    measure, runs = simulated(np.random.default_rng(3), n=120, k=1)
    found = compare(measure, runs, resamples=20_000)["mae"]
    errors = [np.abs(runs[name][0] - measure.labels) for name in ("a", "b")]
    expected = stats.bootstrap(
        [errors[0] - errors[1]], np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    )
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found.interval == pytest.approx(expected.confidence_interval, abs=0.03 * width)
    assert found.difference == pytest.approx(errors[0].mean() - errors[1].mean())
    p = 2 * min((expected.bootstrap_distribution <= 0).mean(), (expected.bootstrap_distribution >= 0).mean())
    assert found.p == pytest.approx(p, abs=0.02)
    assert found.seed_p is None
    assert found.resolvable is None


def test_spread_of_resampled_seeds_is_that_of_their_mean():
    values = np.array([1.0, 2.0, 4.0, 8.0, 9.0])
    weights = significance.seed_weights(5, 200_000, np.random.default_rng(0))
    assert weights.sum(axis=1) == pytest.approx(1)
    assert (weights @ values).std() == pytest.approx(values.std(ddof=1) / np.sqrt(5), rel=0.01)
    assert significance.seed_weights(1, 3, np.random.default_rng(0)).tolist() == [[1.0]] * 3


@pytest.mark.parametrize(("k", "other"), [(2, 2), (3, 5), (8, 8), (9, 9)])
def test_permutation_as_scipy(k, other):
    generator = np.random.default_rng(k + 1)
    a, b = generator.normal(0.8, 1, k), generator.normal(0, 1, other)

    def difference(x, y, axis):
        return x.mean(axis=axis) - y.mean(axis=axis)

    expected = stats.permutation_test((a, b), difference, n_resamples=20_000, rng=np.random.default_rng(0))
    assert significance.permutation_p(a, b) == pytest.approx(expected.pvalue, abs=1e-12 if k < 9 else 0.03)


def test_quantiles_of_student():
    for freedom in (3, 8, 50):
        expected = stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)
        assert significance._student_over_normal(freedom) == pytest.approx(
            expected, rel=0.04 if freedom == 3 else 0.003
        )


def test_permutation_of_clearly_different_seeds():
    assert significance.permutation_p(np.arange(5.0), np.arange(5.0) + 10) == pytest.approx(2 / 252)
    assert significance.permutation_p(np.zeros(4), np.zeros(4)) == 1
    assert significance.permutation_p(np.zeros(1), np.zeros(4)) is None


def test_holm_by_hand():
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.9, 0.8]) == [1.0, 1.0]
    assert significance.holm([]) == []


def test_superiority_by_hand():
    a, b = np.array([1.0, 2.0]), np.array([2.0, 3.0, 0.0])
    lower, interval = significance.superiority(a, b, lower_is_better=True)
    assert lower == pytest.approx((1 + 1 + 0 + 0.5 + 1 + 0) / 6)
    assert 0 <= interval.low <= lower <= interval.high <= 1
    assert significance.superiority(a, b, lower_is_better=False)[0] == pytest.approx(1 - lower)
    assert significance.superiority(a, a + 5, lower_is_better=True) == (1.0, Interval(1.0, 1.0))


def test_bootstrap_p_by_hand():
    assert significance.bootstrap_p(np.array([1.0, 2, 3, 4, -1, np.nan])) == pytest.approx(2 * 2 / 6)
    assert significance.bootstrap_p(np.ones(99)) == pytest.approx(2 / 100)
    assert significance.bootstrap_p(np.zeros(9)) == 1


@pytest.mark.parametrize(("k", "seed_spread"), [(8, 0.05), (5, 0.3)], ids=["examples", "seeds"])
def test_identical_systems_are_found_different_as_rarely_as_promised(k, seed_spread):
    """Whether the runs differ mostly by what they say on single examples, or as a whole."""
    generator = np.random.default_rng(1)
    tables = (simulated(generator, k=k, seed_spread=seed_spread) for _ in range(200))
    draws = [significance.resample(*table, resamples=400) for table in tables]
    p = [significance.bootstrap_p(significance.spread(d["a"]["mae"], d["b"]["mae"])) for d in draws]
    assert 0.03 <= np.mean(np.array(p) < 0.05) <= 0.07
    assert stats.kstest(p, "uniform").statistic < 0.15  # the tails are what is calibrated


def test_a_real_difference_is_found():
    measure, runs = simulated(np.random.default_rng(2), shift=0.3)
    found = compare(measure, runs, resamples=4000)["mae"]
    assert found.difference > found.resolvable > 0
    assert found.p < 0.01
    assert found.seed_p < 0.01
    assert found.interval.low > 0
    assert found.superiority == 0  # higher is worse


def test_smallest_effect_by_hand():
    measure = ScoreMeasure(np.zeros(4))
    a = np.array([[1.0, 1, 1, 1], [3, 3, 3, 3]])
    b = np.array([[0.0, 2, 0, 2], [2, 0, 2, 0]])
    seeds, examples = 2.0 / 2 + 0.0, 0.0  # variances of 1, 3 and of 1, 1; every example differs by 1
    assert significance.resolvable(measure, a, b)["mae"] == pytest.approx(2.8 * np.sqrt(seeds + examples / 4))
    b = np.array([[0.0, 2, 0, 4], [0, 2, 0, 4]])
    examples = np.array([2.0, 0, 2, -2]).var(ddof=1)
    assert significance.resolvable(measure, a, b)["mae"] == pytest.approx(2.8 * np.sqrt(seeds + examples / 4))


def test_clusters_are_drawn_whole():
    clusters = np.array([0, 0, 1, 2, 2, 2])
    (counts,) = significance.example_counts(6, 50, np.random.default_rng(0), clusters)
    for c in range(3):
        members = counts[:, clusters == c]
        assert (members == members[:, :1]).all()
    assert (counts[:, [0, 2, 3]].sum(axis=1) == 3).all()


def test_dependent_examples_widen_the_interval():
    """Ten copies of 12 examples hold no more than 12."""
    measure, runs = simulated(np.random.default_rng(4), n=12, k=1)
    measure = ScoreMeasure(np.tile(measure.labels, 10))
    runs = {name: np.tile(predictions, (1, 10)) for name, predictions in runs.items()}
    clusters = np.tile(np.arange(12), 10)
    by_cluster = significance.resample(measure, runs, 2000, clusters)
    found = significance.compare(measure, runs, "b", significance.resample(measure, runs, 2000), by_cluster)
    one, whole = found["a"]["mae"].interval, found["a"]["mae"].cluster_interval
    assert whole.high - whole.low > 2.5 * (one.high - one.low)


def test_draws_depend_neither_on_other_systems_nor_on_chunks(monkeypatch):
    measure, runs = simulated(np.random.default_rng(5), systems=("a", "b", "c"), n=30, k=3)
    whole = significance.resample(measure, runs, 100)
    monkeypatch.setattr(significance, "CHUNK_BYTES", 8 * 30 * 7)
    parts = significance.resample(measure, {name: runs[name] for name in ("c", "a")}, 100)
    for name in ("a", "c"):
        for metric, draws in parts[name].items():
            np.testing.assert_allclose(draws.both, whole[name][metric].both, atol=1e-9)
            np.testing.assert_allclose(draws.seeds, whole[name][metric].seeds, atol=1e-9)


def test_memory_of_a_large_test_set_is_bounded():
    chunks = list(significance.example_counts(4659, 2000, np.random.default_rng(0)))
    assert sum(len(chunk) for chunk in chunks) == 2000
    assert max(4 * chunk.nbytes for chunk in chunks) < 200e6


def test_chance_of_unequal_numbers_of_seeds():
    """A failed run leaves fewer seeds on one side."""
    measure, runs = simulated(np.random.default_rng(6), k=4)
    runs["a"] = runs["a"][:2]
    found = compare(measure, runs, resamples=500)["mae"]
    assert np.isfinite([found.p, found.seed_p, found.resolvable, found.superiority]).all()
