"""Which runs the tables need: each once, though several tables use it, in a folder named by its content."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cmsbert_fast.data.example import SPLITS
from cmsbert_fast.data.request import CHOICES, DataRequest
from cmsbert_fast.experiments.tables import Row, Table
from cmsbert_fast.models.registry import VARIANTS
from cmsbert_fast.training import preflight, report, resume, unread
from cmsbert_fast.training.config import reads_vectors
from cmsbert_fast.training.conversion import layered, read_yaml
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TrainingSettings, settings_from
from cmsbert_fast.training.texts import check_texts

_OF_DATA = ("model", *(name for name in CHOICES if name != "fold"), "task")  # a data set's settings hold for all rows
_AXES = ("data", "variant", "seed", "fold")


class DataSet(NamedTuple):
    """A data set of the command line.

    Attributes:
        name: As in the tables, or another.
        path: Where it is, or "embedded".
        settings: Of a YAML file.
    """

    name: str
    path: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        data: Name of the data set.
        settings: Of the run.
        folder: Below the output folder: ``runs/DATA/VARIANT/KEY/seed-K``.
        fingerprint: Of its data.
        examples: How many it trains on.
        testing: False for tuning: the test set is not predicted.
    """

    data: str
    settings: TrainingSettings
    folder: Path
    fingerprint: str
    examples: int
    testing: bool = True

    @property
    def work(self) -> float:
        """Examples seen in training, at most: what the time is estimated from."""
        return float(self.settings.epochs * self.examples)

    @property
    def title(self) -> str:
        fold = "" if self.settings.fold is None else f" fold {self.settings.fold}"
        return f"{self.settings.variant} on {self.data}{fold} seed {self.settings.seed}"


_Source = tuple[DataRequest, str | None, bool]  # what is read of data and word vectors


def _source(settings: TrainingSettings) -> _Source:
    return settings.request(), settings.word_vectors, settings.repeat_frames


def _silent(*values: object, **options: object) -> None:
    pass


class Corpora:
    """What is known of the data of all runs, each read and checked once.

    Args:
        ranks: The device that runs will use.
        say: Prints reports of the data.

    Attributes:
        vectors_are_read: Whether a run that was checked reads word vectors.
    """

    def __init__(self, ranks: Ranks, say: Callable[..., None]) -> None:
        self.vectors_are_read = False
        self._ranks, self._say = ranks, say
        self._known: dict[_Source, tuple[str, int]] = {}
        self._checked: set[str] = set()
        self._said: set[str] = set()  # warnings, once for all seeds and points

    def check(self, wanted: Iterable[TrainingSettings]) -> None:
        """Finds what would make a run fail.

        Raises:
            UsageError, DataError: A run would fail. The message says what to do.
        """
        by_source: dict[_Source, list[TrainingSettings]] = {}
        for settings in wanted:
            if content_key(settings, "") not in self._checked:
                by_source.setdefault(_source(settings), []).append(settings)
        for source, group in by_source.items():
            new = source not in self._known
            say = self._say if new else _silent
            data = preflight.read_data(group[0], say)
            if data.corpus.several:
                raise UsageError(
                    f"The tables measure scores or one class each, and {data.corpus.name} has several labels at once; "
                    "choose one of them as the label."
                )
            self._known[source] = data.fingerprint, len(data.corpus.splits["train"])
            for settings in group:
                key = content_key(settings, "")
                if key in self._checked:
                    continue
                model, tokenizer = preflight.check(settings, data.corpus, self._ranks, data.vectors)
                self.vectors_are_read = self.vectors_are_read or reads_vectors(model.config)
                preflight.check_pieces(settings, data.corpus, tokenizer, say)
                for sentence in unread.of_run(settings, data.corpus, model):
                    if sentence not in self._said:
                        self._say(f"warning: {sentence}", file=sys.stderr)
                    self._said.add(sentence)
                if new and settings is group[0]:
                    for sentence in check_texts(data.corpus, tokenizer, settings.max_length, SPLITS):
                        say(f"  {sentence}")
                self._checked.add(key)

    def run(self, data: str, settings: TrainingSettings, testing: bool = True) -> Run:
        """The run of settings whose data have been checked."""
        fingerprint, examples = self._known[_source(settings)]
        fold = "" if settings.fold is None else f"fold-{settings.fold}-"
        key = content_key(settings, fingerprint)
        folder = Path("runs") / data / settings.variant.replace("/", "-") / key / f"{fold}seed-{settings.seed}"
        return Run(data, settings, folder, fingerprint, examples, testing)


def content_key(settings: TrainingSettings, fingerprint: str) -> str:
    """12 hex digits of what is computed: the settings but seed, fold and threads, and the data."""
    content = {k: v for k, v in resume.identity(settings).items() if k not in ("seed", "fold", "threads")}
    if fingerprint == "":  # of several folds: told apart by the fold, for checks
        content["fold"], content["data"] = settings.fold, settings.data
    return hashlib.sha256(json.dumps([content, fingerprint], sort_keys=True).encode()).hexdigest()[:12]


class Cell(NamedTuple):
    """A row of a table on one data set.

    Attributes:
        settings: Of its runs but seed and fold; None: it has none.
        reason: Why not.
        notes: What to know about its settings.
    """

    settings: TrainingSettings | None
    reason: str = ""
    notes: tuple[str, ...] = ()


