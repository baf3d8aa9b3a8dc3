"""One run: :meth:`Trainer.begin` or :meth:`Trainer.restore`, then :meth:`Trainer.run`.

Runs are repeatable: the order of the data depends only on seed and epoch, dropout only on seed and rank; gradients are
added in a fixed order (:class:`~cmsbert_fast.training.distributed.Gradients`); a checkpoint holds the whole state.
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmsbert_fast.data.task import labels_of
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.progress import Progress as Bar
from cmsbert_fast.training import (
    best,
    checkpoint,
    distributed,
    evaluate,
    figures,
    model_card,
    optimiser,
    report,
    strict_json,
    text_features,
)
from cmsbert_fast.training.backends import chosen_backend
from cmsbert_fast.training.batches import Batches, epoch_batches, place
from cmsbert_fast.training.build import Loaded, build, state_options
from cmsbert_fast.training.distributed import Gradients, Ranks
from cmsbert_fast.training.errors import Interrupted, NotFinite, UsageError
from cmsbert_fast.training.evaluate import Predictions
from cmsbert_fast.training.graphs import GraphedUpdate
from cmsbert_fast.training.log import RunLog
from cmsbert_fast.training.optimiser import parameter_groups, schedule
from cmsbert_fast.training.precision import upcast
from cmsbert_fast.training.preflight import Data
from cmsbert_fast.training.pretrained import reason
from cmsbert_fast.training.record import StepRecord
from cmsbert_fast.training.settings import TrainingSettings
from cmsbert_fast.training.signals import StopRequest
from cmsbert_fast.training.tested import Tested, load_and_test, load_best
from cmsbert_fast.training.update import Update


@dataclass(slots=True)
class Progress:
    """Progress of a run. Part of the checkpoint."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches completed in the current epoch
    step: int = 0
    best: float | None = None  # lowest validation score so far, and its epoch (1, 2, ...)
    best_epoch: int = 0
    stalled: int = 0  # epochs since then
    seconds: float = 0.0


