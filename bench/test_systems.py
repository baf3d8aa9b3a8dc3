"""A training step and inference of every system against ours: BERT-base shape, MOSI's lengths, nothing padded."""

import pytest
import torch

from bench import names, systems
from bench.names import BATCH
from bench.workload import draw_lengths
from cmsbert_fast.models.registry import BASELINES

INFERRED = 64


def chosen(trains_bert: bool) -> list[str]:
    """Ours, and the systems that train BERT or those that do not: all at once would fill the memory."""
    return [names.CLR, *(name for name in BASELINES if (systems.text_of(name) == "bert") == trains_bert)]


@pytest.mark.parametrize("trains_bert", [True, False])
def test_step(race, device, trains_bert):
    """As in every epoch but the first: features of frozen text are known."""
    utterances = systems.Utterances(draw_lengths("mosi", BATCH), device)
    steps = {name: systems.step(name, utterances, device) for name in chosen(trains_bert)}
    assert all(step().isfinite() for step in steps.values())
    race(
        names.STEP,
        names.systems_case(trains_bert, BATCH),
        steps,
        seconds=60,
        fewest=7,
        facts={"tokens": utterances.tokens},
    )


@pytest.mark.parametrize("trains_bert", [True, False])
def test_inference(race, device, trains_bert):
    """Of new data: frozen BERT runs, one utterance at a time."""
    utterances = systems.Utterances(draw_lengths("mosi", INFERRED), device)
    runs = {name: utterances.predicted(systems.make_model(name, device)) for name in chosen(trains_bert)}
    assert all(run().shape == (INFERRED, 1) and run().isfinite().all() for run in runs.values())
    race(
        names.INFERENCE,
        names.systems_case(trains_bert, INFERRED),
        runs,
        seconds=20,
        facts={"utterances": INFERRED, "tokens": utterances.tokens},
    )


def test_known_text_is_that_of_prediction(device):
    """Else the two races would be of different models."""
    utterances = systems.Utterances([9, 3, 14], device)
    for name in BASELINES:
        if systems.text_of(name) == "bert-frozen":
            model = systems.make_model(name, device).eval()
            inputs = utterances.inputs(model)
            del inputs["labels"]
            with torch.inference_mode():
                assert torch.equal(utterances.predicted(model)(), model.rows(**inputs)["logits"])