def read_data_sets(paths: Mapping[str, str], files: Mapping[str, Path], configs: Path) -> dict[str, DataSet]:
    """The data sets of ``--data NAME=PATH`` with the settings of ``--config NAME=FILE``, else ``configs/NAME.yaml``.

    Raises:
        UsageError: A file cannot be read, or is of a data set that is not given.
    """
    for name in files:
        if name not in paths:
            raise UsageError(f"--config names {name}, but --data does not; give its data too.")
    found = {}
    for name, path in paths.items():
        file = files.get(name, configs / f"{name}.yaml")
        found[name] = DataSet(name, path, read_yaml(file) if name in files or file.is_file() else {})
    return found


def sections_of(table: Table, data_sets: Mapping[str, DataSet], tables: Iterable[Table] = ()) -> list[str]:
    """The data sets in the parts of a table.

    Its own; then, unless it has folds, others that were given and are not those of another of ``tables``.
    """
    taken = {*table.data, *(name for other in tables for name in other.data)}
    others = [name for name in data_sets if name not in taken] if table.folds is None else []
    return [*table.data, *others]


def cell_of(row: Row, data: DataSet | None, overrides: Mapping[str, Any], configs: Path, only: Sequence[str]) -> Cell:
    """The settings of a row on a data set.

    Lowest first: those of the row's preset, or of the data set's own file where the row has none; what the file says of
    data and checkpoint; the row's own; ``overrides``.

    Raises:
        UsageError: A setting is wrong.
    """
    if row.variant is None:
        return Cell(None, "cited")
    if data is None:
        return Cell(None, "not run: no data")
    if only and row.variant not in only:
        return Cell(None, "not run: left out")
    if row.variant not in VARIANTS:
        return Cell(None, f"not run: there is no variant {row.variant}")
    notes = []
    values: dict[str, Any] = dict(data.settings)
    if row.preset is not None:
        preset = configs / row.preset.format(data=data.name)
        if preset.is_file():
            values = layered(read_yaml(preset), {k: v for k, v in values.items() if k in _OF_DATA})
        else:
            notes.append(f"there is no preset for {data.name}: settings of the data set")
    for axis in _AXES:
        values.pop(axis, None)
    values = layered(layered(values, row.settings), overrides)
    settings = settings_from({**values, "data": data.path, "variant": row.variant})
    return Cell(settings, notes=tuple(notes))


def expanded(settings: TrainingSettings, seeds: Sequence[int], folds: int | None) -> list[TrainingSettings]:
    """A run's settings for every seed and fold."""
    numbers: Sequence[int | None] = [None] if folds is None else range(1, folds + 1)
    return [dataclasses.replace(settings, seed=seed, fold=fold) for seed in seeds for fold in numbers]


class Estimates:
    """Seconds of runs, from those that have finished.

    Args:
        root: The output folder.
        runs: All runs of the plan.
    """

    def __init__(self, root: Path, runs: Iterable[Run]) -> None:
        self._rates: dict[tuple[str, ...], list[float]] = {}
        for run in runs:
            if (found := finished(root, run)) is not None:
                self.add(run, found["seconds"])

    def add(self, run: Run, seconds: float) -> None:
        """Learns from a run."""
        for key in self._keys(run):
            self._rates.setdefault(key, []).append(seconds / run.work)

    def seconds(self, run: Run) -> float | None:
        """Of runs of the same settings, else of the same system and data, of the system, of any; None: none yet."""
        for key in self._keys(run):
            if key in self._rates:
                return run.work * sum(self._rates[key]) / len(self._rates[key])
        return None

    @staticmethod
    def _keys(run: Run) -> list[tuple[str, ...]]:
        variant = run.settings.variant
        return [(run.data, variant, run.folder.parent.name), (run.data, variant), (variant,), ()]


def finished(root: Path, run: Run) -> dict[str, Any] | None:
    """The results of a run; None if there are none, or no test where there should be one.

    Raises:
        UsageError: They are damaged.
    """
    found = report.read_results(root / run.folder)
    return found if found is not None and (not run.testing or "test" in found) else None


def describe(root: Path, runs: Sequence[Run], workers: int) -> list[str]:
    """Lines that say what will be run, and how long it will take."""
    estimates = Estimates(root, runs)
    lines, left, unknown = [], 0.0, 0
    groups: dict[Path, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.folder.parent, []).append(run)
    for folder, group in groups.items():
        missing = [run for run in group if finished(root, run) is None]
        seconds = [estimates.seconds(run) for run in missing]
        known = [s for s in seconds if s is not None]
        left, unknown = left + sum(known), unknown + len(seconds) - len(known)
        time = f", about {duration(sum(known))} of one worker" if known else ""
        what = f"{group[0].settings.variant} on {group[0].data}"
        lines.append(f"{what}: {len(group)} runs, {len(group) - len(missing)} finished{time} ({folder})")
    total = f"{len(runs)} runs"
    if left:
        total += f", about {duration(left / workers)} left with {workers} workers"
    if unknown:
        total += f", {unknown} of unknown time: no run has finished yet"
    return [*lines, total]


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
