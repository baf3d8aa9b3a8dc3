"""Layers without their modules: the outputs of the layers they stand for, and where they stay away."""

import functools
import gc
import weakref

import pytest
import torch
from torch.nn.utils import parametrizations

from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.models.cmsbert import direct_layer, untouched
from cmsbert_fast.models.cmsbert.direct_layer import DirectLayers
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.linear import api
from tests.models.baselines.systems import system
from tests.models.baselines.utterances import packed as packed_utterances
from tests.models.baselines.utterances import utterances
from tests.models.small import Wrapped, config, in_float32, lively, packed


@pytest.fixture
def direct(monkeypatch):
    """The layers that ran without their modules."""
    ran = []
    run = DirectLayers.run
    monkeypatch.setattr(DirectLayers, "run", lambda self, layers: ran.extend(layers) or run(self, layers))
    return ran


def outputs(model, inputs):
    with torch.no_grad():
        output = model.eval()(**inputs, output_hidden_states=True, output_shift_maps=True)
    return [output.logits, *output.hidden_states, *(m for maps in output.shift_maps for m in maps if m is not None)]


def together(model, inputs):
    """Without looking at what is between the layers."""
    with torch.no_grad():
        return [model.eval()(**inputs).logits]


def of_modules(model, inputs):
    handle = model.bert.encoder.layer[0].register_forward_hook(lambda *_: None)
    try:
        return outputs(model, inputs)
    finally:
        handle.remove()


@pytest.mark.parametrize("form", ["padded", "packed", "no visual", "one layer", "reference"])
def test_outputs_are_those_of_the_modules(batch, form, direct):
    options = {"one layer": dict(cms_layers=[0]), "reference": dict(backend="reference")}.get(form, {})
    model = lively(CMSBertCLRForSequenceClassification(config(**options)))
    inputs = batch
    if form == "no visual":
        inputs = {name: tensor for name, tensor in batch.items() if not name.startswith("visual")}
    elif form == "packed":
        inputs = packed(batch)
    expected = of_modules(model, inputs)
    assert direct == []
    actual = outputs(model, inputs)
    assert direct == list(model.bert.encoder.layer)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@pytest.fixture
def own_products(monkeypatch):
    if capability.why_not_compiled(torch.device("cpu"), torch.float32, (torch.float32,)):
        pytest.skip("needs a C++ compiler")
    monkeypatch.delenv("CMSBERT_BACKEND", raising=False)
    monkeypatch.setattr(capability, "why_not_own_products", lambda *_: None)
    monkeypatch.setattr(capability, "has_bfloat16_vectors", lambda: True)


@pytest.fixture
def in_one_call(monkeypatch):
    """Of each call of whole layers whether it gave an output."""
    gave = []
    real = direct_layer.bert_layers

    def watched(*arguments, **options):
        found = real(*arguments, **options)
        gave.append(found is not None)
        return found

    monkeypatch.setattr(direct_layer, "bert_layers", watched)
    return gave


FORMS = ["padded", "packed", "full", "no visual", "no frames", "rows of no sequence", "one layer"]


@pytest.mark.parametrize(("form", "autocast"), [*((form, False) for form in FORMS), ("padded", True)])
def test_with_our_products(batch, monkeypatch, own_products, direct, in_one_call, form, autocast):
    """In one call of compiled C++, which under autocast rounds operands of linear layers only."""
    monkeypatch.setattr(api, "LEAST_WORK", 0)
    options = dict(cms_layers=[1]) if form == "one layer" else {}
    model = lively(CMSBertCLRForSequenceClassification(config(**options))).float()
    inputs = in_float32(batch)
    if form == "full":
        inputs = {name: x for name, x in inputs.items() if not name.endswith("mask")}
    elif form == "no visual":
        inputs = {name: x for name, x in inputs.items() if not name.startswith("visual")}
    elif form == "no frames":
        inputs["visual_mask"] = torch.zeros_like(inputs["visual_mask"])
    elif form != "padded":
        inputs = packed(inputs)
    if form == "rows of no sequence":
        for name, fill in (("input_ids", 3), ("position_ids", 0)):
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, 2), value=fill)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, actual = of_modules(model, inputs), outputs(model, inputs)
        layers = list(model.bert.encoder.layer)
        assert direct == layers
        assert in_one_call == [True] * len(layers)
        assert torch.equal(*together(model, inputs), actual[0])
    assert direct == 2 * layers
    assert in_one_call == [True] * (len(layers) + 1)
    if autocast:
        torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=3e-2)
        return
    for a, e in zip(actual, expected, strict=True):  # hidden states and maps too
        torch.testing.assert_close(a, e, rtol=0, atol=5e-6)


