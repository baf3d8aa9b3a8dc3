"""Tuning: points, choice and record, without training."""

import itertools
import json

import numpy as np
import pytest

from cmsbert_fast.experiments import adaptive, tuning
from cmsbert_fast.experiments.tuning import Trial, Unit
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TrainingSettings

PAPER = {"temperature": [0.07, 0.1, 0.2], "momentum": [0.9, 0.99, 0.999], "smoothing": [0.7, 0.8, 0.9]}
RATE = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "batch_size": [16, 32]}


def test_the_papers_grid_has_27_points():
    points = tuning.grid(PAPER)
    assert len(points) == 27
    assert points[0] == {"temperature": 0.07, "momentum": 0.9, "smoothing": 0.7}
    assert tuning.random_points(PAPER, 27, "any") == points


def test_random_points_repeat_and_stay_within():
    points = tuning.random_points(RATE, 27, "mosi-bert")
    assert points == tuning.random_points(RATE, 27, "mosi-bert")
    assert points != tuning.random_points(RATE, 27, "mosi-tfn")
    assert len({json.dumps(point) for point in points}) == 27
    rates = [point["learning_rate"] for point in points]
    assert 1e-5 <= min(rates) < 1e-4 < max(rates) <= 1e-3
    assert {point["batch_size"] for point in points} == {16, 32}
    # More trials: the same ones first.
    assert tuning.random_points(RATE, 30, "mosi-bert")[:27] == points


def test_a_range_with_fewer_points_than_trials_ends():
    points = tuning.random_points({"warmup": {"low": 0.1, "high": 0.1009}}, 27, "any")
    assert sorted(point["warmup"] for point in points) == [0.1, 0.101]


def test_points_are_settings():
    base = TrainingSettings(data="d", visual=("none",), architecture={"hidden_dropout_prob": 0.2})
    found = tuning.with_point(base, {"temperature": 0.2, "batch_size": 16})
    assert (found.temperature, found.batch_size, found.visual) == (0.2, 16, ("none",))
    assert found.architecture == base.architecture
    with pytest.raises(UsageError, match="There is no setting"):
        tuning.with_point(base, {"temprature": 0.2})


def test_expected_best_by_brute_force():
    scores = [0.9, 0.7, 0.8, 0.75]
    expected = [np.mean([min(draw) for draw in itertools.product(scores, repeat=budget)]) for budget in range(1, 5)]
    assert tuning.expected_best(scores) == pytest.approx(expected)


def test_the_best_trial_has_the_lowest_mean_of_whole_ones():
    trials = [Trial({"a": 1}, [0.5, 0.7]), Trial({"a": 2}, [0.1], failed=1), Trial({"a": 3}, [0.4, 0.6])]
    assert tuning.best(trials, "x").settings == {"a": 3}
    with pytest.raises(UsageError, match="No trial of x"):
        tuning.best(trials[1:2], "x")


def test_record(tmp_path):
    unit = Unit("mosi-clr", "mosi", TrainingSettings(data="d"), PAPER)
    trials = [Trial(point, [0.8 + i / 100]) for i, point in enumerate(tuning.grid(PAPER))]
    other = Unit("mosi-bert", "mosi", TrainingSettings(data="d", variant="bert"), RATE)
    drawn = [Trial(p, [0.9], failed=i == 2) for i, p in enumerate(tuning.random_points(RATE, 5, "b"))]
    tuning.record(tmp_path, {"mosi-clr": (unit, "grid", trials), "mosi-bert": (other, "random", drawn)}, [7])
    value = json.loads((tmp_path / "tune.json").read_text())
    assert value["mosi-clr"]["chosen"] == {"temperature": 0.07, "momentum": 0.9, "smoothing": 0.7}
    assert value["mosi-clr"]["expected_best"][0] == pytest.approx(0.93)
    assert value["mosi-bert"]["trials"][2]["mean"] is None
    assert {path.name for path in (tmp_path / "tune").iterdir()} == {
        f"mosi-{name}.{end}" for name in ("clr", "bert") for end in ("png", "svg")
    }


def test_a_named_grid_is_for_those_who_list_the_name():
    unit = Unit("u", "mosi", TrainingSettings(data="d"), {"momentum": [0.9], "smoothing": [0.9]})
    assert tuning.named_space(unit, {"temperature": [0.1], "momentum": [0.5, 0.6]}) == {"momentum": [0.5, 0.6]}


@pytest.mark.parametrize("values", [[], "0.1", {"low": 2, "high": 1}, {"low": 1}, 3])
def test_mistakes_in_a_space(values):
    with pytest.raises(UsageError, match="must give momentum"):
        tuning.check_space({"momentum": values}, "A")


class Told:
    """Takes the place of data and runs: a trial is a run, its score the distance of its rate from 3e-4."""

    def __init__(self, monkeypatch, fails=False):
        self.points, self.fails = [], fails
        monkeypatch.setattr(adaptive, "trial_runs", lambda unit, point, seeds, corpora: [point])
        monkeypatch.setattr(adaptive, "collect", self.collect)

    def check(self, settings):
        list(settings)

    def do(self, runs):
        self.points += runs
        if self.fails and len(self.points) > 3:
            raise KeyboardInterrupt

    def collect(self, root, point, runs):
        return Trial(point, [abs(np.log(point["learning_rate"] / 3e-4))])


@pytest.mark.skipif(not adaptive.available(), reason="Optuna is an extra")
def test_adaptive_search_continues_after_an_end(tmp_path, monkeypatch):
    unit = Unit("u", "mosi", TrainingSettings(data="d"), RATE)
    told = Told(monkeypatch, fails=True)
    with pytest.raises(KeyboardInterrupt):
        adaptive.search(unit, 8, 2, [7], told, told.do, tmp_path)
    again = Told(monkeypatch)
    trials = adaptive.search(unit, 8, 2, [7], again, again.do, tmp_path)
    assert again.points[:2] == told.points[2:4]  # those that were left
    assert [trial.settings for trial in trials] == [*told.points[:2], *again.points]
    assert len({trial.settings["learning_rate"] for trial in trials}) == 8
    assert adaptive.search(unit, 8, 2, [7], again, again.do, tmp_path) == trials
    assert len(again.points) == 6


@pytest.mark.skipif(adaptive.available(), reason="Optuna is installed")
def test_without_optuna_a_sentence(tmp_path):
    unit = Unit("u", "mosi", TrainingSettings(data="d"), RATE)
    with pytest.raises(UsageError, match="install it"):
        adaptive.search(unit, 8, 2, [7], None, None, tmp_path)
