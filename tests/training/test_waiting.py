"""A training step never makes the host wait for the GPU."""

import pytest
import torch

from cmsbert_fast.data import read_corpus
from cmsbert_fast.training import distributed
from cmsbert_fast.training.backward import backward
from cmsbert_fast.training.batches import Batches
from cmsbert_fast.training.build import build
from cmsbert_fast.training.distributed import Gradients, Ranks
from cmsbert_fast.training.optimiser import parameter_groups
from cmsbert_fast.training.record import StepRecord
from cmsbert_fast.training.settings import TrainingSettings


def prepare(device, precision="fp32"):
    """Model, batches and what a step needs, on the embedded corpus."""
    settings = TrainingSettings(data="embedded", precision=precision)
    corpus = read_corpus("embedded")
    ranks = Ranks(0, 1, torch.device(device))
    model, processor = build(settings, corpus)
    model.to(ranks.device).train()
    batches = Batches(corpus.splits["train"], processor, model, ranks.device)
    return settings, model, batches, ranks


class Pinned(torch.Tensor):
    """Pinning needs a GPU."""

    def pin_memory(self):
        return self


def test_lengths_of_frames_stay_on_the_host():
    _, _, batches, _ = prepare("cpu")
    batches._device = torch.device("meta")  # stands in for a GPU
    names = ("input_ids", "visual", *(f"cu_seq_lens_{name}" for name in ("q", "k", "visual", "acoustic", "words")))
    placed = {name: batches._place(name, Pinned(3)).device.type for name in names}
    assert placed == dict.fromkeys(names[:4], "meta") | dict.fromkeys(names[4:], "cpu")


def test_ranks_on_gpus_talk_over_the_cpu_too(monkeypatch):
    """Objects and numbers of rows lie on the CPU: exchanged there, they make nobody wait for a GPU."""
    joined = []
    monkeypatch.setattr(distributed, "find_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(torch.distributed.HashStore(), 0, 2)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: joined.append(backend))
    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed.start("cuda")
    assert joined == ["cpu:gloo,cuda:nccl"]


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_without_waiting(precision):
    settings, model, batches, ranks = prepare("cuda", precision)
    gradients = Gradients(model, ranks)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), lr=1e-5, fused=True)

    def step(indices):
        gradients.zero()
        losses = backward(model, batches, indices, gradients, ranks, settings)
        gradients.finish()
        norm = gradients.norm()
        optimizer.step()
        return StepRecord.of(1, 1e-5, indices, losses, norm, False, ranks)

    step(list(range(8)))  # compiles and allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        record = step(list(range(8, 16)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    record.copied.synchronize()
    assert record.values.isfinite().all()
