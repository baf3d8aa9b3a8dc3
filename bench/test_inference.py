"""Inference of the trained model: latency of one utterance, throughput of many. BERT-base shape."""

import copy
import functools
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch

from bench import measure, names
from bench.rivals import runtimes
from bench.rivals.models import MagBert, TextBert, padded_clr
from bench.steps import mag, of_pieces
from bench.workload import PADDED_LENGTH, ModelBatch, Work, draw_lengths, make_config, step_flops
from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertConfig
from cmsbert_fast.models.casting import cast_weights
from cmsbert_fast.ops.capability import has_bfloat16_products

PAUSE = 0.02
SAME_MODEL = (names.SAME_PACKED, names.SAME_TO_50, names.SAME_TO_THE_LONGEST, names.SAME_COMPILED, names.LITERAL)


def logits_by_contender(
    config: CMSBertConfig, lengths: list[int], device: torch.device, stack: ExitStack
) -> tuple[dict[str, Callable[[], torch.Tensor]], dict[str, str]]:
    """Every way to infer: name -> call, which returns logits; and why some are missing. For as long as ``stack`` is
    open, what runs in bfloat16 holds its weights in it, as ``predict --precision bf16`` does."""
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config).to(device).eval()
    packed_mag, text = mag(config, device).eval(), TextBert(config).to(device).eval()
    padded_mag = MagBert(packed_mag).to(device).eval()
    plain, literal = (
        CMSBertCLRForSequenceClassification(make_config(backend=backend)).to(device).eval()
        for backend in ("torch", "reference")
    )
    plain.load_state_dict(model.state_dict())
    literal.load_state_dict(model.state_dict())
    torch.compiler.reset()
    compiled = torch.compile(padded_clr, dynamic=False)
    batch = ModelBatch.draw(config, lengths, device, PADDED_LENGTH)
    packed, to_50, to_the_longest = (
        {name: value for name, value in inputs.items() if name != "labels"}
        for inputs in (batch.packed, batch.padded, ModelBatch.draw(config, lengths, device).padded)
    )

    def of(function):
        def run():
            with torch.inference_mode():
                return function()

        return run

    half = model
    if device.type == "cpu" and has_bfloat16_products(device):
        half = copy.deepcopy(model)
        with torch.no_grad():
            stack.enter_context(cast_weights(half, torch.bfloat16))

    def in_bfloat16():
        with torch.autocast(device.type, torch.bfloat16):
            return half(**packed).logits

    runs = {
        names.OURS_CLR: of(lambda: model(**packed).logits),
        names.SAME_PACKED: of(lambda: plain(**packed).logits),
        names.SAME_TO_50: of(lambda: padded_clr(model, to_50)[0]),
        names.SAME_TO_THE_LONGEST: of(lambda: padded_clr(model, to_the_longest)[0]),
        names.SAME_COMPILED: of(lambda: compiled(model, to_the_longest)[0]),
        names.LITERAL: of(lambda: literal(**packed).logits),
        names.MAG: of(lambda: packed_mag(**of_pieces(packed)).logits),
        names.MAG_BERT: of(lambda: padded_mag(to_50)[0]),
        names.TEXT_BERT: of(lambda: text(to_the_longest)[0]),
        names.OURS_BFLOAT16: of(in_bfloat16),
    }
    others, missing = runtimes.contenders(text, device, has_bfloat16_products(device))
    for name, run in others.items():
        runs[name] = functools.partial(run, to_the_longest)
        if len(lengths) > 1:
            runs[names.in_groups(name, names.GROUPS)] = runtimes.by_length(run, to_the_longest, names.GROUPS)
    return runs, missing


@pytest.mark.parametrize("batch_size", [1, 64, 256])
def test_inference(race, device, batch_size):
    config = make_config()
    lengths = draw_lengths("mosi", batch_size) if batch_size > 1 else [15]
    with ExitStack() as stack:
        every, missing = logits_by_contender(config, lengths, device, stack)
        missing |= race.without_compiled([names.SAME_COMPILED])
        if not has_bfloat16_products(device):
            missing[names.OURS_BFLOAT16] = measure.NO_BFLOAT16
        if device.type == "cpu" and batch_size > 64:
            missing |= {
                names.SAME_COMPILED: "compiled for smaller batches only: minutes on this machine",
                names.LITERAL: "takes too long",
            }
        runs = {name: run for name, run in every.items() if name not in missing}
        expected = runs[names.OURS_CLR]()
        for name in (name for name in runs if name in SAME_MODEL):
            torch.testing.assert_close(runs[name](), expected, rtol=1e-3, atol=1e-3)
        for name in (name for name in runs if name.startswith(names.RUNTIMES)):
            allowed = 5e-2 if "bfloat16" in name else 1e-3
            torch.testing.assert_close(runs[name](), runs[names.TEXT_BERT](), rtol=allowed, atol=allowed)
        torch.testing.assert_close(runs[names.MAG_BERT](), runs[names.MAG](), rtol=1e-3, atol=1e-3)
        if names.OURS_BFLOAT16 in runs:
            torch.testing.assert_close(runs[names.OURS_BFLOAT16]().float(), expected, rtol=5e-2, atol=5e-2)
        race(
            names.INFERENCE,
            names.inference_case(batch_size),
            runs,
            seconds=20,
            work=Work(step_flops(config, lengths, True) / 3),
            facts={"utterances": batch_size},
            missing=missing,
            pause=PAUSE if device.type == "cpu" else 0.0,
        )
