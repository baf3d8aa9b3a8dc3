"""The whole training step: forward, loss, backward, AdamW. BERT-base shape, both modalities."""

import copy

import torch

from bench import measure
from bench.rivals import MagBert, TextBert, padded_clr
from bench.workload import PADDED_LENGTH, ModelBatch, draw_lengths, make_config, step_flops
from cmsbert_fast import (
    CMSBertCLRForSequenceClassification,
    CMSBertForSequenceClassification,
    pairwise_contrastive_loss,
)
from cmsbert_fast.attention import choose_backend
from cmsbert_fast.training.distributed import Gradients, Ranks

SUITE = "Training step"
BATCH = 32


class Trainer:
    """Steps with train.py's gradients and optimiser."""

    def __init__(self, model, device):
        self._gradients = Gradients(model.parameters(), Ranks(0, 1, device))
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step(self, forward):
        """The step as a call; ``forward`` returns the loss."""

        def run():
            self._gradients.zero()
            loss = forward()
            loss.backward()
            self._gradients.finish()
            self._gradients.norm()
            self._optimizer.step()
            return loss.detach()

        return run


def plain_step(model, forward):
    """One step as most training scripts do it, with the fast optimiser to their advantage."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def run():
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def autocast(forward, device):
    def run():
        with torch.autocast(device.type, torch.bfloat16):
            return forward()

    return run


def without_dropout(model):
    """A copy in evaluation mode, to compare losses with."""
    return copy.deepcopy(model).eval()


def clr(config, device):
    torch.manual_seed(0)
    return CMSBertCLRForSequenceClassification(config).to(device).train()


def test_step(race, device):
    """Every contender has weights, gradients and optimiser state of its own."""
    config = make_config()
    lengths = draw_lengths("mosi", BATCH)
    batch = ModelBatch.draw(config, lengths, device, PADDED_LENGTH)
    to_the_longest = ModelBatch.draw(config, lengths, device).padded
    model, plain, padded, compiled_padded, compiled, half = (
        clr(make_config(backend=backend), device) for backend in ("auto", "torch", "torch", "torch", "auto", "auto")
    )
    quiet, quiet_plain = without_dropout(model), without_dropout(plain)
    with torch.no_grad():
        expected = quiet(**batch.packed).loss
        for loss in (quiet_plain(**batch.packed).loss, padded_clr(quiet_plain, batch.padded)[1]):
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    del quiet, quiet_plain
    mag, text = MagBert(config).to(device).train(), TextBert(config).to(device).train()
    torch.compiler.reset()
    padded_compiled = torch.compile(padded_clr, dynamic=False)
    model_compiled = torch.compile(compiled, dynamic=False)
    forwards = {
        "ours: cmsbert-clr": lambda: model(**batch.packed).loss,
        "torch backend, packed": lambda: plain(**batch.packed).loss,
        "torch backend, padded to 50": lambda: padded_clr(padded, batch.padded)[1],
        "torch.compile of it, padded to 50": lambda: padded_compiled(compiled_padded, batch.padded)[1],
        "MAG-BERT's way: padded to 50, eager": lambda: mag(batch.padded)[1],
        "Hugging Face BERT, text only, padded to the longest": lambda: text(to_the_longest)[1],
        "ours, torch.compile": lambda: model_compiled(**batch.packed).loss,
        "ours in bfloat16": autocast(lambda: half(**batch.packed).loss, device),
    }
    models = dict(zip(forwards, (model, plain, padded, compiled_padded, mag, text, compiled, half), strict=True))
    steps = {
        name: Trainer(models[name], device).step(forward)
        if name.startswith("ours")
        else plain_step(models[name], forward)
        for name, forward in forwards.items()
    }
    kept = {
        name: measure.saved_for_backward(forwards[name], list(models[name].parameters()))
        for name in forwards
        if "compile" not in name
    }
    race(
        SUITE,
        f"cmsbert-clr, MOSI lengths, batch {BATCH}",
        steps,
        seconds=110,
        fewest=9,
        flops=step_flops(config, lengths, True),
        dtype="float32",
        facts={
            "tokens": sum(lengths),
            "ours": choose_backend(next(model.parameters())),
            "saved_for_backward": kept,
        },
    )


def variants(config, device, batch):
    """A step of each variant, all packed, all on the fastest backend."""
    steps = {}
    for name, model_class, options in (
        ("bert", CMSBertForSequenceClassification, {"cms_layers": []}),
        ("cmsbert", CMSBertForSequenceClassification, {}),
        ("cmsbert-clr", CMSBertCLRForSequenceClassification, {}),
    ):
        torch.manual_seed(0)
        model = model_class(make_config(**options)).to(device).train()
        steps[name] = Trainer(model, device).step(lambda model=model: model(**batch.packed).loss)
    return steps


def test_variants(race, device):
    config = make_config()
    lengths = draw_lengths("mosi", BATCH)
    batch = ModelBatch.draw(config, lengths, device)
    steps = variants(config, device, batch)
    ours = {name: steps[name] for name in ("cmsbert-clr", "cmsbert", "bert")}
    race(
        SUITE,
        f"what the variants cost, all packed, MOSI lengths, batch {BATCH}",
        ours,
        seconds=80,
        fewest=11,
        flops=step_flops(config, lengths, True),
        dtype="float32",
        facts={"tokens": sum(lengths)},
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
        SUITE,
        f"contrastive loss alone against the whole step, batch {BATCH}",
        {"contrastive loss, forward and backward": loss, "the whole step": step},
        seconds=25,
    )


def test_growth_with_batch(race, device):
    """Time over the number of valid tokens, from batch 16 to 256."""
    shape = "MiniLM"
    config = make_config(shape)
    model = clr(config, device)
    trainer = Trainer(model, device)
    runs = {}
    for size in (16, 32, 64, 128, 256):
        lengths = draw_lengths("mosi", size)
        batch = ModelBatch.draw(config, lengths, device)
        runs[sum(lengths)] = trainer.step(lambda batch=batch: model(**batch.packed).loss)
    race.growth(
        SUITE, f"cmsbert-clr, {shape} shape, batch 16 to 256", "valid tokens", runs, seconds=40, fewest=7, limit=1.05
    )
