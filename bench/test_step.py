"""The whole training step: forward, loss, backward, AdamW. BERT-base shape, both modalities."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from bench import measure, names
from bench.names import BATCH, PAPER_BATCH
from bench.rivals.models import MagBert, TextBert, padded_clr
from bench.steps import Trainer, autocast, check_same, clr, mag, of_pieces, plain_step, with_pytorch_products, without
from bench.workload import PADDED_LENGTH, ModelBatch, Work, draw_lengths, draw_random_lengths, make_config, step_flops
from cmsbert_fast import (
    CMSBertForSequenceClassification,
    pairwise_contrastive_loss,
)
from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.ops.capability import has_bfloat16_products
from cmsbert_fast.ops.dispatch import choose_backend
from cmsbert_fast.ops.dropout.api import Dropout
from cmsbert_fast.ops.lstm import cpu as lstm_cpu

REFERENCE_BATCH = 4
ROOT = Path(__file__).resolve().parents[1]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_step(race, device):
    """Ours against what people run today."""
    race_steps(race, device, names.STEP_CASE, BATCH)


def test_step_of_the_papers_batch(race, device):
    if device.type == "cpu":
        race.skip(names.STEP, names.PAPER_STEP_CASE, "it is for GPUs, which smaller batches leave idle")
        return
    race_steps(race, device, names.PAPER_STEP_CASE, PAPER_BATCH)


def race_steps(race, device, case, batch_size):
    """Every model has gradients and optimiser state of its own."""
    config = make_config()
    lengths = draw_lengths("mosi", batch_size)
    batch = ModelBatch.draw(config, lengths, device, PADDED_LENGTH)
    to_the_longest = ModelBatch.draw(config, lengths, device).padded
    model, plain = clr(config, device), clr(make_config(backend="torch"), device)
    check_same(batch, model, plain)
    rival, text = MagBert(mag(config, device)).to(device).train(), TextBert(config).to(device).train()
    trainer = Trainer(model, device)
    forwards = {
        names.OURS_CLR: (model, lambda: model(**batch.packed).loss),
        names.MODEL_PADDED: (plain, lambda: padded_clr(plain, batch.padded)[1]),
        names.MAG_BERT: (rival, lambda: rival(batch.padded)[1]),
        names.TEXT_BERT: (text, lambda: text(to_the_longest)[1]),
        names.OURS_BFLOAT16: (model, autocast(lambda: model(**batch.packed).loss, device)),
    }
    missing = {}
    if not has_bfloat16_products(device):
        missing[names.OURS_BFLOAT16] = measure.NO_BFLOAT16
        del forwards[names.OURS_BFLOAT16]
    steps = {
        name: trainer.step(forward) if owner is model else plain_step(owner, forward)
        for name, (owner, forward) in forwards.items()
    }
    kept = {
        name: measure.saved_for_backward(forward, list(owner.parameters()))
        for name, (owner, forward) in forwards.items()
    }
    race(
        names.STEP,
        case,
        steps,
        seconds=110,
        fewest=9,
        work=Work(step_flops(config, lengths, True)),
        facts={
            "tokens": sum(lengths),
            "ours": choose_backend(
                "attention", torch.empty(0, 1, config.hidden_size // config.num_attention_heads, device=device)
            ),
            "saved_for_backward": kept,
        },
        missing=missing,
    )


def test_bfloat16(race, device):
    """Over many batches, and what the LSTM gains.

    On a CPU a single batch says little: with some numbers of rows, such as the 473 of the case above, oneDNN's products
    in bfloat16 take up to 1.4 times as long as with their neighbours.
    """
    batches = 13
    if not has_bfloat16_products(device):
        race.skip(names.STEP, names.RANDOM_BATCHES, measure.NO_BFLOAT16)
        return
    config = make_config()
    model = clr(config, device)
    drawn = [ModelBatch.draw(config, lengths, device) for lengths in draw_random_lengths(BATCH, batches)]
    check_same(drawn[0], model)
    trainer = Trainer(model, device)

    def step(bfloat16=True):
        """Every contender goes through the batches in the same order, one a call."""
        turn = itertools.cycle(drawn)

        def forward():
            return model(**next(turn).packed).loss

        return trainer.step(autocast(forward, device) if bfloat16 else forward)

    contenders = {names.OURS_BFLOAT16: step(), names.OURS_FLOAT32: step(bfloat16=False)}
    contenders[names.F_LINEAR] = with_pytorch_products(step())
    if device.type == "cpu" and library.why_not() is None:
        contenders["with the LSTM's products in float32"] = without(
            step(), lstm_cpu, "product_dtype", lambda *arguments: torch.float32
        )
    race(names.STEP, names.RANDOM_BATCHES, contenders, seconds=60, fewest=batches)


def test_step_of_the_reference(race, device):
    """Attention and loss by the equations, literally, on a batch whose N x N x D tensors fit beside the models."""
    config = make_config()
    lengths = draw_lengths("mosi", REFERENCE_BATCH)
    batch = ModelBatch.draw(config, lengths, device)
    model, literal = clr(config, device), clr(make_config(backend="reference"), device)
    check_same(batch, model, literal)
    torch.testing.assert_close(literal.eval()(**batch.padded).loss, literal(**batch.packed).loss, rtol=1e-4, atol=1e-4)
    literal.train()
    race(
        names.STEP,
        f"cmsbert-clr and the literal reference, MOSI lengths, batch {REFERENCE_BATCH}",
        {
            names.OURS_CLR: Trainer(model, device).step(lambda: model(**batch.packed).loss),
            "literal reference": plain_step(literal, lambda: literal(**batch.padded).loss),
        },
        seconds=30,
        facts={"tokens": sum(lengths)},
    )


def test_step_compiled(race, device):
    """What torch.compile makes of it. Apart from the others: all the models at once would fill the memory.

    Without dropout: the compiled steps' losses are those of the others, or there is no speed.
    """
    case = f"cmsbert-clr and torch.compile, no dropout, MOSI lengths, batch {BATCH}"
    if not race.compiles:
        race.skip(names.STEP, case, "torch.compile's contenders were not asked for (--compile)")
        return
    config = make_config(**NO_DROPOUT)
    lengths = draw_lengths("mosi", BATCH)
    batch = ModelBatch.draw(config, lengths, device, PADDED_LENGTH)
    model = clr(config, device)
    plain, padded = (clr(make_config(backend="torch", **NO_DROPOUT), device) for _ in range(2))
    check_same(batch, model, plain, padded)
    torch.compiler.reset()
    compiled_padded = torch.compile(padded_clr, dynamic=False)
    compiled_model = torch.compile(model, dynamic=False)
    trainer = Trainer(model, device)
    expected = model(**batch.packed).loss
    for loss in (compiled_model(**batch.packed).loss, compiled_padded(padded, batch.padded)[1]):
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    race(
        names.STEP,
        case,
        {
            names.OURS_CLR: trainer.step(lambda: model(**batch.packed).loss),
            "ours, torch.compile": trainer.step(lambda: compiled_model(**batch.packed).loss),
            "torch backend, packed": plain_step(plain, lambda: plain(**batch.packed).loss),
            "torch.compile of it, padded to 50": plain_step(padded, lambda: compiled_padded(padded, batch.padded)[1]),
        },
        seconds=90,
        fewest=9,
        facts={"tokens": sum(lengths)},
    )


def variants(device, batch):
    """A step of each variant, all packed, all on the fastest backend: float32 on a CPU, bfloat16 on a GPU."""
    steps = {}
    torch.manual_seed(0)
    for name, model, inputs in (
        (names.CLR, clr(make_config(), device), batch.packed),
        (names.CMS, CMSBertForSequenceClassification(make_config()), batch.packed),
        (names.BERT, CMSBertForSequenceClassification(make_config(cms_layers=[])), batch.packed),
        (names.MAG, mag(make_config(), device), of_pieces(batch.packed)),
    ):
        model.to(device).train()

        def forward(model=model, inputs=inputs):
            return model(**inputs).loss

        steps[name] = Trainer(model, device).step(autocast(forward, device) if device.type == "cuda" else forward)
    return steps


def test_variants(race, device):
    """Ours, all packed, and what text-only BERT costs those who take Hugging Face's as it is."""
    race_variants(race, device, names.VARIANTS, BATCH)


