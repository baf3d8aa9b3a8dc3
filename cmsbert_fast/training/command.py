"""The command line of ``train.py``: options, a YAML file, and the requested runs."""

import argparse
import dataclasses
import itertools
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmsbert_fast.models.registry import VARIANTS
from cmsbert_fast.training.conversion import MAPPINGS, assignments, converted, layered, read_yaml
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.saved_runs import saved_runs
from cmsbert_fast.training.settings import TrainingSettings, settings_from

_RUNS = 1000  # of a command
RUN_AXES = ("fold", "variant", "seed")  # each value of these is a run of its own


@dataclass(frozen=True, kw_only=True)
class Command:
    """A parsed command line of ``train.py``.

    Attributes:
        runs: The settings of every run; they differ only in fold, variant and seed, nested in this order.
        output: Where the runs go; None = a new folder under ``runs``.
        resume: Continue the runs in ``output`` (None: in the newest folder for this data).
    """

    runs: tuple[TrainingSettings, ...]
    output: Path | None = None
    resume: bool = False


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing and exiting, so all errors reach the user the same way."""

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}; see --help.")


def _parser() -> Parser:
    parser = Parser(
        prog="train.py",
        description="Trains CMSBERT-CLR and its variants. Without arguments: text-only BERT and CMSBERT-CLR on the "
        "embedded corpus. Under torchrun: on several CPUs or GPUs.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any of these settings")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder for the runs (default: a new one in runs/)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="continue the runs of a folder with their own settings; without FOLDER: those of the same command",
    )
    hints = typing.get_type_hints(TrainingSettings)
    for f in dataclasses.fields(TrainingSettings):
        flags, text = [f"--{f.name.replace('_', '-')}"], f.metadata["help"].replace("%", "%%")
        if f.name == "seed":
            flags.append("--seeds")
        if f.name == "variant":
            text += f": {', '.join(VARIANTS)}"
        several = f.name in (*RUN_AXES, *MAPPINGS) or hints[f.name] == tuple[str, ...]
        if f.name in RUN_AXES:
            text += "; several: one run each"
        elif not several:
            text += f" (default: {'none' if f.default is None else f.default})"
        parser.add_argument(
            *flags, dest=f.name, nargs="+" if several else None, metavar=f.metadata["metavar"], help=text
        )
    return parser


def parse_command(arguments: Sequence[str], embedded_config: Path) -> Command:
    """Reads the command line of ``train.py``.

    Values come from the command line, else from the YAML file of ``--config``, else, for the embedded corpus, from
    ``embedded_config``, else from :class:`TrainingSettings`. The same holds for each entry of a mapping, except that a
    checkpoint replaces the ``architecture`` of ``embedded_config``.

    Raises:
        UsageError: A name is unknown, a value has the wrong type or is out of range, or a file cannot be read.
    """
    given = vars(_parser().parse_args(arguments))
    config, output, resume = given.pop("config", None), given.pop("output", None), given.pop("resume", False)
    for name in MAPPINGS:
        if name in given:
            given[name] = assignments(name.replace("_", "-"), given[name])

    values = layered(read_yaml(config) if config else {}, given)
    if isinstance(resume, str):
        return _resumed(Path(resume), output, values)
    if values.get("data", "embedded") == "embedded":
        base = read_yaml(embedded_config)
        if converted("model", values.get("model"), str | None) is not None:
            base.pop("architecture", None)
        values = layered(base, values)
    axes = [_listed(values.pop(axis, TrainingSettings.__dataclass_fields__[axis].default)) for axis in RUN_AXES]
    if math.prod(map(len, axes)) > _RUNS:
        raise UsageError(f"{' x '.join(RUN_AXES)} are {math.prod(map(len, axes)):,} runs; ask for {_RUNS:,} at most.")
    runs = [settings_from({**values, **dict(zip(RUN_AXES, run, strict=True))}) for run in itertools.product(*axes)]
    if any(run in runs[:i] for i, run in enumerate(runs)):
        raise UsageError("The same run is requested twice; name each variant, seed and fold once.")
    return Command(runs=tuple(runs), output=output, resume=resume)


def _resumed(folder: Path, output: Path | None, values: dict[str, Any]) -> Command:
    """The command that continues the runs of a folder."""
    for name in RUN_AXES:
        if name in values:
            raise UsageError(
                f"Leave out --{name}: --resume {folder} continues the runs that are there; for others give --output "
                f"{folder} and --resume without a folder."
            )
    if output is not None and output.resolve() != folder.resolve():
        raise UsageError(f"Leave out --output: --resume {folder} names the folder.")
    root, runs = saved_runs(folder, values)
    return Command(runs=runs, output=root, resume=True)


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) and value else [value]
