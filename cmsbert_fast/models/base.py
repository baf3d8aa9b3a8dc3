"""The interface that every system implements, so that the trainer knows none of them by name.

A system is two functions and, rarely, a state:

1. :meth:`Classifier.rows`: outputs per utterance, independent of the rest of the batch;
2. :meth:`Classifier.losses`: the loss terms, from the rows of a batch: :meth:`Classifier.row_losses` and, where a
   system compares utterances, :meth:`Classifier.global_losses`;
3. :meth:`Classifier.training_state`: training state besides parameters and optimiser.
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from cmsbert_fast.models.encoding import FrameLevel
from cmsbert_fast.models.losses import LossTerm, total_loss
from cmsbert_fast.models.model_card import add_tags, carry_card, tags_of


class TrainingState(Protocol):
    """State kept from step to step. Saved in a run's checkpoint, never with the model.

    Tensors passed in are on the model's device, except in :meth:`load_state_dict`, where they are on the CPU. The state
    keeps its own on the model's device, so that no step waits for it.
    """

    @property
    def starts_with_validation(self) -> bool:
        """Whether a validation pass and :meth:`validated` come before the first step."""

    @property
    def row_names(self) -> Collection[str]:
        """The rows that :meth:`step` reads; only these are gathered from the ranks."""

    def start(self, labels: Tensor) -> None:
        """Called once, before the first step or validation of a new run, not of a resumed one.

        Args:
            labels: Labels of all training examples, (count,); float32 scores or int64 classes.
        """

    def targets(self, indices: Tensor) -> Tensor | None:
        """The ``targets`` of :meth:`Classifier.losses` for some training examples, before their step; None = none.

        Args:
            indices: The examples, int64.
        """

    def step(self, epoch: int, indices: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Called on every rank after each optimiser step.

        Args:
            epoch: 1, 2, ...
            indices: The training examples of the global batch, int64.
            rows: Their :attr:`row_names` from before the step, detached, in the order of ``indices``; float32 where
                the model computed in half precision.
        """

    def validated(self, losses: Mapping[str, float]) -> None:
        """Called on every rank after each pass over the validation set.

        Args:
            losses: Unweighted value of every term of :meth:`Classifier.losses` over the whole set.
        """

    def report(self) -> dict[str, float]:
        """Numbers for the log, by name."""

    def state_dict(self) -> dict[str, Any]:
        """The state to save: tensors, numbers, strings and containers of them."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""


class Classifier(PreTrainedModel):
    """A model with a head, as the trainer sees it. ``forward(labels=...)`` is :meth:`rows` then :meth:`losses`.

    Attributes:
        operators: Those of :data:`cmsbert_fast.ops.dispatch.OPERATORS` whose backend a run checks first, and reports.
        inputs: Names of the inputs that :meth:`rows` reads; a batch of training holds no others.
        frame_level: Which frames of an utterance those inputs hold.
        parameter_groups: The answers of :meth:`parameter_group`.
        has_global_terms: Whether a term of :meth:`losses` compares utterances. If not, each micro-batch runs forward
            once only.
        takes_bert_head: Whether the head of a BertForSequenceClassification checkpoint is loaded; its number of outputs
            must then match.
        fits_graphs: Whether :meth:`rows` and the losses of packed inputs, without targets of a state, launch the same
            for the same shapes: a CUDA graph can hold them.
        own_settings: Training settings that it reads and not every system does.
        output_class: What :meth:`forward` returns; rows and terms that it has no field for are left out.
    """

    accepts_loss_kwargs = False  # else the Hugging Face Trainer does not divide the loss by accumulation steps

    operators: ClassVar[Sequence[str]] = ()
    inputs: Collection[str] = ()
    frame_level: ClassVar[FrameLevel] = FrameLevel.UTTERANCE
    parameter_groups: ClassVar[Sequence[str]] = ("bert", "new")
    has_global_terms: ClassVar[bool] = False
    takes_bert_head: ClassVar[bool] = False
    fits_graphs: ClassVar[bool] = False
    own_settings: ClassVar[Collection[str]] = ()
    output_class: ClassVar[type[ModelOutput]] = SequenceClassifierOutput

    def rows(self, **inputs: Any) -> dict[str, Tensor]:
        """Runs the model on the inputs of ``forward``, padded or packed.

        Returns:
            One row per utterance, each (B, ...): "logits", (B, num_labels), and whatever :meth:`losses` reads. A row
            does not depend on the other utterances.
        """
        raise NotImplementedError

    def predicted_rows(self, **inputs: Any) -> dict[str, Tensor]:
        """:meth:`rows`, where a system can do without some that only :meth:`losses` reads: for prediction."""
        return self.rows(**inputs)

    def losses(
        self,
        rows: Mapping[str, Tensor],
        labels: Tensor,
        targets: Tensor | None = None,
        group: "dist.ProcessGroup | None" = None,
    ) -> dict[str, LossTerm]:
        """The loss terms by name, always including "task".

        Args:
            rows: From :meth:`rows`, for one batch or several concatenated.
            labels: (B,); scores for one output, class indices for several.
            targets: From :meth:`TrainingState.targets` for these examples.
            group: The ranks that share the global batch. All of them must call.
        """
        return {**self.row_losses(rows, labels, targets), **self.global_losses(rows, labels, group)}

    def row_losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, targets: Tensor | None = None
    ) -> dict[str, LossTerm]:
        """The terms that are means over the rows, "task" among them. Arguments as in :meth:`losses`."""
        raise NotImplementedError

    def global_losses(
        self, rows: Mapping[str, Tensor], labels: Tensor, group: "dist.ProcessGroup | None" = None
    ) -> dict[str, LossTerm]:
        """The terms of the global batch, ``per_row=False``. Arguments as in :meth:`losses`.

        They must compute in float32 whatever autocast says: it is on for an undivided batch and off for micro-batches.
        """
        return {}

    def forward(self, *, labels: Tensor | None = None, return_dict: bool | None = None, **inputs: Any) -> Any:
        """Rows, and with ``labels`` losses, in one call.

        Args:
            labels: As in :meth:`losses`.
            return_dict: False = a tuple.
            **inputs: Those of :meth:`rows`.

        Returns:
            What :meth:`output` makes of them.
        """
        rows = self.predicted_rows(**inputs) if labels is None else self.rows(**inputs)
        return self.output(rows, labels, return_dict)

    def output(
        self, rows: Mapping[str, Tensor], labels: Tensor | None, return_dict: bool | None = None, **more: Any
    ) -> Any:
        """Rows, with ``labels`` "loss" and each term as "NAME_loss", and ``more``, as :attr:`output_class`."""
        if labels is not None and labels.dim() == 2 and labels.shape == rows["logits"].shape and labels.shape[1] == 1:
            labels = labels[:, 0]  # a score an utterance, as Hugging Face takes it too
        terms = {} if labels is None else self.losses(rows, labels, group=self.batch_group())
        values = {**rows, **{f"{name}_loss": term.value for name, term in terms.items()}, **more}
        known = self.output_class.__dataclass_fields__  # type: ignore[attr-defined]  # ModelOutputs are dataclasses
        output = self.output_class(
            loss=total_loss(terms) if terms else None, **{name: x for name, x in values.items() if name in known}
        )
        return output.to_tuple() if return_dict is False else output

    def save_pretrained(self, save_directory: "str | os.PathLike", *arguments: Any, **options: Any) -> None:
        """As Hugging Face's; the card of a trained model goes with its weights."""
        super().save_pretrained(save_directory, *arguments, **options)
        carry_card(self.config.name_or_path, save_directory)

    def _upload_modified_files(self, working_dir: Any, *arguments: Any, **options: Any) -> Any:
        """Hugging Face's last step of ``push_to_hub``, which has just written a card that says nothing of the model."""
        tags = tags_of(working_dir)
        if carry_card(self.config.name_or_path, working_dir):
            add_tags(working_dir, tags)
        return super()._upload_modified_files(working_dir, *arguments, **options)

    def prepare(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Called once on every rank before a new run's first step, for buffers that hold statistics of the data.

        Args:
            batches: The whole training split, in order: arguments of :meth:`rows`, read one batch at a time.
        """

    def from_bert(self, name: str) -> bool:
        """Whether BertModel has a parameter: then it has BERT's weight decay, and no checkpoint may lack it."""
        return name.startswith("bert.")

    def parameter_group(self, name: str) -> str:
        """The group of a parameter, whose learning rate and weight decay can be set: "bert" or "new"."""
        return "bert" if self.from_bert(name) else "new"

    def training_state(self, count: int, **options: Any) -> TrainingState | None:
        """The state of a new run, or None if this system has none.

        Args:
            count: Number of training examples.
            **options: Training settings; the state ignores those it does not use.
        """
        return None

    def batch_group(self) -> "dist.ProcessGroup | None":
        """The ranks that share a batch in ``forward(labels=...)``: all in training, none in evaluation."""
        distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return dist.group.WORLD if self.training and distributed else None
