"""Whether one system is better than another: spread over seeds, spread over test examples, or both.

The paired bootstrap over both follows Berg-Kirkpatrick et al. (2012) for the examples and Bouthillier et al. (2021) for
the seeds; the permutation of seeds and P(A > B) leave the test set as it is. Nothing here knows of runs or tables:
predictions of a system are an array (k seeds, n examples), all systems have the same n examples.

Drawing seeds and examples together counts the noise that a run has on each example three times (Owen 2007): once with
the seeds, once with the examples, once with both. The third is V_both - V_seeds - V_examples, whatever the metric, and
one of the other two is as large; :func:`spread` scales the draws to the variance without them, and for few seeds by
Student's quantile. Simulated tables of identical systems then give p < 0.05 in 5 % of cases, not in 1 % or 8 %.
"""

import functools
import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cmsbert_fast.experiments.measures import LOWER_IS_BETTER, Measure, measured

RESAMPLES = 10_000
EXACT_SEEDS = 8  # C(16, 8) = 12,870 assignments of labels; beyond that, RESAMPLES random ones
CHUNK_BYTES = 32 * 2**20  # of one array of counts; four such arrays exist at a time
CONFIDENCE = 0.95
_POWER_FACTOR = 2.8  # normal quantiles of 97.5 % and 80 %: 1.96 + 0.84

_Z = 1.96


class Draws(NamedTuple):
    """A metric of one system in R resamples.

    Attributes:
        value: On the sample itself, the mean over the seeds.
        runs: Number of seeds.
        both, examples, seeds: Its mean over seeds where both are drawn, or only one of them, (R,).
    """

    value: float
    runs: int
    both: np.ndarray
    examples: np.ndarray
    seeds: np.ndarray


Systems = Mapping[str, np.ndarray]  # name -> predictions (k, n)
Resampled = dict[str, dict[str, Draws]]  # by name and metric


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Comparison(NamedTuple):
    """A row of a table against the reference row, in one metric.

    Attributes:
        difference: Seed mean of the row minus that of the reference.
        interval, p: Of the difference, over seeds and examples together.
        p_holm: ``p`` corrected for all rows of the table.
        cluster_interval, cluster_p: As ``interval`` and ``p``, but drawing whole videos; None without videos.
        seed_p: Over seeds only, the test set being fixed; None where a side has a single seed.
        superiority, superiority_interval: Probability that a run of the row beats one of the reference.
        resolvable: The smallest difference that had 80 % power; None for metrics that are no mean over examples.
    """

    difference: float
    interval: Interval
    p: float
    p_holm: float
    cluster_interval: Interval | None
    cluster_p: float | None
    seed_p: float | None
    superiority: float
    superiority_interval: Interval
    resolvable: float | None


def seed_metrics(measure: Measure, predictions: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric of every seed, (k,)."""
    found = [measured(measure, row) for row in predictions]
    return {name: np.array([metrics[name] for metrics in found]) for name in found[0]}


def example_counts(
    n: int, resamples: int, generator: np.random.Generator, clusters: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """How often each of n examples is in each resample, in chunks (r, n) of ``resamples`` rows altogether.

    Args:
        n: Number of examples.
        resamples: Number of resamples.
        generator: Draws them.
        clusters: The cluster 0, 1, ... of each example, (n,): whole clusters are drawn.
    """
    units = n if clusters is None else int(clusters.max()) + 1
    chunk = max(1, CHUNK_BYTES // (8 * max(n, units)))
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = generator.integers(0, units, (rows, units))
        drawn += units * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)
        yield counts if clusters is None else counts[:, clusters]


def seed_weights(k: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Weight of each of k seeds in each resample, (R, k), rows adding up to 1.

    k - 1 seeds are drawn, not k: the variance of their mean is then that of a mean of k seeds without bias. With k
    draws it is too small by (k - 1) / k, and 5 seeds would find differences that are not there. A single seed stays.
    """
    draws = max(1, k - 1)
    drawn = generator.integers(0, k, (resamples, draws)) + k * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * k).reshape(resamples, k) / draws


