"""What a training run can be told: one dataclass, read from a YAML file and from the command line, in this order."""

import argparse
import dataclasses
import difflib
import itertools
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cmsbert_fast.ops.dispatch import requested_backend


class UsageError(Exception):
    """The run cannot start as asked. The message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the paper's tables.

    Attributes:
        multimodal: Whether frames are read at all.
        cms_layers: The layers with CMS; None for all of them.
        contrastive: Whether the model is CMSBERT-CLR (subnetworks, fusion, contrastive loss) or CMSBERT alone.
        ema: Whether the EMA parameter of Eq. 20-22 scales the contrastive loss.
        smoothing: Whether contrastive targets are smoothed (Eq. 23).
    """

    multimodal: bool = True
    cms_layers: tuple[int, ...] | None = None
    contrastive: bool = False
    ema: bool = True
    smoothing: bool = True


VARIANTS: Mapping[str, Variant] = {
    "bert": Variant(multimodal=False),
    "cmsbert/1": Variant(cms_layers=(0,)),
    "cmsbert": Variant(),
    "cmsbert-clr": Variant(contrastive=True),
    "cmsbert-clr-no-ema": Variant(contrastive=True, ema=False),
    "cmsbert-clr-no-ls": Variant(contrastive=True, smoothing=False),
    "cmsbert-clr-no-ema-no-ls": Variant(contrastive=True, ema=False, smoothing=False),
}


# What --architecture may change; the other fields of BertConfig follow from the data, the tokenizer or the variant.
ARCHITECTURE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
)
RUN_AXES = ("fold", "variant", "seed")  # several values of these are several runs