def test_variants_of_the_papers_batch(race, device):
    if device.type == "cpu":
        race.skip(names.STEP, names.PAPER_VARIANTS, "it is for GPUs, which smaller batches leave idle")
        return
    race_variants(race, device, names.PAPER_VARIANTS, PAPER_BATCH)


def race_variants(race, device, case, batch_size):
    config = make_config()
    lengths = draw_lengths("mosi", batch_size)
    batch = ModelBatch.draw(config, lengths, device)
    text = TextBert(config).to(device).train()

    def forward():
        return text(batch.padded)[1]

    theirs = plain_step(text, autocast(forward, device) if device.type == "cuda" else forward)
    race(
        names.STEP,
        case,
        variants(device, batch) | {names.TEXT_BERT: theirs},
        seconds=80,
        fewest=11,
        work=Work(step_flops(config, lengths, True), dtype="bfloat16" if device.type == "cuda" else "float32"),
        facts={"tokens": sum(lengths)},
    )


def test_where_the_time_goes(race, device):
    """A profile by operator: what bounds the step, and what the variants add to it."""
    batch = ModelBatch.draw(make_config(), draw_lengths("mosi", BATCH), device)
    steps = {name: step for name, step in variants(device, batch).items() if name in (names.CLR, names.BERT)}
    race.record(
        kind="profile",
        suite=names.STEP,
        case=f"where the time goes, MOSI lengths, batch {BATCH}",
        seconds={name: measure.profile(step, device) for name, step in steps.items()},
    )