def resample(
    measure: Measure, systems: Systems, resamples: int = RESAMPLES, clusters: np.ndarray | None = None, seed: int = 0
) -> Resampled:
    """Metrics of resamples: examples are drawn for all systems jointly, seeds for each system by itself.

    Args:
        measure: Metrics of the test set.
        systems: Predictions by name.
        resamples: R.
        clusters: See :func:`example_counts`.
        seed: The same seed and names give the same draws, whatever other systems there are.

    Returns:
        Draws of each system and metric.
    """
    found: Resampled = {}
    columns, weights = {}, {}
    for name, predictions in systems.items():
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        weights[name] = seed_weights(len(predictions), resamples, generator)
        columns[name] = np.concatenate([measure.columns(row) for row in predictions], axis=1)
        found[name] = {
            metric: Draws(float(v.mean()), len(v), np.empty(resamples), np.empty(resamples), weights[name] @ v)
            for metric, v in seed_metrics(measure, predictions).items()
        }
    n, done = len(next(iter(columns.values()))), 0
    for counts in example_counts(n, resamples, np.random.default_rng(seed), clusters):
        rows = slice(done, done + len(counts))
        for name, predictions in systems.items():
            sums = (counts @ columns[name]).reshape(len(counts), len(predictions), -1)
            for metric, values in measure.metrics(sums).items():
                found[name][metric].both[rows] = (values * weights[name][rows]).sum(axis=1)
                found[name][metric].examples[rows] = values.mean(axis=1)
        done = rows.stop
    return found


def spread(a: Draws, b: Draws | None = None) -> np.ndarray:
    """Draws (R,) of a metric, or of its difference between two systems, around its value on the sample.

    Their variance is V_seeds + V_examples - (V_both - V_seeds - V_examples), see above, but at least that of seeds or
    of examples alone.
    """
    both, examples, value = a.both, a.examples, a.value
    if b is not None:
        both, examples, value = both - b.both, examples - b.examples, value - b.value
    of_both, of_examples = float(np.nanvar(both)), float(np.nanvar(examples))
    of_seeds = [(float(np.nanvar(side.seeds)), side.runs) for side in (a, b) if side is not None]
    together = sum(variance for variance, _ in of_seeds)
    if of_both == 0 or math.isnan(of_both):
        return value + both - both.mean()
    variance = max(2 * (together + of_examples) - of_both, together, of_examples)
    # Welch's degrees of freedom.
    uncertainty = sum(v**2 / (count - 1) for v, count in of_seeds if count > 1)
    factor = math.sqrt(variance / of_both) * (_student_over_normal(variance**2 / uncertainty) if uncertainty else 1)
    return value + factor * (both - np.nanmean(both))


def _student_over_normal(freedom: float) -> float:
    """The 97.5 % quantile of Student's distribution over that of the normal one; 0.3 % off at 8 degrees of freedom."""
    z = _Z
    return 1 + (z**2 + 1) / (4 * freedom) + (5 * z**4 + 16 * z**2 + 3) / (96 * freedom**2)


