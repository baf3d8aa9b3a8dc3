"""Hugging Face's Trainer trains what ``train.py`` trains: the same losses, the same nu, the same weights."""

import dataclasses
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from cmsbert_fast import CMSBertCLRForSequenceClassification, ContrastiveWeightCallback
from cmsbert_fast.data import read_corpus
from cmsbert_fast.training import checkpoint
from cmsbert_fast.training.batches import epoch_batches, fitting
from cmsbert_fast.training.build import build
from cmsbert_fast.training.optimiser import parameter_groups, schedule
from cmsbert_fast.training.preflight import Data
from cmsbert_fast.training.settings import TrainingSettings
from cmsbert_fast.training.signals import StopRequest
from cmsbert_fast.training.trainer import Trainer as Ours
from tests.models.small import config
from tests.training.helpers import CPU, records

SETTINGS = TrainingSettings(
    data="embedded",
    epochs=3,
    batch_size=16,
    learning_rate=2e-3,
    warmup=0.25,
    architecture=dict(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
)


class Order:
    """The batches of ``train.py``, epoch after epoch."""

    def __init__(self, count: int) -> None:
        self.count, self.epoch = count, -1

    def __len__(self) -> int:
        return -(-self.count // SETTINGS.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        self.epoch += 1
        return (batch.tolist() for batch in epoch_batches(self.count, SETTINGS.batch_size, SETTINGS.seed, self.epoch))


class InOrder(Trainer):
    def get_train_dataloader(self) -> DataLoader:
        order = Order(len(self.train_dataset))
        return DataLoader(self.train_dataset, batch_sampler=order, collate_fn=self.data_collator)


def small_embedded():
    """The embedded corpus, 40 examples of training and 20 of validation; batches differ in size."""
    whole = read_corpus("embedded")
    sizes = {"train": 40, "valid": 20, "test": 4}
    return dataclasses.replace(whole, splits={split: whole.splits[split][:n] for split, n in sizes.items()})


def arguments(folder, **more):
    return TrainingArguments(
        str(folder),
        num_train_epochs=SETTINGS.epochs,
        per_device_train_batch_size=SETTINGS.batch_size,
        per_device_eval_batch_size=7,
        max_grad_norm=0,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        **{"save_strategy": "no", **more},
    )


def hugging_face(corpus, folder, **more):
    """A Trainer with the weights, batches, optimiser and schedule of ``train.py``."""
    checkpoint.seed_everything(SETTINGS.seed)
    model, processor = build(SETTINGS, corpus)
    optimizer = torch.optim.AdamW(parameter_groups(model, SETTINGS), lr=SETTINGS.learning_rate, fused=True)
    steps = SETTINGS.epochs * len(Order(len(corpus.splits["train"])))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps, SETTINGS.warmup))
    return InOrder(
        model,
        arguments(folder, **more),
        train_dataset=corpus.splits["train"],
        eval_dataset=corpus.splits["valid"],
        data_collator=lambda examples: processor.collate(
            [processor.encode(fitting(e, model.config)) for e in examples]
        ),
        optimizers=(optimizer, scheduler),
    )


def test_the_trajectory_is_that_of_train_py(tmp_path):
    corpus = small_embedded()
    (tmp_path / "out" / "v" / "s").mkdir(parents=True)
    ours = Ours(SETTINGS, Data(corpus, "x"), CPU, tmp_path / "out" / "v" / "s", StopRequest())
    ours.begin()
    ours.fit()
    trainer = hugging_face(corpus, tmp_path / "hf")
    trainer.add_callback(ContrastiveWeightCallback(trainer))
    trainer.train()
    history = trainer.state.log_history
    nu = [record["nu"] for record in history if "nu" in record]
    expected = [records(tmp_path / "out", "start")[0]["nu"], *(r["nu"] for r in records(tmp_path / "out", "valid"))]
    assert len(nu) == SETTINGS.epochs + 1
    assert len({round(value, 4) for value in nu}) == len(nu)
    assert max(nu) < 0.9  # far from 1, with which it would stay
    assert nu == pytest.approx(expected, rel=1e-4)
    losses = [record["loss"] for record in history if "loss" in record]
    assert losses == pytest.approx([r["loss"] for r in records(tmp_path / "out", "train")], rel=1e-3)
    for (name, value), other in zip(ours.model.state_dict().items(), trainer.model.state_dict().values(), strict=True):
        torch.testing.assert_close(other, value, rtol=1e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_resuming_continues_nu(tmp_path):
    corpus = small_embedded()
    whole = hugging_face(corpus, tmp_path / "whole", save_strategy="epoch")
    whole.add_callback(ContrastiveWeightCallback(whole))
    whole.train()
    steps = len(Order(len(corpus.splits["train"])))
    again = hugging_face(corpus, tmp_path / "again")
    again.add_callback(ContrastiveWeightCallback(again))
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{2 * steps}"))
    histories = ([r["nu"] for r in t.state.log_history if "nu" in r] for t in (whole, again))
    first, second = histories
    assert len(first) == len(second) == SETTINGS.epochs + 1  # the log of the earlier part is in the checkpoint
    assert second[:-1] == first[:-1]
    assert second[-1] == pytest.approx(first[-1], rel=0.05)  # the batches of the last epoch come in another order


def test_without_it_a_warning_names_it_once():
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config()).train()
    inputs = dict(input_ids=torch.randint(50, (3, 5)), visual=torch.randn(3, 4, 5), labels=torch.tensor([1.0, 0, -1]))
    with pytest.warns(UserWarning, match=r"Nothing updates nu.*\.ContrastiveWeightCallback\(trainer\)"):
        model(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs)
        other = CMSBertCLRForSequenceClassification(config()).eval()
        other(**inputs)
        other.training_state(3)
        other.train()(**inputs)


def test_a_validation_set_is_needed(tmp_path):
    trainer = Trainer(CMSBertCLRForSequenceClassification(config()), arguments(tmp_path), train_dataset=[1])
    with pytest.raises(ValueError, match="Give the Trainer one eval_dataset"):
        ContrastiveWeightCallback(trainer)
    assert isinstance(ContrastiveWeightCallback(trainer, momentum=None), TrainerCallback)
