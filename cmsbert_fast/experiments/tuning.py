"""Choosing settings by validation alone: the paper's grid, or the same number of random or adaptive trials for all.

Tuning runs do not even predict the test set. Their seeds are not those that are reported.
"""

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.experiments.plan import Corpora, Run, expanded, finished
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.evaluate import selection
from cmsbert_fast.training.lock import turn
from cmsbert_fast.training.settings import TrainingSettings, settings_from
from cmsbert_fast.training.strict_json import write_json

TRIALS = 27  # the paper's grid: 3 x 3 x 3
_DRAWS = 1000  # for each trial, until a new point is found
FILE = "tune.json"
FOLDER = "tune"  # of figures

Point = dict[str, Any]  # values by setting


@dataclass(frozen=True)
class Unit:
    """A system on a data set, whatever tables it is in.

    Attributes:
        name: Names its files.
        data: Name of the data set.
        settings: To start from.
        space: See :class:`~cmsbert_fast.experiments.tables.Row`.
        folds: See :class:`~cmsbert_fast.experiments.tables.Table`.
    """

    name: str
    data: str
    settings: TrainingSettings
    space: Mapping[str, Any]
    folds: int | None = None


@dataclass
class Trial:
    """A point and what it gave.

    Attributes:
        settings: The point.
        scores: Of each finished tuning run, lower is better; as in selecting the best epoch.
        failed: How many runs have failed.
    """

    settings: Point
    scores: list[float]
    failed: int = 0

    @property
    def mean(self) -> float | None:
        """Over the runs; None if any has failed."""
        return float(np.mean(self.scores)) if self.scores and not self.failed else None


def check_space(space: Mapping[str, Any], where: str) -> None:
    """Finds mistakes in a space.

    Raises:
        UsageError: A setting has neither choices nor a range.
    """
    for name, values in space.items():
        choices = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
        span = isinstance(values, Mapping) and {"low", "high"} <= values.keys() and values["low"] < values["high"]
        if not (choices or span):
            raise UsageError(f"The space of {where} must give {name} a list of values, or low and high.")


def grid(space: Mapping[str, Sequence[Any]]) -> list[Point]:
    """All combinations of values, in order."""
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def random_points(space: Mapping[str, Any], trials: int, name: str) -> list[Point]:
    """Different random points, always the same for a name; all points where there are no more than that.

    Fewer where narrow ranges hold fewer: drawn values have three digits.
    """
    choices = [values for values in space.values() if not isinstance(values, Mapping)]
    if len(choices) == len(space) and np.prod([len(values) for values in choices]) <= trials:
        return grid(space)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    found: list[Point] = []
    for _ in range(_DRAWS * trials):
        point = {setting: _drawn(values, generator) for setting, values in space.items()}
        if point not in found:
            found.append(point)
        if len(found) == trials:
            break
    return found


def _drawn(values: Any, generator: np.random.Generator) -> Any:
    if not isinstance(values, Mapping):
        return values[generator.integers(len(values))]
    low, high = float(values["low"]), float(values["high"])
    drawn = np.exp(generator.uniform(np.log(low), np.log(high))) if values.get("log") else generator.uniform(low, high)
    return float(f"{drawn:.3g}")


def with_point(settings: TrainingSettings, point: Point) -> TrainingSettings:
    """The settings with the values of a point.

    Raises:
        UsageError: There is no such setting, or a value is out of range.
    """
    return settings_from({**asdict(settings), **point})


def trial_runs(unit: Unit, point: Point, seeds: Sequence[int], corpora: Corpora) -> list[Run]:
    """The runs of a trial, whose data have been checked."""
    wanted = expanded(with_point(unit.settings, point), seeds, unit.folds)
    return [corpora.run(unit.data, settings, testing=False) for settings in wanted]


