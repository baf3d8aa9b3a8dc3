"""Adaptive search through Optuna, an optional extra: later trials learn from earlier ones.

The study is one file, which processes and machines share. Trials that a killed runner left are done again first; their
runs are found by their content, so nothing is computed twice.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmsbert_fast.experiments.plan import Corpora, Run, expanded
from cmsbert_fast.experiments.tuning import Trial, Unit, collect, trial_runs, with_point
from cmsbert_fast.training.errors import UsageError

FILE = "optuna.log"


def available() -> bool:
    """Whether Optuna is installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        return False
    return True


def search(
    unit: Unit,
    trials: int,
    batch: int,
    seeds: Sequence[int],
    corpora: Corpora,
    do: Callable[[list[Run]], None],
    root: Path,
) -> list[Trial]:
    """Tries points until ``trials`` of them have been done, ``batch`` at a time.

    Raises:
        UsageError: Optuna is not installed, or a point is impossible.
    """
    if not available():
        raise UsageError("Adaptive search needs Optuna; install it with: pip install 'cmsbert-fast[tune]'.")
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(root / FILE)))
    # Of its own for each batch of trials: a resumed search must not draw the first points again.
    seed = zlib.crc32(unit.name.encode())
    study = optuna.create_study(
        storage=storage, study_name=unit.name, load_if_exists=True, direction="minimize", sampler=_sampler(seed)
    )
    while True:
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
        if len(done) >= trials:
            break
        study.sampler = _sampler(seed + len(study.trials))
        open_trials = [(t.number, t.params) for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
        while len(open_trials) < min(batch, trials - len(done)):
            asked = study.ask(_distributions(unit.space))
            open_trials.append((asked.number, asked.params))
        points = dict(open_trials)
        corpora.check(
            s for point in points.values() for s in expanded(with_point(unit.settings, point), seeds, unit.folds)
        )
        runs = {number: trial_runs(unit, point, seeds, corpora) for number, point in points.items()}
        do([run for of_trial in runs.values() for run in of_trial])
        for number, point in points.items():
            mean = collect(root, point, runs[number]).mean
            state = TrialState.COMPLETE if mean is not None else TrialState.FAIL
            study.tell(number, mean, state=state, skip_if_finished=True)
    return [collect(root, t.params, trial_runs(unit, t.params, seeds, corpora)) for t in done[:trials]]


def _sampler(seed: int) -> Any:
    import optuna

    return optuna.samplers.TPESampler(seed=seed)


def _distributions(space: Mapping[str, Any]) -> dict[str, Any]:
    import optuna

    return {
        name: optuna.distributions.FloatDistribution(values["low"], values["high"], log=bool(values.get("log")))
        if isinstance(values, Mapping)
        else optuna.distributions.CategoricalDistribution(tuple(values))
        for name, values in space.items()
    }
