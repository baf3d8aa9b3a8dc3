"""How much a layer of the model launches: a budget, counted without a GPU (:mod:`tests.kernels.launches`)."""

from collections import Counter

import pytest
import torch

from bench.workload import ModelBatch, make_config
from cmsbert_fast import CMSBertForSequenceClassification
from cmsbert_fast.ops import capability
from tests.kernels.aot import needs_compiler
from tests.kernels.launches import count_launches

LENGTHS = [20, 7]
MOST = {"forward": 47, "backward": 83}
OURS = {"forward": {"short_forward": 1}, "backward": {"short_backward": 1, "short_gate_backward": 1}}


def count(layers: int) -> dict[str, Counter[str]]:
    """The kernels of forward and of backward, in bfloat16 by autocast, with dropout."""
    from cmsbert_fast.kernels import common

    config = make_config("tiny", backend="triton")
    config.num_hidden_layers, config.cms_layers = layers, list(range(layers))
    model = CMSBertForSequenceClassification(config).train()
    batch = ModelBatch.draw(config, LENGTHS, torch.device("cpu")).packed
    losses = []

    def forward() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(**batch).loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "device_class", lambda _: "sm_90")
        patch.setattr(capability, "why_not_triton", lambda *_: None)
        return {"forward": count_launches(forward), "backward": count_launches(lambda: losses[0].backward())}


@needs_compiler
def test_launches_of_a_layer() -> None:
    pytest.importorskip("triton")
    one, two = count(1), count(2)
    for name, most in MOST.items():
        layer = two[name] - one[name]
        assert {kernel: layer[kernel] for kernel in OURS[name]} == OURS[name]
        assert layer.total() == most, f"{name}: lower MOST where it is fewer: {dict(layer)}"
