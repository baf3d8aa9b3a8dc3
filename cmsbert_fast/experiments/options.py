"""The command line of the experiments."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmsbert_fast.commandline import examples
from cmsbert_fast.experiments import significance, tuning
from cmsbert_fast.training import presets
from cmsbert_fast.training.command import Parser
from cmsbert_fast.training.conversion import assignments
from cmsbert_fast.training.errors import UsageError


@dataclass(frozen=True)
class Options:
    """A parsed command line; the options explain themselves by ``--help``."""

    tables: tuple[str, ...]
    data: dict[str, str]
    config: dict[str, Path]
    seeds: tuple[int, ...]
    workers: int | None
    output: Path
    settings: dict[str, Any]
    variants: tuple[str, ...]
    resamples: int
    dry_run: bool
    report_only: bool
    tune: dict[str, list[Any]] | None
    tune_seeds: tuple[int, ...]
    trials: int
    search: str
    unread: tuple[str, ...] = ()  # given with --report-only, which does not read them


# What each way to use the command does not read.
_OF_TUNING = ("tune_seeds", "trials", "search")
_OF_RUNS = ("data", "config", "set", "seeds", "variants", "workers", "dry_run", "tune", *_OF_TUNING)
_OF_COMMAND = ("data", "variant", "seed", "fold")  # no settings of all runs


_DEFAULTS: dict[str, Any] = {
    **{name: [] for name in ("data", "config", "set", "variants")},
    "workers": None,
    "dry_run": False,
    "tune": None,
    "seeds": [0, 1, 2, 3, 4],
    "tune_seeds": [1000, 1001],
    "trials": tuning.TRIALS,
    "search": "random",
}


def parse(arguments: Sequence[str], prog: str = "python -m cmsbert_fast.experiments") -> Options:
    """Reads the command line.

    Raises:
        UsageError: It is not one.
    """
    given = command_parser(prog).parse_args(arguments)
    _check_idle(given)
    options = Options(
        tables=tuple(dict.fromkeys(given.tables)),
        data={name: str(path) for name, path in _pairs("data", given.data).items()},
        config={name: presets.find(path) for name, path in _pairs("config", given.config).items()},
        seeds=tuple(given.seeds),
        workers=given.workers,
        output=given.output,
        settings=assignments("set", given.set),
        variants=tuple(given.variants),
        resamples=given.resamples,
        dry_run=given.dry_run,
        report_only=given.report_only,
        tune=None if given.tune is None else {n: _values(v) for n, v in _pairs("tune", given.tune).items()},
        tune_seeds=tuple(given.tune_seeds),
        trials=given.trials,
        search=given.search,
        unread=tuple(map(_flag, _asked(given, _OF_RUNS))) if given.report_only else (),
    )
    for name, value in (("workers", options.workers), ("trials", options.trials)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1.")
    if options.resamples < 100:
        raise UsageError("--resamples must be at least 100.")
    for seeds in (options.seeds, options.tune_seeds):
        if len(set(seeds)) < len(seeds):
            raise UsageError("A seed is given twice; name each once.")
    for name in _OF_COMMAND:
        if name in options.settings:
            raise UsageError(f"Leave out --set {name}: it differs between runs; see --data, --variants and --seeds.")
    if not options.data and not options.report_only:
        raise UsageError("Name the data with --data NAME=PATH, such as --data mosi=data/mosi.")
    shared = sorted(set(options.seeds) & set(options.tune_seeds))
    if options.tune is not None and shared:
        raise UsageError(f"Seed {shared[0]} is both tuned with and reported; choose other --tune-seeds.")
    if options.search == "adaptive" and options.tune:
        raise UsageError("Adaptive search takes its spaces from the table files; give --tune without names.")
    return options


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _asked(given: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Those of some options that are not at their defaults."""
    return [name for name in names if getattr(given, name) != _DEFAULTS[name]]


def _check_idle(given: argparse.Namespace) -> None:
    """Finds options that have nothing to act on.

    Raises:
        UsageError: There is one.
    """
    if given.tune is None and not given.report_only:
        for name in _asked(given, _OF_TUNING):
            raise UsageError(f"Leave out {_flag(name)}: it is for --tune.")
    if given.tune and _asked(given, ["trials"]):
        raise UsageError("Leave out --trials: a grid of named values has all its points.")


def command_parser(prog: str = "python -m cmsbert_fast.experiments") -> Parser:
    """The parser of the command line."""
    top = Parser(prog=prog)
    commands = top.add_subparsers(dest="command", required=True)
    parser = commands.add_parser(
        "tables",
        help="train what is missing, and print the paper's tables",
        description="Trains what the tables need, each run once, and writes the tables with spread and tests. The "
        "same command continues after any end; several may share an output folder.",
        epilog=examples(
            "%(prog)s 2 3 --data mosi=DIR --workers 2",
            "%(prog)s 1 --data mosi=DIR mosei=DIR --tune --dry-run",
            "%(prog)s 2 --report-only",
        ),
    )
    add = parser.add_argument
    add("tables", nargs="+", metavar="TABLE", help="1, 2, 3, 4, or a file like configs/tables/1.yaml")
    parser.set_defaults(**_DEFAULTS)
    add("--data", nargs="+", metavar="NAME=PATH", help="data sets: mosi, mosei, iemocap, or others")
    add("--config", nargs="+", metavar="NAME=FILE", help="settings of a data set, for configs/NAME.yaml")
    add("--set", nargs="+", metavar="NAME=VALUE", help="settings of all runs, such as epochs=20")
    add("--seeds", nargs="+", type=int, metavar="K", help="seeds (default: 0 1 2 3 4)")
    add("--variants", nargs="+", metavar="NAME", help="only these are run (default: all of the tables)")
    add("--workers", type=int, metavar="W", help="runs at once (default: one a GPU, else 1)")
    add(
        "--output",
        type=Path,
        default=Path("experiments"),
        metavar="DIR",
        help="for runs and tables (default: experiments)",
    )
    add("--resamples", type=int, default=significance.RESAMPLES, metavar="R", help="of the bootstrap (default: 10000)")
    add("--dry-run", action="store_true", help="check all runs and print the plan, train nothing")
    add("--report-only", action="store_true", help="write the tables anew from the runs in DIR, train nothing")
    add(
        "--tune",
        nargs="*",
        metavar="NAME=V,V",
        help="first choose settings by validation: the grid of these values; without names, as many trials for each "
        "system of its space in the table file",
    )
    add("--tune-seeds", nargs="+", type=int, metavar="K", help="seeds of tuning (default: 1000 1001)")
    add("--trials", type=int, metavar="N", help="trials of each system (default: 27)")
    add("--search", choices=["random", "adaptive"], help="adaptive: Optuna, of the extra 'tune' (default: random)")
    return top


def _pairs(option: str, pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise UsageError(f"--{option} takes NAME=VALUE, not {pair!r}.")
        if name in found:
            raise UsageError(f"--{option} names {name} twice.")
        found[name] = value
    return found


def _values(text: str) -> list[Any]:
    """``.07,.1,.2`` as numbers; names stay text."""
    return [_number(value) for value in text.split(",")]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