class Trainer:
    """One run: trains, selects on validation, tests, and leaves everything in its folder.

    Args:
        settings: What to do.
        data: What to train on.
        ranks: This process.
        folder: Existing folder for log, checkpoint, best model, results, predictions and figures.
        stop: Whether to stop early.
        loaded: Model and tokenizer; None = load them now.
        features: Where files of features of frozen text go, to be removed by the caller; None = a folder of this run.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        data: Data,
        ranks: Ranks,
        folder: Path,
        stop: StopRequest,
        loaded: Loaded | None = None,
        features: Path | None = None,
    ):
        self.started, self.earlier_seconds = time.monotonic(), 0.0
        self.settings, self.data, self.ranks, self.folder, self.stop = settings, data, ranks, folder, stop
        self.features = features
        self.labels = labels_of(data.corpus)
        # The same model on every rank; random numbers after this differ between ranks.
        checkpoint.seed_everything(settings.seed)
        self.model, self.processor = build(settings, data.corpus, loaded, data.vectors)
        self.model.to(ranks.device)  # type: ignore[arg-type]
        distributed.equalise((*self.model.parameters(), *self.model.buffers()), ranks)
        checkpoint.seed_everything(int(np.random.SeedSequence([settings.seed, ranks.rank]).generate_state(1)[0]))
        self.splits = {
            split: Batches(data.corpus.splits[split], self.processor, self.model, ranks.device)
            for split in ("train", "valid")
        }
        self.gradients = Gradients(self.model, ranks)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, settings), lr=settings.learning_rate, fused=True
        )
        self.total_steps = settings.epochs * math.ceil(len(self.splits["train"]) / settings.batch_size)
        self.state = self.model.training_state(len(self.splits["train"]), **state_options(settings))
        self.update: Update | GraphedUpdate = Update(
            self.model, self.splits["train"], self.gradients, self.optimizer, ranks, settings, self.state
        )
        if settings.cuda_graphs:
            self.update = GraphedUpdate(self.update)
        # From the state, at the start and after validation: asking after each step would wait for the device.
        self.reported: dict[str, float] = {}
        self.progress = Progress()
        self.loss = math.nan  # of the last step
        self.log: RunLog | None = None  # rank 0 only

    def run(self, testing: bool = True) -> dict[str, Any]:
        """The whole run after :meth:`begin`, or the rest of it after :meth:`restore`.

        Args:
            testing: False: the test set is not even predicted.

        Returns:
            The contents of ``results.json``, on every rank.

        Raises:
            NotFinite: A loss, gradient or prediction is NaN or infinite.
            Interrupted: A stop was requested; the checkpoint has been written.
        """
        try:
            self.fit()
            return self.finish(testing)
        finally:
            if self.log is not None:
                self.log.close(finished=False)  # nothing where it was closed before

    def begin(self) -> None:
        """Prepares the first step."""
        self.keep_text_features()
        self.model.prepare(self.splits["train"].in_order(self.settings.batch_size))
        if self.state is not None:
            labels = self.splits["train"].labels()
            assert labels is not None
            self.state.start(labels.to(self.ranks.device))
            if self.state.starts_with_validation:
                self.state.validated(self.losses(self.predict("valid", with_losses=True)))
            self.reported = self.state.report()
        if self.ranks.is_main:
            self.log = RunLog(self.folder, settings=self.settings)
            # Logs have always had "nu": null for systems without it.
            self.log.write("start", {"step": 0, "parameters": self.model.num_parameters(), "nu": None, **self.reported})

    def restore(self, saved: dict[str, Any]) -> None:
        """Restores the state of a checkpoint.

        Raises:
            UsageError: It is of another model, or its parts do not fit one another.
        """
        with self._blaming_checkpoint():
            self.model.load_state_dict(saved["model"])
        self.keep_text_features()
        with self._blaming_checkpoint():
            optimiser.restore(self.optimizer, saved["optimizer"])
            self.progress = Progress(**saved["progress"])
            if self.ranks.rank < len(saved["random"]):
                checkpoint.set_random_state(saved["random"][self.ranks.rank], self.ranks.device)
            if self.state is not None:
                self.state.load_state_dict(saved["state"])
                self.reported = saved["reported"]
        self.earlier_seconds = self.progress.seconds
        if self.ranks.is_main:
            self.log = RunLog(self.folder, saved["log_length"], self.progress.step, self.settings)

    @contextmanager
    def _blaming_checkpoint(self) -> Iterator[None]:
        """Turns what a damaged checkpoint makes fail, in any way, into a sentence about it."""
        try:
            yield
        except Exception as error:
            raise UsageError(
                f"{self.folder / checkpoint.FILE_NAME} does not fit this run ({reason(error)}); remove it to "
                "start over."
            ) from None

    def keep_text_features(self) -> None:
        """Computes features of frozen text, or finds those of a run before."""
        for batches in self.splits.values():
            batches.keep_text_features(self.features or self.folder / text_features.FOLDER, self.ranks, self.stop)

    def save(self) -> None:
        """Writes the checkpoint."""
        self.progress.seconds = self.seconds()
        random_states = distributed.gather_objects(checkpoint.random_state(self.ranks.device), self.ranks)
        if self.log is None:
            return
        state = {
            "settings": dataclasses.asdict(self.settings),
            "fingerprint": self.data.fingerprint,
            "progress": dataclasses.asdict(self.progress),
            "model": self.model.state_dict(),
            "state": None if self.state is None else self.state.state_dict(),
            "reported": self.reported,
            "optimizer": self.optimizer.state_dict(),
            "random": random_states,
            "log_length": self.log.length(),
        }
        checkpoint.save(self.folder, state)

    def fit(self) -> None:
        """Trains to the last epoch or until validation stops improving."""
        patience = self.settings.early_stopping
        with Bar(self.settings.variant, self.total_steps, done=self.progress.step, show=self.ranks.is_main) as bar:
            while self.progress.epoch < self.settings.epochs:
                if patience is not None and self.progress.stalled >= patience:
                    break
                self.train_epoch(bar)
                self.validate()
                bar.advance(0, self.shown())

    def shown(self) -> str:
        """What is told beside the progress: the last loss and the best validation so far."""
        progress = self.progress
        shown = f"epoch {min(progress.epoch + 1, self.settings.epochs)}, loss {self.loss:.3f}"
        if progress.best is not None:
            metric = evaluate.selected_metric(self.labels)
            shown += f", best valid {metric} {abs(progress.best):.3f} in epoch {progress.best_epoch}"
        return shown

    def train_epoch(self, bar: Bar) -> None:
        """The remaining steps of an epoch."""
        settings, progress = self.settings, self.progress
        order = epoch_batches(len(self.splits["train"]), settings.batch_size, settings.seed, progress.epoch)
        self.model.train()
        unread: StepRecord | None = None
        while progress.batch < len(order):
            record = self.step(order[progress.batch])
            stopping = unread is not None and self.settle(unread, bar)
            unread = record
            due = settings.checkpoint_every_steps and progress.step % settings.checkpoint_every_steps == 0
            if stopping or due or progress.batch == len(order):
                stopping |= self.settle(unread, bar)
                unread = None
                if stopping or due:
                    self.save()
            if stopping:
                raise Interrupted(f"Stopped after step {progress.step}; add --resume to the same command to continue.")

    def step(self, indices: np.ndarray) -> StepRecord:
        """One step on a global batch. Never waits for the device."""
        settings, progress = self.settings, self.progress
        factor = schedule(progress.step, self.total_steps, settings.warmup, settings.schedule)
        learning_rate = settings.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        losses, norm = self.update(indices)
        progress.step += 1
        progress.batch += 1
        asked = self.stop.signal != 0
        record = StepRecord.of(progress.step, learning_rate, indices, losses, norm, asked, self.ranks)
        if self.state is not None:
            rows = {
                name: distributed.join_shares(upcast(losses.rows[name]), len(indices), self.ranks)
                for name in self.state.row_names
            }
            self.state.step(progress.epoch + 1, place(indices, self.ranks.device), rows)
        return record

    def settle(self, record: StepRecord, bar: Bar) -> bool:
        """Logs a step once its numbers have arrived; ends the run if they are not finite.

        Returns:
            Whether a rank was asked to stop.
        """
        numbers, progress = record.read(), self.progress
        if not (math.isfinite(numbers.loss) and math.isfinite(numbers.gradient_norm)):
            what = "gradient" if math.isfinite(numbers.loss) else "loss"
            raise NotFinite(
                f"the {what} of step {record.step} (epoch {progress.epoch + 1}) is not finite; lower --learning-rate, "
                "set --max-grad-norm, or check the examples of this batch: "
                + ", ".join(self.splits["train"].ids(record.indices))
            )
        if self.log is not None:
            values = {"loss": numbers.loss, **_named(numbers.losses), **self.reported}
            values |= {"gradient_norm": numbers.gradient_norm, "learning_rate": record.learning_rate}
            self.log.write("train", {"step": record.step, "epoch": progress.epoch + 1, **values})
        self.loss = numbers.loss
        bar.advance(1, self.shown())
        return numbers.stop

    def validate(self) -> None:
        """Ends an epoch: validates, saves the model if it is the best so far, and writes a checkpoint if due."""
        settings, progress = self.settings, self.progress
        predictions = self.predict("valid", with_losses=True)
        measured = evaluate.measure(predictions, self.labels)
        losses = self.losses(predictions)
        if self.state is not None:
            self.state.validated(losses)
            self.reported = self.state.report()
        progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.stalled += 1
        score = evaluate.selection(measured)
        if progress.best is None or score < progress.best:
            progress.best, progress.best_epoch, progress.stalled = score, progress.epoch, 0
            self.save_best()
        if self.log is not None:
            values = {**_named(losses), **self.reported, **measured}
            self.log.write("valid", {"step": progress.step, "epoch": progress.epoch, **values})
        if progress.epoch % settings.checkpoint_every_epochs == 0 or progress.epoch == settings.epochs:
            self.save()

    def save_best(self) -> None:
        """Saves the model as the best so far, with its processor."""

        def write(path: Path) -> None:
            self.model.save_pretrained(path)
            self.processor.save_pretrained(path)

        if self.ranks.is_main:
            best.save(self.folder, self.progress.epoch, write)

    def finish(self, testing: bool = True) -> dict[str, Any]:
        """Tests the best model and writes results, predictions and figures; without ``testing``, results only."""
        distributed.wait_for_all(self.ranks)
        tested: Tested | None = None
        if testing:
            tested = load_and_test(self.settings, self.data, self.ranks, self.folder)
        model = tested.model if tested else load_best(self.settings, self.ranks, self.folder)[0]
        found = best.find(self.folder)
        outcome = {
            **({"test": evaluate.measure(tested.predictions, self.labels)} if tested else {}),
            "valid": evaluate.measure(self.predict("valid", model), self.labels),
            **({"alignment": tested.alignment} if tested and tested.alignment else {}),
            "best_epoch": self.progress.best_epoch if found.lost is None else found.epoch,
            **({} if found.lost is None else {"lost": found.lost}),
            "epochs": self.progress.epoch,
            "steps": self.progress.step,
            "parameters": model.num_parameters(),
            "data": {
                "name": self.data.corpus.name,
                "report": str(self.data.corpus.report),
                "fingerprint": self.data.fingerprint,
            },
            **report.provenance(
                self.settings, self.ranks, chosen_backend(self.settings, self.ranks.device, model.config)
            ),
            "seconds": self.seconds(),
        }
        outcome = distributed.from_main(lambda: outcome, self.ranks)
        if self.log is not None:
            self._leave(outcome, tested)
        return outcome

    def _leave(self, outcome: dict[str, Any], tested: Tested | None) -> None:
        assert self.log is not None
        text_features.remove(self.folder / text_features.FOLDER)
        if tested:
            report.write_predictions(self.folder / "predictions.csv", tested.predictions, self.labels)
            self.log.write("test", {"step": outcome["steps"], "epoch": outcome["best_epoch"], **outcome["test"]})
        self.log.close()
        strict_json.write_json(self.folder / report.RESULTS, outcome)
        if tested:
            # Last: a failure here must not lose the results.
            figures.draw(self.folder, tested)
            model_card.write_card(self.folder, tested.model, outcome, tuple(self.labels.classes))

    def predict(self, split: str, model: Classifier | None = None, with_losses: bool = False) -> Predictions:
        """Predictions for a split, from the model in training or another; ``with_losses`` as in ``evaluate.predict``.

        Raises:
            NotFinite: Some are not finite.
        """
        model, settings = model or self.model, self.settings
        predictions = evaluate.predict(
            model, self.splits[split], self.ranks, settings.batch_size, settings.precision, with_losses
        )
        return evaluate.check_finite(predictions)

    def losses(self, predictions: Predictions) -> dict[str, float]:
        """The losses over a whole split, by name."""
        return evaluate.losses(self.model, predictions, self.settings.batch_size)

    def seconds(self) -> float:
        """Seconds that the run has taken, including those before it was resumed."""
        return self.earlier_seconds + time.monotonic() - self.started


def _named(losses: Mapping[str, float]) -> dict[str, float]:
    """Losses by their names in the log."""
    return {f"{name}_loss": value for name, value in losses.items()}
