"""Stage "step": a training step of each system: the host's part, the device's, and how many launches it takes.

Ours also with fused layers, and these as one CUDA graph: what ``--backend triton --cuda-graphs true`` runs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from bench import names
from bench.gpu import kernels
from bench.gpu.runner import Context, each
from bench.rivals.models import MagBert, TextBert
from bench.steps import Trainer, autocast, clr, mag, of_pieces, plain_step
from bench.workload import PADDED_LENGTH, ModelBatch, draw_lengths, make_config
from cmsbert_fast import CMSBertForSequenceClassification
from cmsbert_fast.ops.bias_gelu.api import bias_gelu
from cmsbert_fast.ops.residual_norm.api import residual_norm
from cmsbert_fast.ops.residual_norm.types import Parameters

SYSTEMS = [names.CLR, names.CMS, names.BERT, names.MAG_BERT, names.TEXT_BERT, names.MAG]
FUSED = [names.CLR, names.CMS, names.BERT]


class Case(NamedTuple):
    """A system and a batch."""

    system: str
    batch: int
    fused: bool = False

    def __str__(self) -> str:
        fused = ", fused layers" if self.fused else ""
        return names.by_kernel(f"{self.system}{fused}, MOSI lengths, batch {self.batch}")


def run(context: Context) -> None:
    """All systems at both batches."""
    device = torch.device(context.device)
    systems, batches = ([names.BERT], [2]) if context.rehearsal else (SYSTEMS, [names.PAPER_BATCH, names.BATCH])
    kinds = [(system, False) for system in systems]
    if not context.rehearsal:  # on a CPU there are no kernels to fuse with
        kinds = [(system, True) for system in FUSED] + kinds
    cases = [Case(system, batch, fused) for batch in batches for system, fused in kinds]
    each(context, names.STEP, cases, lambda case: measure_case(case, device))


def measure_case(case: Case, device: torch.device) -> dict[str, Any]:
    """Seconds of a step, of its launching, of its kernels; and how many there are."""
    call = make_step(case, device)
    rounds = 11 if device.type == "cuda" else 1
    for _ in range(min(3, rounds)):
        if not torch.isfinite(call()):
            raise FloatingPointError("the loss is not finite")
    found = {"eager": kernels.median(call, device, rounds, 4.0), "host": kernels.host(call, device, min(3, rounds))}
    if case.fused:
        found |= kernels.as_graph(call, device, rounds, 4.0)
    return found | kernels.by_kernel(call, device, min(3, rounds))


def compile_layers(device: torch.device) -> None:
    """Compiles what fused layers launch between their products, as a step in bfloat16 calls it."""
    config = make_config("BERT-base")

    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.ones(*shape, dtype=dtype, device=device, requires_grad=True)

    size, half = config.hidden_size, torch.bfloat16
    parameters = Parameters(ones(size), ones(size), ones(size))
    found = residual_norm(
        ones(8, size, dtype=half), ones(8, size), parameters, eps=1e-12, rounded=half, dropout_p=0.1, backend="triton"
    )
    inner = bias_gelu(ones(8, config.intermediate_size, dtype=half), ones(config.intermediate_size), "triton")
    (found.wide.sum() + found.rounded.sum() + inner.sum()).backward()


def make_step(case: Case, device: torch.device) -> Callable[[], Any]:
    """The step as a function without arguments. On a GPU ours run in bfloat16, MAG-BERT's way as its authors run it."""
    config = make_config("BERT-base" if device.type == "cuda" else "tiny")
    lengths = draw_lengths("mosi", case.batch)

    def half(forward: Callable[[], Any]) -> Callable[[], Any]:
        return autocast(forward, device) if device.type == "cuda" else forward

    if case.system == names.TEXT_BERT:
        batch, text = ModelBatch.draw(config, lengths, device), TextBert(config).to(device).train()
        return plain_step(text, half(lambda: text(batch.padded)[1]))
    if case.system == names.MAG_BERT:
        batch = ModelBatch.draw(config, lengths, device, PADDED_LENGTH)
        rival = MagBert(mag(config, device)).to(device).train()
        return plain_step(rival, lambda: rival(batch.padded)[1])
    batch = ModelBatch.draw(config, lengths, device)
    torch.manual_seed(0)
    inputs: Any = batch.packed
    if case.fused:
        config.backend = "triton"
        # A graph reads nothing on the host: the lengths of frames too are on the device.
        inputs = {name: x.to(device) if torch.is_tensor(x) else x for name, x in inputs.items()}
    if case.system == names.CLR:
        model = clr(config, device)
    elif case.system == names.MAG:
        model, inputs = mag(config, device), of_pieces(batch.packed)
    else:
        if case.system == names.BERT:
            config.cms_layers = []
        model = CMSBertForSequenceClassification(config).to(device).train()
    return Trainer(model, device, capturable=case.fused).step(half(lambda: model(**inputs).loss))