def other_dtype(model, inputs):
    model.bert.encoder.layer[1].output.LayerNorm.double()


def other_device(model, inputs):
    model.bert.encoder.layer[1].output.dense.to("meta")


def other_inner_size(model, inputs):
    model.bert.encoder.layer[1].intermediate.dense = torch.nn.Linear(16, 20)


def other_norm_size(model, inputs):
    model.bert.encoder.layer[1].output.LayerNorm = torch.nn.LayerNorm(8)


def no_bias(model, inputs):
    model.bert.encoder.layer[1].attention.self.query = torch.nn.Linear(16, 16, bias=False)


def no_bias_of_a_gate(model, inputs):
    model.bert.encoder.layer[1].attention.self.gate_visual = torch.nn.Linear(16 + 5, 1, bias=False)


def plain_norm(model, inputs):
    model.bert.encoder.layer[1].output.LayerNorm = torch.nn.LayerNorm(16, elementwise_affine=False)


def bias_of_a_shift(model, inputs):
    model.bert.encoder.layer[1].attention.self.shift_visual = torch.nn.Linear(5, 16)


def sparse_weight(model, inputs):
    dense = model.bert.encoder.layer[1].intermediate.dense
    dense.weight = torch.nn.Parameter(dense.weight.detach().to_sparse_csr())


def parametrized_query(model, inputs):
    parametrizations.weight_norm(model.bert.encoder.layer[1].attention.self.query)


def parametrized_shift(model, inputs):
    parametrizations.weight_norm(model.bert.encoder.layer[1].attention.self.shift_visual)


def bias_of_a_shift_as_buffer(model, inputs):
    bias_of_a_shift(model, inputs)
    as_buffers(model.bert.encoder.layer[1].attention.self.shift_visual)


def modality_as_buffers(model, inputs):
    own = model.bert.encoder.layer[1].attention.self
    as_buffers(own.gate_visual)
    as_buffers(own.shift_visual)


def as_buffers(layer):
    for name, parameter in list(layer.named_parameters()):
        delattr(layer, name)
        layer.register_buffer(name, parameter.detach())


def other_heads(model, inputs):
    model.bert.encoder.layer[1].attention.self.heads = (2, 8)


def heads_of_the_configuration(model, inputs):
    model.config.num_attention_heads = 5  # layers keep their own


LAYERS = [other_dtype, other_device, other_inner_size, other_norm_size, no_bias, no_bias_of_a_gate, plain_norm]
LAYERS += [bias_of_a_shift, bias_of_a_shift_as_buffer, sparse_weight]
IN_ONE_CALL = [parametrized_query, parametrized_shift, modality_as_buffers, heads_of_the_configuration]


def _set(name, change):
    def set_lengths(model, inputs):
        inputs[name] = change(inputs[name])

    set_lengths.__name__ = f"{name} {change.__name__}"
    return set_lengths


def long(x):
    return x.long()


def short(length):
    return length - 1


def late(ends):
    return torch.cat([ends[:1] + 1, ends[1:]])


def falling(ends):
    return torch.cat([ends[:1], ends[2:3], ends[1:2], ends[3:]])


def beyond(ends):
    return torch.cat([ends[:-1], ends[-1:] + 1])


def none(ends):
    return ends[:1]


LENGTHS = [_set(f"max_length_{name}", short) for name in ("q", "visual", "acoustic")]
LENGTHS += [_set(f"cu_seq_lens_{name}", change) for name in ("q", "visual") for change in (long, late, falling, beyond)]
LENGTHS.append(_set("cu_seq_lens_visual", none))


@pytest.mark.parametrize("change", [*LAYERS, *LENGTHS, other_heads, *IN_ONE_CALL], ids=lambda f: f.__name__)
def test_unusual_layers_do_what_their_modules_do(batch, own_products, in_one_call, change):
    """The same result, or the same complaint."""
    model = lively(CMSBertCLRForSequenceClassification(config())).float()
    inputs = packed(in_float32(batch))
    change(model, inputs)
    found = []
    for run in (of_modules, outputs, together):
        try:
            found.append(run(model, inputs))
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            found.append([type(error), str(error).replace("[1, ", "[")])  # they hand on (1, T, D), or (T, D)
    expected, actual, whole = found
    assert in_one_call[:1] == ([] if change in LENGTHS else [True])
    if change in IN_ONE_CALL:
        assert in_one_call == [True] * (len(model.bert.encoder.layer) + 1)
    if isinstance(expected[0], type):
        assert actual == expected
        assert whole == expected
    else:
        assert change not in LENGTHS
        torch.testing.assert_close(whole[0], expected[0], rtol=0, atol=5e-6)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=5e-6)


