"""Inference of the trained model: latency of one utterance, throughput of many. BERT-base shape."""

import pytest
import torch

from bench import measure
from bench.rivals import MagBert, TextBert, padded_clr
from bench.workload import PADDED_LENGTH, ModelBatch, draw_lengths, make_config, step_flops
from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.ops.capability import has_fast_bfloat16

SUITE = "Inference"
BFLOAT16 = "ours in bfloat16"
COMPILED, LITERAL = "torch.compile of it, padded to the longest", "the literal reference"


@pytest.mark.parametrize("batch_size", [1, 64, 256])
def test_inference(race, device, batch_size):
    config = make_config()
    lengths = draw_lengths("mosi", batch_size) if batch_size > 1 else [15]
    batch = ModelBatch.draw(config, lengths, device, PADDED_LENGTH)
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config).to(device).eval()
    mag, text = MagBert(config).to(device).eval(), TextBert(config).to(device).eval()
    plain, literal = (
        CMSBertCLRForSequenceClassification(make_config(backend=backend)).to(device).eval()
        for backend in ("torch", "reference")
    )
    plain.load_state_dict(model.state_dict())
    literal.load_state_dict(model.state_dict())
    torch.compiler.reset()
    compiled = torch.compile(padded_clr, dynamic=False)

    def of(function):
        def run():
            with torch.inference_mode():
                return function()

        return run

    def in_bfloat16():
        with torch.autocast(device.type, torch.bfloat16):
            return model(**packed).logits

    packed, to_50, to_the_longest = (
        {name: value for name, value in inputs.items() if name != "labels"}
        for inputs in (batch.packed, batch.padded, ModelBatch.draw(config, lengths, device).padded)
    )
    runs = {
        "ours: cmsbert-clr": of(lambda: model(**packed).logits),
        "the same on the torch backend, packed": of(lambda: plain(**packed).logits),
        "the same on the torch backend, padded to 50": of(lambda: padded_clr(model, to_50)[0]),
        "the same on the torch backend, padded to the longest": of(lambda: padded_clr(model, to_the_longest)[0]),
        COMPILED: of(lambda: compiled(model, to_the_longest)[0]),
        LITERAL: of(lambda: literal(**packed).logits),
        "MAG-BERT's way: padded to 50, eager": of(lambda: mag(to_50)[0]),
        "Hugging Face BERT, text only, padded to the longest": of(lambda: text(to_the_longest)[0]),
        BFLOAT16: of(in_bfloat16),
    }
    missing = {}
    if not has_fast_bfloat16(device):
        missing[BFLOAT16] = measure.NO_BFLOAT16
        del runs[BFLOAT16]
    if device.type == "cpu" and batch_size > 64:
        missing |= {COMPILED: "compiled for smaller batches only: minutes on this machine", LITERAL: "takes too long"}
        del runs[COMPILED], runs[LITERAL]
    ours, *others = list(runs)
    for name in (name for name in others if name in (COMPILED, LITERAL) or name.startswith("the same")):
        torch.testing.assert_close(runs[name](), runs[ours](), rtol=1e-3, atol=1e-3)
    if BFLOAT16 in runs:
        torch.testing.assert_close(runs[BFLOAT16]().float(), runs[ours](), rtol=5e-2, atol=5e-2)
    race(
        SUITE,
        "one utterance of 15 word pieces" if batch_size == 1 else f"MOSI lengths, batch {batch_size}",
        runs,
        seconds=20,
        flops=step_flops(config, lengths, True) / 3,
        dtype="float32",
        facts={"utterances": batch_size},
        missing=missing,
    )
