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
MOST = {
    "module by module": {"forward": 47, "backward": 82},  # where a layer is hooked, or not on the backend "triton"
    "fused": {"forward": 13, "backward": 23},
}
ATTENTION = {"forward": ("short_forward",), "backward": ("short_backward", "short_gate_backward")}
FUSED = {
    "forward": {"residual_norm_forward": 2, "bias_gelu_forward": 1, "addmm": 1, "mm": 3, "_foreach_copy_": 1},
    "backward": {"residual_norm_backward": 2, "bias_gelu_backward": 1, "cat": 1, "_foreach_copy_": 1},
}


def count(layers: int, fused: bool) -> dict[str, Counter[str]]:
    """The kernels of forward and of backward, in bfloat16 by autocast, with dropout."""
    from cmsbert_fast.kernels import common

    config = make_config("tiny", backend="triton")
    config.num_hidden_layers, config.cms_layers = layers, list(range(layers))
    model = CMSBertForSequenceClassification(config).train()
    if not fused:
        for layer in model.bert.encoder.layer:
            layer.register_forward_hook(lambda *_: None)
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
@pytest.mark.parametrize("kind", MOST)
def test_launches_of_a_layer(kind: str) -> None:
    pytest.importorskip("triton")
    one, two = count(1, kind == "fused"), count(2, kind == "fused")
    for name, most in MOST[kind].items():
        layer = two[name] - one[name]
        expected = dict.fromkeys(ATTENTION[name], 1) | (FUSED[name] if kind == "fused" else {})
        assert {kernel: layer[kernel] for kernel in expected} == expected
        assert layer.total() == most, f"{name}: lower MOST where it is fewer: {dict(layer)}"