def interval(values: np.ndarray) -> Interval:
    """The percentile interval of resampled values; values that are NaN do not count."""
    tail = 100 * (1 - CONFIDENCE) / 2
    if not np.isfinite(values).any():
        return Interval(math.nan, math.nan)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of resampled differences: how far 0 is out in their tails."""
    differences = differences[np.isfinite(differences)]
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return min(1.0, 2 * (1 + float(tail)) / (len(differences) + 1))


def permutation_p(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float | None:
    """Two-sided p that two sets of seeds come from one system: which label a seed has is permuted.

    Exact for at most ``EXACT_SEEDS`` seeds a side, else from ``RESAMPLES`` random permutations.

    Returns:
        None where a side has fewer than 2 seeds: nothing could be found.
    """
    if min(len(a), len(b)) < 2:
        return None
    both = np.concatenate([a, b])
    observed = a.mean() - b.mean()
    if max(len(a), len(b)) <= EXACT_SEEDS:
        chosen, extra = _combinations(len(both), len(a)), 0
    else:
        generator = np.random.default_rng(seed)
        chosen = generator.permuted(np.tile(np.arange(len(both)), (RESAMPLES, 1)), axis=1)[:, : len(a)]
        extra = 1  # the assignment that was seen
    first = both[chosen].sum(axis=1)
    differences = first / len(a) - (both.sum() - first) / len(b)
    slack = 1e-9 * max(1e-300, float(np.abs(both).max()))  # equal up to rounding
    tails = [(differences <= observed + slack).sum(), (differences >= observed - slack).sum()]
    return min(1.0, 2 * (min(map(float, tails)) + extra) / (len(differences) + extra))


@functools.cache
def _combinations(n: int, k: int) -> np.ndarray:
    chosen = itertools.chain.from_iterable(itertools.combinations(range(n), k))
    return np.fromiter(chosen, np.int8).reshape(-1, k)


def superiority(
    a: np.ndarray, b: np.ndarray, lower_is_better: bool, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, Interval]:
    """P(A > B): the share of pairs of runs in which A is better, ties counting half; its bootstrap interval."""
    wins = np.sign(b[None, :] - a[:, None] if lower_is_better else a[:, None] - b[None, :]) / 2 + 0.5
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(0, len(side), (resamples, len(side))) for side in (a, b)]
    resampled = wins[drawn[0][:, :, None], drawn[1][:, None, :]].mean(axis=(1, 2))
    return float(wins.mean()), interval(resampled)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of p values for being several."""
    order, corrected, largest = np.argsort(p, kind="stable"), [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = largest
    return corrected


def resolvable(measure: Measure, a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """The smallest differences that k seeds and n examples find with 80 % power at the level of 5 %.

    2.8 sqrt(s_A^2 / k_A + s_B^2 / k_B + s_d^2 / n); s are standard deviations of the seeds' metrics, s_d that over
    examples of the difference of the seeds' mean values. Only for metrics that are means over all examples, and only
    with two seeds a side.
    """
    if min(len(a), len(b)) < 2:
        return {}
    means = [[measure.means(row) for row in predictions] for predictions in (a, b)]
    found = {}
    for name in means[0][0]:
        first, second = (np.stack([row[name] for row in rows]) for rows in means)
        variance = sum(float(v.mean(axis=1).var(ddof=1)) / len(v) for v in (first, second))
        difference = first.mean(axis=0) - second.mean(axis=0)
        found[name] = _POWER_FACTOR * math.sqrt(variance + float(difference.var(ddof=1)) / len(difference))
    return found


def compare(
    measure: Measure,
    systems: Systems,
    reference: str,
    resampled: Resampled,
    by_cluster: Resampled | None = None,
) -> dict[str, dict[str, Comparison]]:
    """Compares every system with the reference, in all metrics.

    Args:
        measure: Metrics of the test set.
        systems: Predictions by name.
        reference: The name of one.
        resampled: From :func:`resample`.
        by_cluster: The same, drawing clusters.

    Returns:
        Comparisons by name and metric; the reference is not among the names.
    """
    others = [name for name in systems if name != reference]
    seeds = {name: seed_metrics(measure, predictions) for name, predictions in systems.items()}
    found: dict[str, dict[str, Comparison]] = {name: {} for name in others}
    smallest = {name: resolvable(measure, systems[name], systems[reference]) for name in others}
    for metric in resampled[reference]:
        differences = {name: spread(resampled[name][metric], resampled[reference][metric]) for name in others}
        p = {name: bootstrap_p(values) for name, values in differences.items()}
        corrected = dict(zip(others, holm(list(p.values())), strict=True))
        for name in others:
            a, b = seeds[name][metric], seeds[reference][metric]
            wins, wins_interval = superiority(a, b, metric in LOWER_IS_BETTER)
            clustered = spread(by_cluster[name][metric], by_cluster[reference][metric]) if by_cluster else None
            found[name][metric] = Comparison(
                difference=float(a.mean() - b.mean()),
                interval=interval(differences[name]),
                p=p[name],
                p_holm=corrected[name],
                cluster_interval=None if clustered is None else interval(clustered),
                cluster_p=None if clustered is None else bootstrap_p(clustered),
                seed_p=permutation_p(a, b),
                superiority=wins,
                superiority_interval=wins_interval,
                resolvable=smallest[name].get(metric),
            )
    return found