class Flattened(torch.nn.Parameter):
    """A quantised weight, as torchao marks its own."""

    def __tensor_flatten__(self):
        raise NotImplementedError


def change_hook(layer):
    layer.register_forward_pre_hook(lambda *_: None)


def change_hook_within(layer):
    layer.output.dropout.register_forward_hook(lambda *_: None)


def change_forward_within(layer):
    module = layer.output.LayerNorm
    module.forward = functools.partial(type(module).forward, module)


def change_wrapped(layer):
    layer.attention.self.value = Wrapped(layer.attention.self.value)


def change_norm(layer):
    layer.output.LayerNorm = torch.nn.Identity()


def change_activation(layer):
    layer.intermediate.intermediate_act_fn = torch.nn.ReLU()


def change_parametrized_gate(layer):
    parametrizations.weight_norm(layer.attention.self.gate_visual)


def change_class(layer):
    part = layer.attention.output
    part.__class__ = type("Other", (type(part),), {})


def change_quantised(layer):
    layer.output.dense.weight = Flattened(layer.output.dense.weight.detach())


def change_dropout(layer):
    layer.attention.output.dropout = torch.nn.AlphaDropout()


def change_training(layer):
    layer.train()


def change_training_within(layer):
    layer.output.dropout.train()


def change_of_its_class(layer):
    layer.attention.__class__ = type("Other", (type(layer.attention),), {})


CHANGES = [value for name, value in globals().items() if name.startswith("change_")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_where_layers_are_called_as_modules(batch, change, direct):
    """Noticed though the layer ran without its modules before."""
    model = lively(CMSBertCLRForSequenceClassification(config())).eval()
    with torch.no_grad():
        model(**packed(batch))
        assert direct == list(model.bert.encoder.layer)
        direct.clear()
        change(model.bert.encoder.layer[1])
        model(**packed(batch))
    assert direct == []


def test_with_gradients_in_training_and_by_chunks(batch, direct):
    model = lively(CMSBertCLRForSequenceClassification(config())).eval()
    model(**packed(batch))
    with torch.no_grad():
        model.train()(**packed(batch))
        model.eval()
        model.config.chunk_size_feed_forward = 1
        model(**batch)
        assert direct == []
        model.config.chunk_size_feed_forward = 0
        model(**batch)
        assert direct


def test_what_else_calling_a_layer_would_do():
    layers = CMSBertCLRForSequenceClassification(config()).bert.encoder.layer
    assert all(map(untouched.is_untouched, layers))
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: None)
    assert not any(map(untouched.is_untouched, layers))
    hook.remove()
    assert all(map(untouched.is_untouched, layers))
    layers[0].compile()
    assert [untouched.is_untouched(layer) for layer in layers] == [False, *[True] * (len(layers) - 1)]
    layers[1].__class__ = type("Other", (type(layers[1]),), {})
    assert not untouched.is_untouched(layers[1])
    assert not untouched.is_untouched(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_text_of_other_systems(mode, direct):
    """Frozen text; other text where no gradients are wanted."""
    for text in ("bert", "bert-frozen"):
        model = system("tfn" if text == "bert-frozen" else "misa", text=text)
        inputs = packed_utterances(utterances(False), model)
        with mode():
            actual = model.rows(**inputs)["logits"]
            assert direct == list(model.bert.encoder.layer)
            direct.clear()
            model.bert.encoder.layer[0].register_forward_hook(lambda *_: None)
            assert torch.equal(model.rows(**inputs)["logits"], actual)
        assert direct == []


@pytest.mark.parametrize("hooked", [False, True])
def test_a_layer_that_is_looked_up_can_be_freed(hooked):
    model = CMSBertCLRForSequenceClassification(config())
    layer = model.bert.encoder.layer[0]
    assert untouched.is_untouched(layer)
    if hooked:
        layer.forward = functools.partial(type(layer).forward, layer)
    gone = weakref.ref(layer)
    del model, layer
    gc.collect()
    assert gone() is None
