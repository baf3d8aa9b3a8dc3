"""Weights in half precision meanwhile."""

import pytest
import torch
from torch import nn

from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.models.casting import cast_weights
from cmsbert_fast.models.registry import BASELINES, VARIANTS
from cmsbert_fast.ops import capability
from tests.models.baselines.systems import needs, system
from tests.models.baselines.utterances import packed, utterances
from tests.models.small import OURS, config, lively

HALF = torch.bfloat16


def identities(model):
    return {name: (id(x), x.dtype, x.requires_grad) for name, x in model.named_parameters()}


def test_what_is_cast_and_that_it_comes_back():
    model = CMSBertCLRForSequenceClassification(config())
    before, values = identities(model), {name: x.clone() for name, x in model.state_dict().items()}
    with cast_weights(model, HALF):
        cast = {name for name, x in model.named_parameters() if x.dtype == HALF}
        with torch.no_grad():
            model.fusion.dense.weight.zero_()
    expected = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    expected -= {name for name in expected if ".gate_" in name or ".shift_" in name}
    assert cast == expected | {"fusion.transformer.self_attn.in_proj_weight"}
    assert identities(model) == before
    for name, x in model.state_dict().items():
        assert torch.equal(x, values[name])
    with pytest.raises(ZeroDivisionError), cast_weights(model, HALF):
        1 / 0  # noqa: B018
    assert identities(model) == before


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("variant", OURS)
def test_autocast_casts_to_the_same_numbers(variant, own, batch, monkeypatch):
    """By the operators, and by layers in one call."""
    monkeypatch.setattr(capability, "why_not_own_products", lambda *_: None if own else "PyTorch's are as fast")
    monkeypatch.setattr(capability, "has_fast_bfloat16", lambda _: True)
    torch.manual_seed(0)
    model = lively(VARIANTS[variant].model_class(config(num_labels=2))).float()
    same_with_weights_cast(model, in_float32(batch))


@pytest.mark.parametrize("name", BASELINES)
def test_baselines(name):
    model = system(name).float()
    batch = utterances("word_frames" in needs(name), "frames_of_words" in needs(name))
    same_with_weights_cast(model, in_float32(packed(batch, model)))


def in_float32(inputs):
    return {name: x.float() if torch.is_tensor(x) and x.is_floating_point() else x for name, x in inputs.items()}


def same_with_weights_cast(model, inputs):
    with torch.inference_mode(), torch.autocast("cpu", HALF):
        expected = model(**inputs).logits
        with cast_weights(model, HALF):
            assert torch.equal(model(**inputs).logits, expected)
    with torch.inference_mode():
        assert not torch.equal(model(**inputs).logits, expected.float())


def test_wrapped_and_quantised_weights_stay():
    model = nn.ModuleDict({"layer": CMSBertCLRForSequenceClassification(config()).fusion.dense})
    nn.utils.parametrize.register_parametrization(model["layer"], "weight", nn.Identity())
    before = identities(model)
    with cast_weights(model, HALF):
        assert identities(model) == before