def _setting(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of one run; the defaults are the paper's (section IV.C). ``metadata["help"]`` of each field explains it.

    Raises:
        UsageError: A value lies outside its range.
    """

    data: str = _setting("embedded", "what to train on: a file or folder in a known format, or 'embedded'")
    visual: tuple[str, ...] = _setting(
        (), "visual streams of the data; none given: recognised by name; 'none': left out"
    )
    acoustic: tuple[str, ...] = _setting((), "acoustic streams of the data; likewise")
    words: str | None = _setting(None, "stream of words with times; with it frames are averaged per word")
    label: str | None = _setting(None, "column or stream of the labels, where there are several")
    folds: str | None = _setting(None, "JSON file of ids by split, instead of the data's own splits")
    fold: int | None = _setting(None, "which fold, counted from 1, where the file holds several")
    model: str | None = _setting(
        None, "a BERT or CMSBERT checkpoint (folder or Hugging Face name); none: a small model from scratch"
    )
    variant: str = _setting("cmsbert-clr", "which model to train")
    seed: int = _setting(0, "seed of weights, data order and dropout")

    epochs: int = _setting(500, "passes over the training set")
    batch_size: int = _setting(128, "examples in a global batch, whatever the number of ranks")
    accumulation: int = _setting(1, "parts in which each rank computes its share of a batch, to save memory")
    learning_rate: float = _setting(1e-4, "highest learning rate of AdamW")
    warmup: float = _setting(0.1, "part of all steps in which the learning rate rises; then it falls linearly to 0")
    weight_decay: float = _setting(0.1, "weight decay of the new modules' weights")
    bert_weight_decay: float = _setting(1e-3, "weight decay of BERT's weights; biases and LayerNorm have none")
    max_grad_norm: float | None = _setting(None, "limit for the norm of all gradients together; none: no clipping")
    early_stopping: int | None = _setting(None, "stop after so many epochs without a better validation; none: never")

    temperature: float = _setting(0.1, "tau of Eq. 17-18")
    smoothing: float = _setting(0.9, "beta of Eq. 23, the target of the true pair")
    threshold: float = _setting(0.1, "delta of Eq. 23, how far labels of similar examples may differ")
    momentum: float = _setting(0.9, "alpha of Eq. 21")
    gate_activation: str | None = _setting(
        None, "activation of the gates of Eq. 1-2: relu, sigmoid or tanh; none: the checkpoint's own, relu for BERT"
    )
    projection_size: int | None = _setting(None, "size d of the common space; none: the encoder's hidden size")
    max_length: int = _setting(50, "most word pieces of an utterance; longer ones are cut at a word")
    standardise: bool = _setting(
        True, "true or false: whether frames are standardised per feature; false for data that are normalised already"
    )
    architecture: dict[str, Any] = dataclasses.field(
        default_factory=dict, metadata={"help": "fields of BertConfig to change, such as hidden_dropout_prob=0.2"}
    )

    device: str = _setting("auto", "auto, cpu or cuda")
    threads: int | None = _setting(
        None, "CPU threads of a process; none: PyTorch's choice, which is OMP_NUM_THREADS or every core"
    )
    precision: str = _setting("fp32", "fp32, or bf16 (autocast; weights stay fp32)")
    backend: str = _setting("auto", "implementation of CMS attention and contrastive loss: auto, torch, triton, ...")
    checkpoint_every_epochs: int = _setting(1, "epochs between two checkpoints")
    checkpoint_every_steps: int | None = _setting(None, "steps between two checkpoints, besides those after epochs")

    def __post_init__(self) -> None:
        _check_choice("variant", self.variant, VARIANTS)
        if self.gate_activation is not None:
            _check_choice("gate_activation", self.gate_activation, ("relu", "sigmoid", "tanh"))
        for name in self.architecture:
            if name not in ARCHITECTURE:
                raise UsageError(f"architecture names {name!r}; it may change {', '.join(ARCHITECTURE)}.")
        _check_choice("device", self.device, ("auto", "cpu", "cuda"))
        _check_choice("precision", self.precision, ("fp32", "bf16"))
        try:
            requested_backend(self.backend)
        except ValueError as error:
            raise UsageError(str(error)) from None
        counts = ("epochs", "accumulation", "early_stopping", "projection_size", "fold")
        for name in (*counts, "checkpoint_every_epochs", "checkpoint_every_steps"):
            self._check(name, lambda v: v >= 1, "at least 1")
        self._check("threads", lambda v: 1 <= v <= 4096, "between 1 and 4096")
        self._check("batch_size", lambda v: v >= 2, "at least 2")
        self._check("max_length", lambda v: v >= 3, "at least 3 ([CLS], a piece, [SEP])")
        self._check("seed", lambda v: 0 <= v < 2**32, "between 0 and 4294967295")
        for name in ("learning_rate", "temperature", "max_grad_norm"):
            self._check(name, lambda v: v > 0, "greater than 0")
        for name in ("weight_decay", "bert_weight_decay", "threshold"):
            self._check(name, lambda v: v >= 0, "at least 0")
        for name in ("warmup", "momentum"):
            self._check(name, lambda v: 0 <= v <= 1, "between 0 and 1")
        self._check("smoothing", lambda v: 0 < v <= 1, "greater than 0 and at most 1")

    @property
    def embedded(self) -> bool:
        """Whether the data are the embedded corpus; a folder of that name is given as ``./embedded``."""
        return self.data == "embedded"

    def _check(self, name: str, valid: Callable[[Any], bool], rule: str) -> None:
        value = getattr(self, name)
        if value is not None and not (math.isfinite(value) and valid(value)):
            raise UsageError(f"{name} is {value!r} but must be {rule}.")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What ``train.py`` was asked to do.

    Attributes:
        runs: The settings of every run; they differ in fold, variant and seed only, and come in this order.
        output: Where the runs go; None for a new folder under ``runs``.
        resume: Continue the runs found in ``output`` (where that is None: in the newest folder for this data).
    """

    runs: tuple[TrainingSettings, ...]
    output: Path | None = None
    resume: bool = False


class Parser(argparse.ArgumentParser):
    """Reports an error as an exception, so that it takes the same way to the user as all others."""

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}; see --help.")


