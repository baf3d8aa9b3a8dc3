"""The settings of a training run: one dataclass, validated on creation."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmsbert_fast.data.request import DataOptions, option
from cmsbert_fast.data.task import TASKS
from cmsbert_fast.models.registry import VARIANTS
from cmsbert_fast.ops.attention.types import ACTIVATIONS
from cmsbert_fast.ops.dispatch import requested_backend
from cmsbert_fast.training.conversion import converted
from cmsbert_fast.training.errors import UsageError

# Settings that some systems have as fields of their configuration.
FIELDS = ("projection_size", "gate_activation", "text", "loss", "pooling", "frozen_layers")
SCHEDULES = ("linear", "constant")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "bf16")
TRACKERS = ("tensorboard", "wandb", "mlflow")


def _setting(default: Any, help: str) -> Any:
    return option(default, help, "VALUE")


def _pairs(key: str, help: str) -> dict[str, str]:
    return {"help": help, "metavar": f"{key}=VALUE"}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(DataOptions):
    """Settings of one run; the defaults are the paper's (section IV.C). ``metadata["help"]`` of each field explains it.

    Raises:
        UsageError: A value is out of range.
    """

    model: str | None = _setting(
        None, "BERT or CMSBERT checkpoint (folder or Hugging Face name); none: a small model from scratch"
    )
    variant: str = _setting("cmsbert-clr", "model to train")
    seed: int = _setting(0, "seed for weights, data order and dropout")

    epochs: int = _setting(500, "passes over the training set")
    batch_size: int = _setting(128, "examples per global batch, over all ranks")
    accumulation: int = _setting(1, "micro-batches per rank and step, to save memory")
    learning_rate: float = _setting(1e-4, "peak learning rate of AdamW")
    learning_rates: dict[str, float] = dataclasses.field(
        default_factory=dict, metadata=_pairs("GROUP", "peak learning rates of some parameter groups, as text=5e-5")
    )
    schedule: str = _setting("linear", "learning rate after warm-up: linear (decay to 0) or constant")
    warmup: float = _setting(0.1, "fraction of all steps for linear warm-up")
    weight_decay: float = _setting(0.1, "weight decay of new modules")
    bert_weight_decay: float = _setting(1e-3, "weight decay of BERT; biases and LayerNorm have none")
    weight_decays: dict[str, float] = dataclasses.field(
        default_factory=dict, metadata=_pairs("GROUP", "weight decays of some parameter groups, as visual=0")
    )
    max_grad_norm: float | None = _setting(None, "clip the global gradient norm to this; none: no clipping")
    max_grad_value: float | None = _setting(None, "clip every gradient entry to plus or minus this; none: no clipping")
    early_stopping: int | None = _setting(
        None, "stop after this many epochs without improvement on validation; none: never"
    )

    temperature: float = _setting(0.1, "tau of Eq. 17-18")
    smoothing: float = _setting(0.9, "beta of Eq. 23, target of the true pair")
    threshold: float = _setting(0.1, "delta of Eq. 23, largest label difference between similar examples")
    momentum: float = _setting(0.9, "alpha of Eq. 21")
    gate_activation: str | None = _setting(
        None, "activation of the gates (Eq. 1-2): relu, sigmoid or tanh; none: the checkpoint's, relu for BERT"
    )
    projection_size: int | None = _setting(None, "size d of the common space; none: hidden size of the encoder")
    repeat_frames: bool = _setting(
        False, "true or false: for data with one frame an utterance, repeat it for every word (word-level variants)"
    )
    word_vectors: str | None = _setting(
        None, "text file of word vectors (GloVe), or 'bert': means of the checkpoint's embeddings of word pieces"
    )
    text: str | None = _setting(
        None, "text of a baseline: bert (fine-tuned), bert-frozen or vectors; none: the system's own"
    )
    loss: str | None = _setting(None, "task loss of a baseline for scores: mse or l1; none: the system's own")
    pooling: str | None = _setting(None, "how a baseline pools BERT's output, if it has a choice; none: its own")
    frozen_layers: int | None = _setting(None, "first layers of a baseline's BERT that are not trained; none: its own")
    max_length: int = _setting(50, "maximum word pieces per utterance; longer ones are cut at a word boundary")
    standardise: bool = _setting(
        True, "true or false: standardise frames per feature; false for data that are already normalised"
    )
    architecture: dict[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata=_pairs("FIELD", "fields of the model's configuration to change, such as hidden_dropout_prob=0.2"),
    )

    device: str = _setting("auto", "auto, cpu or cuda")
    threads: int | None = _setting(
        None, "CPU threads per process; none: PyTorch's default, OMP_NUM_THREADS or all cores"
    )
    precision: str = _setting("fp32", "fp32, or bf16 (autocast; weights stay fp32)")
    backend: str = _setting(
        "auto", "implementation of attention, loss, linear layers, LSTMs and fused layers: auto, torch, triton, ..."
    )
    cuda_graphs: bool = _setting(
        False, "true or false: replay each step on a GPU as one CUDA graph, captured for each size of batches"
    )
    checkpoint_every_epochs: int = _setting(1, "epochs between two checkpoints")
    checkpoint_every_steps: int | None = _setting(
        None, "steps between two checkpoints, in addition to those after epochs"
    )
    track: tuple[str, ...] = _setting(
        (), f"where the numbers of log.jsonl also go: {', '.join(TRACKERS)}, or none (default: none)"
    )

    def __post_init__(self) -> None:
        _check_choice("variant", self.variant, VARIANTS)
        if self.gate_activation is not None:
            _check_choice("gate_activation", self.gate_activation, ACTIVATIONS)
        self._check_fields()
        self._check_groups()
        _check_choice("schedule", self.schedule, SCHEDULES)
        if self.task is not None:
            _check_choice("task", self.task, TASKS)
        _check_choice("device", self.device, DEVICES)
        _check_choice("precision", self.precision, PRECISIONS)
        for name in self.track if self.track != ("none",) else ():
            _check_choice("track", name, TRACKERS)
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
        self._check("frozen_layers", lambda v: v >= 0, "at least 0")
        for name in ("learning_rate", "temperature", "max_grad_norm", "max_grad_value"):
            self._check(name, lambda v: v > 0, "greater than 0")
        for name in ("weight_decay", "bert_weight_decay", "threshold"):
            self._check(name, lambda v: v >= 0, "at least 0")
        for name in ("warmup", "momentum"):
            self._check(name, lambda v: 0 <= v <= 1, "between 0 and 1")
        self._check("smoothing", lambda v: 0 < v <= 1, "greater than 0 and at most 1")

        if self.max_grad_norm is not None and self.max_grad_value is not None:
            raise UsageError("max_grad_norm and max_grad_value both clip the gradient; give one of them.")

    def _check_fields(self) -> None:
        """Finds fields that the variant's configuration does not have, or that are not free to choose."""
        asked = [name for name in FIELDS if getattr(self, name) is not None]
        if not asked and not self.architecture:
            return  # the class need not be imported
        config_class = VARIANTS[self.variant].model_class.config_class
        for name in asked:
            if not hasattr(config_class, name):
                raise UsageError(f"{name} is no setting of {self.variant}; leave it out, or train another variant.")
        # Which fields do not follow from data, tokenizer or variant, their class says.
        may_change = getattr(config_class, "architecture_fields", ())
        for name in self.architecture:
            if name not in may_change:
                raise UsageError(f"architecture names {name!r}; it may change {', '.join(may_change) or 'nothing'}.")

    def _check_groups(self) -> None:
        for setting in ("learning_rates", "weight_decays"):
            for group, value in getattr(self, setting).items():
                known = VARIANTS[self.variant].model_class.parameter_groups
                if group not in known:
                    raise UsageError(
                        f"{setting} names {group!r}; the parameter groups of {self.variant} are {', '.join(known)}."
                    )
                if not (math.isfinite(value) and value >= 0):
                    raise UsageError(f"{setting} has {group}={value!r} but it must be at least 0.")

    def _check(self, name: str, valid: Callable[[Any], bool], rule: str) -> None:
        value = getattr(self, name)
        if value is not None and not (math.isfinite(value) and valid(value)):
            raise UsageError(f"{name} is {value!r} but must be {rule}.")


def settings_from(values: Mapping[str, Any]) -> TrainingSettings:
    """Settings from plain values of YAML or the command line (numbers may be text).

    Raises:
        UsageError: A name is unknown, or a value has the wrong type or is out of range.
    """
    hints = typing.get_type_hints(TrainingSettings)
    for name in values:
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            advice = f"did you mean {near[0]!r}?" if near else "see --help."
            raise UsageError(f"There is no setting {name!r}; {advice}")
    return TrainingSettings(**{name: converted(name, value, hints[name]) for name, value in values.items()})


def _check_choice(name: str, value: Any, choices: Mapping[str, Any] | Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name} is {value!r} but must be one of {', '.join(choices)}.")
