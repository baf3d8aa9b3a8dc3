"""Hugging Face's Trainer with the objective of ``train.py``: nu follows Eq. 21 and 22."""

from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cmsbert_fast.training import evaluate
from cmsbert_fast.training.evaluate import Predictions
from cmsbert_fast.training.precision import upcast


class ContrastiveWeightCallback(TrainerCallback):
    """Updates nu, the weight of the contrastive loss of CMSBERT-CLR, from passes over the Trainer's ``eval_dataset``.

    Before training nu = l_task / l_con (Eq. 22), after every epoch nu <- alpha nu + (1 - alpha) l_task / l_con (Eq.
    21), as in ``train.py``. The contrastive loss is the mean over consecutive batches of the global training batch's
    size.
    Every process makes the whole pass, so nothing depends on how they share it. nu is logged, and saved with the model;
    a resumed training continues with it.

    ::

        trainer = Trainer(model, arguments, train_dataset=..., eval_dataset=..., data_collator=...)
        trainer.add_callback(ContrastiveWeightCallback(trainer))

    With gradient accumulation Hugging Face's Trainer contrasts each micro-batch by itself, where ``train.py`` contrasts
    the global batch.

    Args:
        trainer: Has a CMSBertCLRForSequenceClassification and one ``eval_dataset``.
        momentum: alpha; None = no average, nu stays 1.

    Raises:
        ValueError: The trainer has no single ``eval_dataset``.
    """

    def __init__(self, trainer: Any, momentum: float | None = 0.9):
        if momentum is not None and (trainer.eval_dataset is None or isinstance(trainer.eval_dataset, dict)):
            raise ValueError("Give the Trainer one eval_dataset: nu follows the losses on it (Eq. 21, 22).")
        self.trainer = trainer
        self.weight = trainer.model.training_state(0, momentum=momentum)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.label_smoothing_factor:
            raise ValueError(
                "Leave out label_smoothing_factor: with it the Trainer makes a loss of its own from the logits, and "
                "there is no contrastive loss. The configuration's smoothing is that of Eq. 23."
            )
        if state.global_step:  # resumed: nu came with the weights
            self.weight.load_state_dict({"initial": False})
            return
        self.weight.start(torch.empty(0))
        if self.weight.starts_with_validation:
            self._validate(args)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.weight.momentum is not None:
            self._validate(args)

    def _validate(self, args: TrainingArguments) -> None:
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.weight.validated(evaluate.losses(self.trainer.model, self._predictions(args), batch_size))
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(self.weight.nu, src=0)  # rounding may differ between machines
        self.trainer.log(self.weight.report())

    @torch.no_grad()
    def _predictions(self, args: TrainingArguments) -> Predictions:
        """The rows of the whole validation set, on the CPU."""
        trainer, model = self.trainer, self.trainer.model
        batches = DataLoader(
            trainer.eval_dataset, batch_size=args.per_device_eval_batch_size, collate_fn=trainer.data_collator
        )
        rows: dict[str, list[torch.Tensor]] = {}
        labels = []
        was_training = model.training
        model.eval()
        for batch in batches:
            labels.append(batch["labels"].cpu())
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            inputs = {n: v.to(args.device) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
            with trainer.compute_loss_context_manager():
                found = model.rows(**inputs)
            for name, values in found.items():
                rows.setdefault(name, []).append(upcast(values).cpu())
        model.train(was_training)
        known = torch.cat(labels)
        return Predictions([""] * len(known), {name: torch.cat(parts) for name, parts in rows.items()}, known)
