"""Weights held in bfloat16 during inference."""

import pytest
import torch
from torch import nn

from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.models.casting import cast_weights
from cmsbert_fast.models.cmsbert import direct_layer
from cmsbert_fast.models.registry import BASELINES, VARIANTS
from cmsbert_fast.ops import capability
from tests.models.baselines.systems import needs, system
from tests.models.baselines.utterances import packed, utterances
from tests.models.small import OURS, config, in_float32, lively

HALF = torch.bfloat16


def identities(model):
    return {name: (id(x), x.dtype, x.requires_grad) for name, x in model.named_parameters()}


def test_what_is_cast_and_that_it_comes_back():
    model = CMSBertCLRForSequenceClassification(config())
    before, values = identities(model), {name: x.clone() for name, x in model.state_dict().items()}
    with torch.no_grad(), cast_weights(model, HALF):
        cast = {name for name, x in model.named_parameters() if x.dtype == HALF}
        model.fusion.dense.weight.zero_()
        with cast_weights(model, HALF):  # of another thread
            pass
        assert cast == {name for name, x in model.named_parameters() if x.dtype == HALF}
    expected = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    expected -= {name for name in expected if ".gate_" in name or ".shift_" in name}
    assert cast == expected | {"fusion.transformer.self_attn.in_proj_weight"}
    assert identities(model) == before
    for name, x in model.state_dict().items():
        assert torch.equal(x, values[name])
    with torch.no_grad(), pytest.raises(ZeroDivisionError), cast_weights(model, HALF):
        1 / 0  # noqa: B018
    with pytest.raises(ValueError, match="inference"), cast_weights(model, HALF):
        pass
    assert identities(model) == before


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("variant", OURS)
def test_autocast_casts_to_the_same_numbers(variant, own, batch, monkeypatch):
    """By the operators, and by layers in one call."""
    if own and library.why_not():
        pytest.skip("needs a C++ compiler")
    monkeypatch.delenv("CMSBERT_BACKEND", raising=False)
    monkeypatch.setattr(capability, "why_not_own_products", lambda *_: None if own else "PyTorch's are as fast")
    monkeypatch.setattr(capability, "has_bfloat16_vectors", lambda: True)
    calls, real = [], direct_layer.bert_layers
    monkeypatch.setattr(direct_layer, "bert_layers", lambda *a, **o: (calls.append(real(*a, **o)), calls[-1])[1])
    torch.manual_seed(0)
    model = lively(VARIANTS[variant].model_class(config(num_labels=2))).float()
    same_with_weights_cast(model, in_float32(batch))
    assert [x is not None for x in calls] == [True] * (3 if own else 0)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines(name):
    model = system(name).float()
    batch = utterances("word_frames" in needs(name), "frames_of_words" in needs(name))
    same_with_weights_cast(model, in_float32(packed(batch, model)))


def same_with_weights_cast(model, inputs):
    with torch.inference_mode(), torch.autocast("cpu", HALF):
        expected = model(**inputs).logits
        with cast_weights(model, HALF):
            assert torch.equal(model(**inputs).logits, expected)
    with torch.inference_mode():
        assert not torch.equal(model(**inputs).logits, expected.float())


def test_a_frozen_bert_stays():
    """Its features are computed in float32, whatever autocast says (training.text_features)."""
    model = system("tfn", text="bert-frozen").float()
    before = identities(model.bert)
    with torch.no_grad(), cast_weights(model, HALF):
        assert identities(model.bert) == before
        model.text_features(input_ids=torch.ones(1, 3, dtype=torch.int64))


def parametrized(layer):
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())


def of_another_class(layer):
    quantised = type("Quantised", (torch.Tensor,), {"__tensor_flatten__": lambda self: None})
    layer._parameters["weight"] = layer.weight.detach().as_subclass(quantised)


def wrapped(layer):
    layer.__class__ = type("Adapted", (type(layer),), {"forward": lambda self, x: x})


def wide(layer):
    layer.double()


@pytest.mark.parametrize("change", [parametrized, of_another_class, wrapped, wide])
def test_what_is_no_plain_float32_stays(change):
    layer = CMSBertCLRForSequenceClassification(config()).fusion.dense
    change(layer)
    before = dict(layer._parameters)
    with torch.no_grad(), cast_weights(layer, HALF):
        assert all(layer._parameters[name] is x for name, x in before.items())


def test_a_watched_or_parametrized_attention_stays():
    for change in (
        lambda attention: attention.register_forward_hook(lambda *_: None),
        lambda attention: nn.utils.parametrize.register_parametrization(attention, "in_proj_weight", nn.Identity()),
    ):
        fusion = CMSBertCLRForSequenceClassification(config()).fusion
        change(fusion.transformer.self_attn)
        before = identities(fusion.transformer.self_attn)
        out = fusion.transformer.self_attn.out_proj.weight
        with torch.no_grad(), cast_weights(fusion, HALF):
            now = identities(fusion.transformer.self_attn)
            assert {name for name in now if now[name] != before[name]} <= {"out_proj.weight"}
        assert fusion.transformer.self_attn.out_proj.weight is out