def parse_command(arguments: Sequence[str], embedded_config: Path) -> Command:
    """Reads the command line of ``train.py``.

    Values come from the command line, else from the YAML file of ``--config``, else from ``embedded_config`` where the
    embedded corpus is trained on, else from :class:`TrainingSettings`; so too each field of ``architecture``, but for
    that of ``embedded_config`` where a checkpoint brings its own.

    Raises:
        UsageError: An unknown name, a value of the wrong type or outside its range, a file that cannot be read.
    """
    parser = Parser(
        prog="train.py",
        description="Trains CMSBERT-CLR and its relatives. Without arguments: text-only BERT against CMSBERT-CLR on "
        "the embedded corpus. Under torchrun: on several CPUs or GPUs.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any of the settings below")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder for the runs (default: a new one in runs/)"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints in the output folder")
    hints = typing.get_type_hints(TrainingSettings)
    for f in dataclasses.fields(TrainingSettings):
        flags, text = [f"--{f.name.replace('_', '-')}"], f.metadata["help"].replace("%", "%%")
        if f.name == "seed":
            flags.append("--seeds")
        if f.name == "variant":
            text += f": {', '.join(VARIANTS)}"
        if f.name in RUN_AXES:
            parser.add_argument(
                *flags, dest=f.name, nargs="+", metavar="VALUE", help=f"{text}; several: a run for each"
            )
        elif f.name == "architecture":
            parser.add_argument(*flags, nargs="+", metavar="FIELD=VALUE", help=text)
        elif hints[f.name] == tuple[str, ...]:
            parser.add_argument(*flags, nargs="+", metavar="NAME", help=text)
        else:
            default = "none" if f.default is None else f.default
            parser.add_argument(*flags, metavar="VALUE", help=f"{text} (default: {default})")
    given = vars(parser.parse_args(arguments))
    config, output, resume = given.pop("config", None), given.pop("output", None), given.pop("resume", False)
    if "architecture" in given:
        given["architecture"] = _assignments("architecture", given["architecture"])

    values = _layered(read_yaml(config) if config else {}, given)
    if values.get("data", "embedded") == "embedded":
        base = read_yaml(embedded_config)
        if _converted("model", values.get("model"), str | None) is not None:
            base.pop("architecture", None)
        values = _layered(base, values)
    axes = [_listed(values.pop(axis, TrainingSettings.__dataclass_fields__[axis].default)) for axis in RUN_AXES]
    runs = [settings_from({**values, **dict(zip(RUN_AXES, run, strict=True))}) for run in itertools.product(*axes)]
    if any(run in runs[:i] for i, run in enumerate(runs)):
        raise UsageError("The same run is asked for twice; name each variant, seed and fold once.")
    return Command(runs=tuple(runs), output=output, resume=resume)


def _layered(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """The values of both, those of ``upper`` first; of ``architecture`` each field by itself."""
    values = {**lower, **upper}
    layers = [layer["architecture"] for layer in (lower, upper) if "architecture" in layer]
    if layers:
        fields = [_converted("architecture", layer, dict[str, Any]) for layer in layers]
        values["architecture"] = {name: value for layer in fields for name, value in layer.items()}
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of settings.

    Raises:
        UsageError: The file does not exist, or is not a YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: a null byte in its name
        reason = "it is not text" if isinstance(error, UnicodeDecodeError) else os_reason(error)
        name = str(path) if str(path).isprintable() else repr(str(path))
        raise UsageError(
            f"The config file {name:.200} cannot be read ({reason}); give an existing YAML file."
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path} is no valid YAML{where}; write 'name: value' lines.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no settings; write 'name: value' lines.")
    return values


def os_reason(error: Exception) -> str:
    """Why the system refused a path, without the path."""
    return getattr(error, "strerror", None) or str(error)


def settings_from(values: Mapping[str, Any]) -> TrainingSettings:
    """Settings from plain values, as YAML and the command line give them (numbers may be text).

    Raises:
        UsageError: An unknown name, or a value of the wrong type or outside its range.
    """
    hints = typing.get_type_hints(TrainingSettings)
    for name in values:
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            advice = f"did you mean {near[0]!r}?" if near else "see --help."
            raise UsageError(f"There is no setting {name!r}; {advice}")
    return TrainingSettings(**{name: _converted(name, value, hints[name]) for name, value in values.items()})


def _converted(name: str, value: Any, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in kinds and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    kind = kinds[0]
    if kind == dict[str, Any]:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return dict(value)
        raise UsageError(f"{name} must be a mapping of field names to values.")
    if kind == tuple[str, ...]:
        names = [value] if isinstance(value, str) else value
        if isinstance(names, (list, tuple)) and all(isinstance(item, str) for item in names):
            return tuple(names)
        raise UsageError(f"{name} must be a name or a list of names.")
    if kind is bool:
        if str(value).lower() not in ("true", "false"):
            raise UsageError(f"{name} is {value!r} but must be true or false.")
        return str(value).lower() == "true"
    word = {int: "a whole number", float: "a number", str: "text"}[kind]
    if isinstance(value, (dict, list, bool)) or value is None:
        raise UsageError(f"{name} is {value!r} but must be {word}.")
    try:
        # YAML 1.1 reads 1e-4 as text, and a float must not be cut to an int.
        return kind(value) if kind is not int else int(str(value))
    except ValueError:
        raise UsageError(f"{name} is {value!r} but must be {word}.") from None


def _assignments(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--{name} takes FIELD=VALUE, not {pair!r}.")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(
                f"--{name} takes FIELD=VALUE, and {text!r} is no value; write a number or a name."
            ) from None
    return values


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) and value else [value]


def _check_choice(name: str, value: Any, choices: Mapping[str, Any] | Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name} is {value!r} but must be one of {', '.join(choices)}.")
