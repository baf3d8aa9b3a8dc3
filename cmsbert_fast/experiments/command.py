"""The experiments from the command line to the tables, and the exit status."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from cmsbert_fast.data.example import DataError
from cmsbert_fast.experiments import adaptive, report, tuning
from cmsbert_fast.experiments.options import Options, command_parser, parse
from cmsbert_fast.experiments.page import PAGE, write_page
from cmsbert_fast.experiments.plan import (
    Cell,
    Corpora,
    Run,
    cell_of,
    content_key,
    describe,
    expanded,
    read_data_sets,
    sections_of,
)
from cmsbert_fast.experiments.pool import Machine, Pool
from cmsbert_fast.experiments.tables import Row, read_table
from cmsbert_fast.experiments.tuning import Unit
from cmsbert_fast.training import folders, presets, runs, unread
from cmsbert_fast.training.distributed import Ranks, find_device
from cmsbert_fast.training.errors import Interrupted, UsageError
from cmsbert_fast.training.signals import StopRequest

__all__ = ["command_parser", "find_machine", "main"]

EXIT_SOME_FAILED = 1
_REPORT_SHARE = 0.05  # of the time may go into reports while runs are left


class Place(NamedTuple):
    """Where a row of a table stands: table as on the command line, data set, row."""

    table: str
    data: str
    row: Row


def main(
    arguments: Sequence[str], configs: Path = presets.FOLDER, prog: str = "python -m cmsbert_fast.experiments"
) -> int:
    """Runs ``python -m cmsbert_fast.experiments``.

    Args:
        arguments: The command line, without the program.
        configs: The folder of presets and tables.
        prog: The name of the program.

    Returns:
        The exit status: 0 all runs have finished, 1 some have failed, 2 user error, 128 + n stopped by signal n.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    stop = StopRequest()
    try:
        options = parse(arguments, prog)
        if options.report_only:
            return _report_only(options, configs)
        with stop:
            return _Command(options, configs, stop).run()
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return runs.EXIT_USAGE
    except Interrupted as error:
        print(error, file=sys.stderr, flush=True)
        return 128 + (stop.signal or signal.SIGTERM)
    except KeyboardInterrupt:  # the second one
        print("Stopped at once; the same command continues.", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT


def _report_only(options: Options, configs: Path) -> int:
    if options.unread:
        print(f"--report-only reads the runs that are there, and not {', '.join(options.unread)}", file=sys.stderr)
    planned = report.planned_tables(options.output)
    for name in options.tables:
        if name not in planned:
            raise UsageError(f"Table {name} has not been planned in {options.output}; run it there first.")
        report.write_report(options.output, name, configs, options.resamples)
        _print_table(options.output, name)
    print(f"The page is {write_page(options.output, planned, configs)}")
    return 0


def _print_table(root: Path, name: str) -> None:
    print((root / "tables" / f"{Path(name).stem}.md").read_text(encoding="utf-8"))


class _Command:
    """A command after its options have been read."""

    def __init__(self, options: Options, configs: Path, stop: StopRequest) -> None:
        self._options, self._configs, self._stop = options, configs, stop
        self._tables = {name: read_table(name, configs) for name in options.tables}
        self._check_names()
        device = find_device(str(options.settings.get("device", "auto")))
        self._machine = find_machine(options.workers, device)
        self._corpora = Corpora(Ranks(0, 1, device), print)
        self._root = options.output
        self._spent = self._reported = 0.0
        self._failed: list[Run] = []

    def _check_names(self) -> None:
        """Finds names of variants and data sets that no table takes.

        Raises:
            UsageError: There is one.
        """
        tables = self._tables.values()
        variants = {row.variant: None for table in tables for row in table.rows if row.variant is not None}
        for name in self._options.variants:
            if name not in variants:
                raise UsageError(f"No row of these tables is of the variant {name!r}; see {', '.join(variants)}.")
        own = {name: None for table in tables for name in table.data}
        for name in self._options.data:
            if name not in own and all(table.folds is not None for table in tables):
                raise UsageError(f"These tables do not take the data {name!r}; they are of {', '.join(own)}.")

    def run(self) -> int:
        """Checks, tunes, trains and reports."""
        cells = self._cells()
        wanted = self._all_runs(cells)
        if not wanted:
            raise UsageError("Nothing is to be run: no row of these tables has its data; see --data and --variants.")
        for sentence in unread.of_no_run(wanted, self._options.settings):
            print(f"warning: {sentence}", file=sys.stderr)
        # One run serves commands that differ in what its system does not read.
        cells = {
            place: cell if cell.settings is None else cell._replace(settings=unread.removed(cell.settings))
            for place, cell in cells.items()
        }
        self._corpora.check(self._all_runs(cells))
        if self._options.settings.get("word_vectors") is not None and not self._corpora.vectors_are_read:
            raise UsageError("Leave out --set word_vectors: no row of these tables reads word vectors.")
        units = self._units(cells) if self._options.tune is not None else {}
        if self._options.dry_run:
            return self._describe(cells, units)
        folders.make_folder(self._root)
        if units:
            tuned = self._tune(list({unit.name: unit for unit in units.values()}.values()))
            cells = {
                place: cell._replace(settings=tuned[units[place].name]) if place in units else cell
                for place, cell in cells.items()
            }
            self._corpora.check(self._all_runs(cells))
        planned = self._plan(cells)
        self._do(list(planned.values()), self._report_sometimes)
        self._write()
        for name in self._tables:
            _print_table(self._root, name)
        print(f"Everything is in {self._root}; the page is {self._root / PAGE}")
        for run in self._failed:
            print(f"failed: {run.title} ({self._root / run.folder})", file=sys.stderr)
        return EXIT_SOME_FAILED if self._failed else 0

    def _cells(self) -> dict[Place, Cell]:
        """The settings of every row on every data set."""
        options = self._options
        data_sets = read_data_sets(options.data, options.config, self._configs)
        return {
            Place(name, data, row): cell_of(row, data_sets.get(data), options.settings, self._configs, options.variants)
            for name, table in self._tables.items()
            for data in sections_of(table, data_sets, self._tables.values())
            for row in table.rows
        }

    def _all_runs(self, cells: Mapping[Place, Cell]) -> list:
        return [settings for place, cell in cells.items() for settings in self._runs_of(place, cell)]

    def _runs_of(self, place: Place, cell: Cell) -> list:
        if cell.settings is None:
            return []
        return expanded(cell.settings, self._options.seeds, self._tables[place.table].folds)

    def _plan(self, cells: Mapping[Place, Cell]) -> dict[Path, Run]:
        """Every run once, by folder; also remembers which row has which runs."""
        planned: dict[Path, Run] = {}
        for name in self._tables:
            rows: dict[str, list[tuple[Row, Cell, dict[int, list[Path]]]]] = {}
            for place, cell in cells.items():
                if place.table != name:
                    continue
                of_row: dict[int, list[Path]] = {}
                for settings in self._runs_of(place, cell):
                    run = self._corpora.run(place.data, settings)
                    planned[run.folder] = run
                    of_row.setdefault(settings.seed, []).append(run.folder)
                rows.setdefault(place.data, []).append((place.row, cell, of_row))
            if not self._options.dry_run:
                report.write_plan(self._root, name, rows)
        return planned

    def _do(self, runs: list[Run], changed: Callable[[], None] = lambda: None) -> None:
        pool = Pool(self._root, self._machine, self._stop, print, changed)
        pool.run(runs)
        self._failed += pool.failed

    def _report_sometimes(self) -> None:
        """Writes the tables, unless that would take more than a small share of the time."""
        if time.monotonic() - self._reported < self._spent / _REPORT_SHARE:
            return
        started = time.monotonic()
        self._write()
        self._reported = time.monotonic()
        self._spent = self._reported - started

    def _write(self) -> None:
        """Writes the tables of this command, and the page of all."""
        for name in self._tables:
            report.write_report(self._root, name, self._configs, self._options.resamples)
        write_page(self._root, report.planned_tables(self._root), self._configs)

    def _describe(self, cells: Mapping[Place, Cell], units: Mapping[Place, Unit]) -> int:
        planned = list(self._plan(cells).values())
        print("\n".join(describe(self._root, planned, self._machine.workers)))
        for name in dict.fromkeys(unit.name for unit in units.values()):
            print(f"{name}: tuned before")
        for place, cell in cells.items():
            if cell.settings is None and cell.reason != "cited":
                print(f"table {place.table}, {place.data}, {place.row.label}: {cell.reason}")
        return 0

    def _units(self, cells: Mapping[Place, Cell]) -> dict[Place, Unit]:
        """What is tuned: every row with a space, those of the same settings together."""
        units = {}
        for place, cell in cells.items():
            if cell.settings is None or not place.row.space:
                continue
            tuning.check_space(place.row.space, place.row.label)
            key = content_key(cell.settings, place.data)
            name = f"{place.data}-{cell.settings.variant.replace('/', '-')}-{key}"
            unit = Unit(name, place.data, cell.settings, place.row.space, self._tables[place.table].folds)
            if not self._options.tune or tuning.named_space(unit, self._options.tune):
                units[place] = unit
        unknown = (self._options.tune or {}).keys() - {s for unit in units.values() for s in unit.space}
        if unknown:
            raise UsageError(f"No row of these tables can tune {sorted(unknown)[0]}; see the spaces in its file.")
        return units

    def _tune(self, units: Sequence[Unit]) -> dict:
        options, corpora = self._options, self._corpora
        if options.search == "adaptive":
            found = {}
            for unit in units:
                batch = max(1, self._machine.workers // len(options.tune_seeds))
                trials = adaptive.search(unit, options.trials, batch, options.tune_seeds, corpora, self._do, self._root)
                found[unit.name] = (unit, "adaptive", trials)
                tuning.record(self._root, found, options.tune_seeds)
            return {
                name: tuning.with_point(unit.settings, tuning.best(trials, name).settings)
                for name, (unit, _, trials) in found.items()
            }

        def points(unit: Unit) -> list[tuning.Point]:
            if options.tune:
                return tuning.grid(tuning.named_space(unit, options.tune))
            found = tuning.random_points(unit.space, options.trials, unit.name)
            if len(found) < options.trials:
                print(
                    f"{unit.name}: {len(found)} different points were found, not {options.trials}; all are tried",
                    file=sys.stderr,
                )
            return found

        method = "grid" if options.tune else "random"
        return tuning.choose(units, points, options.tune_seeds, corpora, self._do, self._root, method)


def find_machine(workers: int | None, device: torch.device) -> Machine:
    """How many workers run at once, and what each has.

    Raises:
        UsageError: There are fewer GPUs than workers.
    """
    if device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        if (workers or 1) > len(gpus):
            raise UsageError(f"There are {len(gpus)} GPUs for {workers} workers; use --workers {len(gpus)}.")
        gpus = gpus[: workers or len(gpus)]
        return Machine(len(gpus), max(1, _cores() // len(gpus)), tuple(gpus))
    return Machine(workers or 1, max(1, _cores() // (workers or 1)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
