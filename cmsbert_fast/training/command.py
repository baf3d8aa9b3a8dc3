"""The command line of ``train.py``: options, a YAML file, and the requested runs."""

import argparse
import dataclasses
import itertools
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmsbert_fast import commandline
from cmsbert_fast.commandline import examples, shown
from cmsbert_fast.data.request import DataOptions
from cmsbert_fast.data.task import TASKS
from cmsbert_fast.models.registry import VARIANTS
from cmsbert_fast.ops.attention.types import ACTIVATIONS
from cmsbert_fast.ops.dispatch import BACKENDS
from cmsbert_fast.training import presets
from cmsbert_fast.training.conversion import MAPPINGS, assignments, converted, layered, read_yaml
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.saved_runs import saved_runs
from cmsbert_fast.training.settings import DEVICES, PRECISIONS, SCHEDULES, TRACKERS, TrainingSettings, settings_from

_RUNS = 1000  # of a command
RUN_AXES = ("fold", "variant", "seed")  # each value of these is a run of its own


@dataclass(frozen=True, kw_only=True)
class Command:
    """A parsed command line of ``train.py``.

    Attributes:
        runs: The settings of every run; they differ only in fold, variant and seed, nested in this order.
        output: Where the runs go; None = a new folder under ``runs``.
        resume: Continue the runs in ``output`` (None: in the newest folder for this data).
        quiet: Print only warnings, errors and the table of results.
    """

    runs: tuple[TrainingSettings, ...]
    output: Path | None = None
    resume: bool = False
    quiet: bool = False


# The settings as --help lists them; those of the data come first.
GROUPS = {
    "model": (
        "model variant architecture max_length standardise repeat_frames word_vectors gate_activation projection_size "
        "text loss pooling frozen_layers"
    ),
    "training": (
        "seed epochs batch_size accumulation learning_rate learning_rates schedule warmup weight_decay "
        "bert_weight_decay weight_decays max_grad_norm max_grad_value early_stopping"
    ),
    "loss of CMSBERT-CLR": "temperature smoothing threshold momentum",
    "machine and checkpoints": (
        "device threads precision backend cuda_graphs checkpoint_every_epochs checkpoint_every_steps"
    ),
    "log": "track",
}
_SUGGESTED: dict[str, Sequence[str]] = {
    "variant": tuple(VARIANTS),
    "schedule": SCHEDULES,
    "task": TASKS,
    "device": DEVICES,
    "precision": PRECISIONS,
    "backend": BACKENDS,
    "gate_activation": ACTIVATIONS,
    "track": (*TRACKERS, "none"),
}
_PLACEHOLDERS = {int: "N", float: "X", bool: "BOOL", str: "NAME"}


class Parser(commandline.Parser):
    """The parser of the commands that train, test or use a model."""

    failure = UsageError


def command_parser(prog: str = "train.py", embedded: Mapping[str, Any] | None = None) -> Parser:
    """The parser; ``embedded`` are the settings of the embedded corpus, which --help tells too."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} [OPTION ...]",
        description="Trains CMSBERT-CLR and its variants. Without arguments: text-only BERT and CMSBERT-CLR on the "
        "embedded corpus. Under torchrun: on several CPUs or GPUs.",
        epilog=examples(
            "%(prog)s",
            "%(prog)s --config mosi --data DIR --seeds 0 1 2",
            "%(prog)s --data DIR --model CHECKPOINT --variant cmsbert-clr --epochs 15 --output runs/mine",
            "%(prog)s --config misa-mosi --data DIR --device cuda --precision bf16",
            "%(prog)s --resume runs/mine",
        ),
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with any of these settings, or the name of published ones: " + ", ".join(presets.presets()),
    )
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
    parser.add_argument(
        "--quiet", action="store_true", help="print only warnings, errors and the table of test results"
    )
    fields = {f.name: f for f in dataclasses.fields(TrainingSettings)}
    groups = {"data": [f.name for f in dataclasses.fields(DataOptions)]}
    groups |= {title: names.split() for title, names in GROUPS.items()}
    for title, names in groups.items():
        group = parser.add_argument_group(title)
        for name in names:
            _add_setting(group, fields[name], embedded or {})
    return parser


def _add_setting(group: Any, f: "dataclasses.Field[Any]", embedded: Mapping[str, Any]) -> None:
    """Adds the option of a setting, with what it does and its default."""
    hint = typing.get_type_hints(TrainingSettings)[f.name]
    flags, text = [f"--{f.name.replace('_', '-')}"], f.metadata["help"].replace("%", "%%")
    if f.name == "seed":
        flags.append("--seeds")
    if f.name == "variant":
        text += f": {', '.join(VARIANTS)}"
    several = f.name in (*RUN_AXES, *MAPPINGS) or hint == tuple[str, ...]
    if f.name in RUN_AXES:
        text += "; several: one run each"
    if f.default not in (dataclasses.MISSING, ()):
        default = f"default: {shown(f.default)}"
        if f.name in embedded and embedded[f.name] != f.default:
            default += f"; for the embedded corpus {shown(embedded[f.name])}"
        text += f" ({default})"
    kind = next((k for k in typing.get_args(hint) or (hint,) if k in _PLACEHOLDERS), str)
    metavar = f.metadata["metavar"] if f.metadata["metavar"] != "VALUE" else _PLACEHOLDERS[kind]
    action = group.add_argument(*flags, dest=f.name, nargs="+" if several else None, metavar=metavar, help=text)
    action.suggested = _SUGGESTED.get(f.name)  # for completion; what is allowed, the settings say


def parse_command(
    arguments: Sequence[str], embedded_config: Path = presets.EMBEDDED, prog: str = "train.py"
) -> Command:
    """Reads the command line of ``train.py``.

    Values come from the command line, else from the YAML file of ``--config``, else, for the embedded corpus, from
    ``embedded_config``, else from :class:`TrainingSettings`. The same holds for each entry of a mapping, except that a
    checkpoint replaces the ``architecture`` of ``embedded_config``.

    Raises:
        UsageError: A name is unknown, a value has the wrong type or is out of range, or a file cannot be read.
    """
    asked = bool({"-h", "--help"} & set(arguments)) and Path(embedded_config).is_file()
    given = vars(command_parser(prog, read_yaml(embedded_config) if asked else {}).parse_args(arguments))
    config, output, resume = given.pop("config", None), given.pop("output", None), given.pop("resume", False)
    quiet = given.pop("quiet", False)
    for name in MAPPINGS:
        if name in given:
            given[name] = assignments(name.replace("_", "-"), given[name])

    values = layered(read_yaml(presets.find(config)) if config else {}, given)
    if isinstance(resume, str):
        return dataclasses.replace(_resumed(Path(resume), output, values), quiet=quiet)
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
    return Command(runs=tuple(runs), output=output, resume=resume, quiet=quiet)


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