def collect(root: Path, point: Point, runs: Sequence[Run]) -> Trial:
    """What the runs of a trial have given."""
    results = [finished(root, run) for run in runs]
    scores = [selection(found["valid"]) for found in results if found is not None]
    return Trial(point, scores, len(runs) - len(scores))


def best(trials: Sequence[Trial], name: str) -> Trial:
    """The trial of the lowest mean score; of equal ones the first.

    Raises:
        UsageError: All have failed.
    """
    whole = [trial for trial in trials if trial.mean is not None]
    if not whole:
        raise UsageError(f"No trial of {name} has finished; see worker.log in the folders of its runs.")
    return min(whole, key=lambda trial: trial.mean or 0.0)


def expected_best(scores: Sequence[float]) -> list[float]:
    """The expected lowest score of 1, 2, ..., N random trials, from N scores (Dodge et al. 2019)."""
    ordered = np.sort(np.asarray(scores, np.float64))
    n = len(ordered)
    at_least = np.arange(n, -1, -1) / n  # share of trials no better than the i-th
    return [float(((at_least[:-1] ** b - at_least[1:] ** b) * ordered).sum()) for b in range(1, n + 1)]


def record(root: Path, units: Mapping[str, tuple[Unit, str, Sequence[Trial]]], seeds: Sequence[int]) -> None:
    """Writes ``tune.json``, and a figure for each unit below ``tune``."""
    value = {}
    for name, (unit, method, trials) in units.items():
        means = [trial.mean for trial in trials if trial.mean is not None]
        value[name] = {
            "data": unit.data,
            "variant": unit.settings.variant,
            "method": method,
            "space": unit.space,
            "seeds": list(seeds),
            "trials": [{**asdict(trial), "mean": trial.mean} for trial in trials],
            "chosen": best(trials, name).settings if means else None,
            "expected_best": expected_best(means),
        }
    with turn(root):
        for name, (_, _, trials) in units.items():
            if value[name]["chosen"] is not None:
                _draw(root / FOLDER / name, name, trials)
        write_json(root / FILE, value)


def _draw(stem: Path, name: str, trials: Sequence[Trial]) -> None:
    from cmsbert_fast.experiments.heatmap import draw
    from cmsbert_fast.plots import style

    stem.parent.mkdir(exist_ok=True)
    whole = [trial for trial in trials if trial.mean is not None]
    scores = [trial.mean or 0.0 for trial in whole]
    figure = draw(name, [trial.settings for trial in whole], scores, expected_best(scores))
    style.save(figure, stem)


def named_space(unit: Unit, named: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The part of a named grid that a unit's space lists: what others ask for means nothing to it."""
    return {name: list(values) for name, values in named.items() if name in unit.space}


def choose(
    units: Sequence[Unit],
    points: Callable[[Unit], list[Point]],
    seeds: Sequence[int],
    corpora: Corpora,
    do: Callable[[list[Run]], None],
    root: Path,
    method: str,
) -> dict[str, TrainingSettings]:
    """Tunes every unit on points known beforehand: all runs are checked, then done.

    Returns:
        The chosen settings by name of the unit.

    Raises:
        UsageError: A run would fail, or all of a unit have.
    """
    wanted = {unit.name: points(unit) for unit in units}
    corpora.check(
        settings
        for unit in units
        for point in wanted[unit.name]
        for settings in expanded(with_point(unit.settings, point), seeds, unit.folds)
    )
    runs = {unit.name: [trial_runs(unit, point, seeds, corpora) for point in wanted[unit.name]] for unit in units}
    do([run for of_unit in runs.values() for of_trial in of_unit for run in of_trial])
    found = {}
    for unit in units:
        pairs = zip(wanted[unit.name], runs[unit.name], strict=True)
        found[unit.name] = (unit, method, [collect(root, point, of_trial) for point, of_trial in pairs])
    record(root, found, seeds)
    return {name: with_point(unit.settings, best(trials, name).settings) for name, (unit, _, trials) in found.items()}