def test_share_of_the_loss(race, device):
    config = make_config()
    lengths = draw_lengths("mosi", BATCH)
    batch = ModelBatch.draw(config, lengths, device)
    model = clr(config, device)
    step = Trainer(model, device).step(lambda: model(**batch.packed).loss)
    embeddings = [torch.randn(BATCH, config.projection_size, device=device, requires_grad=True) for _ in range(3)]

    def loss():
        pairwise_contrastive_loss(*embeddings, batch.packed["labels"]).backward()

    race(
        names.STEP,
        f"contrastive loss alone against the whole step, batch {BATCH}",
        {"contrastive loss, forward and backward": loss, "the whole step": step},
        seconds=25,
    )


def test_engineering(race, device):
    """The same step without one of the things done for it."""
    config = make_config()
    batch = ModelBatch.draw(config, draw_lengths("mosi", BATCH), device)
    model = clr(config, device)
    step = Trainer(model, device).step(lambda: model(**batch.packed).loss)
    unfused = Trainer(model, device, fused=False).step(lambda: model(**batch.packed).loss)

    race(
        names.STEP,
        f"what each thing gains, cmsbert-clr, MOSI lengths, batch {BATCH}",
        {
            names.OURS_CLR: step,
            names.F_LINEAR: with_pytorch_products(step),
            "without the compiled LSTM": without(step, lstm_cpu, "product_dtype", lambda *arguments: None),
            "with PyTorch's dropout": without(step, Dropout, "forward", nn.Dropout.forward),
            "with AdamW not fused": unfused,
        },
        seconds=60,
        fewest=9,
    )


def test_kept_memory(race, device):
    """A process that keeps the memory it frees against one that does not; each launch has processes of its own."""
    case = f"keeping freed memory, cmsbert-clr, MOSI lengths, batch {BATCH}"
    if device.type != "cpu":
        race.skip(names.STEP, case, "it is for CPUs")
        return
    code = f"""
import json, torch
from bench import measure
from bench.steps import Trainer, clr
from bench.workload import ModelBatch, draw_lengths, make_config
from cmsbert_fast.training.distributed import keep_freed_memory
keep_freed_memory()
device = torch.device("cpu")
config = make_config()
batch = ModelBatch.draw(config, draw_lengths("mosi", {BATCH}), device)
model = clr(config, device)
step = Trainer(model, device).step(lambda: model(**batch.packed).loss)
step(), step(), step()
print(json.dumps([measure.timed(step, device) for _ in range(5)]))
"""
    seconds = {names.OURS_CLR: [], "with the allocator's defaults": []}
    for _ in range(3):
        for name, times in seconds.items():
            # Whoever tunes the allocator is left alone: this says nothing but its own default.
            tuned = {} if names.is_ours(name) else {"MALLOC_ARENA_TEST": "8"}
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, env=os.environ | tuned, cwd=ROOT, capture_output=True, text=True, check=True)
            times += json.loads(done.stdout)
    race.record(
        kind="race",
        suite=names.STEP,
        case=case,
        seconds=seconds,
        memory={},
        facts={},
        missing={},
        dtype="float32",
    )


def test_growth_with_batch(race, device):
    """Time over the number of valid tokens, from batch 16 to 128."""
    config = make_config()
    model = clr(config, device)
    trainer = Trainer(model, device)
    runs = {}
    for size in (16, 32, 64, 128):
        lengths = draw_lengths("mosi", size)
        batch = ModelBatch.draw(config, lengths, device)
        runs[sum(lengths)] = trainer.step(lambda batch=batch: model(**batch.packed).loss)
    race.growth(names.STEP, names.STEP_GROWTH, "valid tokens", runs, seconds=60, fewest=5)
