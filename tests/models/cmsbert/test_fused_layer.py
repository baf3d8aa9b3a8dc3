"""Layers on fused operators: the loss and gradients of the layers they stand for, and where they stay away."""

import functools

import pytest
import torch
from torch.nn.utils import parametrizations

from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.models.cmsbert import fused_layer
from cmsbert_fast.models.inputs import Inputs
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.capability import INTERPRETED
from tests.models.cmsbert.test_rows_of_no_sequence import with_rest
from tests.models.small import Wrapped, config, lively, packed

PARTS = ["attention.self", "attention.output", "intermediate", "intermediate.intermediate_act_fn", "output"]
LABELS = torch.tensor([0.5, -1.0, 2.0, 0.0])


@pytest.fixture
def fused(monkeypatch):
    """Fuses on any backend, PyTorch's operators in the kernels' place; counts the layers."""
    ran = []
    run = fused_layer.FusedLayers._run
    monkeypatch.setattr(fused_layer.FusedLayers, "_run", lambda self, layer: ran.append(layer) or run(self, layer))
    monkeypatch.setattr(fused_layer, "choose_backend", lambda *_: "triton")
    return ran


def loss_and_gradients(model, inputs):
    model.zero_grad()
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items() if name in ("visual", "acoustic")}
    loss = model(**inputs | leaves, labels=LABELS.to(model.dtype)).loss
    loss.backward()
    named = [*model.named_parameters(), *leaves.items()]
    return loss.detach(), {name: x.grad.clone() for name, x in named if x.grad is not None}


def unfused(model, inputs):
    handle = model.bert.encoder.layer[0].register_forward_hook(lambda *_: None)
    try:
        return loss_and_gradients(model, inputs)
    finally:
        handle.remove()


def compare(model, inputs, fused, **tolerance):
    expected_loss, expected = unfused(model, inputs)
    assert fused == []
    loss, gradients = loss_and_gradients(model, inputs)
    assert fused == list(model.bert.encoder.layer)
    torch.testing.assert_close(loss, expected_loss, **tolerance)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            gradients[name], gradient, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("form", ["padded", "full", "packed", "no visual", "one layer", "rest", "frozen"])
def test_loss_and_gradients_are_those_of_the_modules(batch, form, fused):
    layers = dict(cms_layers=[0]) if form == "one layer" else {}
    model = lively(CMSBertCLRForSequenceClassification(config(backend="torch", **layers)))
    inputs = batch
    if form == "full":
        inputs = {name: tensor for name, tensor in batch.items() if "mask" not in name}
    elif form == "no visual":
        inputs = {name: tensor for name, tensor in batch.items() if not name.startswith("visual")}
    elif form in ("packed", "rest"):
        inputs = packed(batch)
    if form == "rest":
        inputs |= {name: with_rest(inputs[name], 0, dim=1) for name in ("input_ids", "position_ids")}
        inputs |= {name: with_rest(inputs[name], torch.nan) for name in ("visual", "acoustic")}
    if form == "frozen":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("encoder" not in name or "gate_visual" in name or "LayerNorm" in name)
    compare(model, inputs, fused, rtol=1e-9, atol=1e-11)


def test_under_autocast(batch, fused):
    """In bfloat16 each is as near the float32 loss and gradients as the other."""
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config(backend="torch"))
    inputs = {
        name: x.float() if x.is_floating_point() else x for name, x in packed(batch).items() if not isinstance(x, int)
    }
    inputs |= {name: x for name, x in packed(batch).items() if isinstance(x, int)}
    exact_loss, exact = unfused(model, inputs)
    errors = []
    for run in (unfused, loss_and_gradients):
        with torch.autocast("cpu", torch.bfloat16):
            loss, gradients = run(model, inputs)
        assert {g.dtype for g in gradients.values()} == {torch.float32}
        errors.append(sum((gradients[name] - g).norm() / (g.norm() + 1e-3) for name, g in exact.items()))
        torch.testing.assert_close(loss, exact_loss, rtol=2e-2, atol=0)
    assert len(fused) == 3
    assert errors[1] < 1.5 * errors[0]


def test_each_dropout_has_a_seed_of_its_own(batch, fused, monkeypatch):
    model = CMSBertCLRForSequenceClassification(config(backend="torch", hidden_dropout_prob=0.5)).train()
    drawn = []
    norm = fused_layer.residual_norm

    def record(*arguments, seed, **options):
        drawn.append((seed, options["dropout_p"]))
        return norm(*arguments, **options)

    monkeypatch.setattr(fused_layer, "residual_norm", record)
    inputs = {name: x.float() if x.is_floating_point() else x for name, x in batch.items()}
    model(**inputs, labels=LABELS)
    seeds = [seed for seed, p in drawn if p == 0.5]
    assert len({int(seed[0]) for seed in seeds}) == len(drawn) == 6
    assert all(seed.storage_offset() % 2 == 0 for seed in seeds)  # 16 bytes
    drawn.clear()
    model.eval()(**inputs)
    assert drawn == [(None, 0.0)] * 6


@pytest.mark.parametrize(
    "change",
    [
        "hook", "hook within", "checkpointing", "wrapped", "activation", "chunks", "narrow", "norm",
        "forward", "forward within", "parametrized gate", *PARTS,
    ],
)  # fmt: skip
def test_where_layers_are_called_as_modules(batch, change, fused):
    options = {"activation": dict(hidden_act="relu"), "chunks": dict(chunk_size_feed_forward=1)}.get(change, {})
    if change == "narrow":
        options = dict(hidden_size=8)
    model = lively(CMSBertCLRForSequenceClassification(config(backend="torch", **options))).train()
    layer = model.bert.encoder.layer[1]
    if change == "hook":
        layer.register_forward_pre_hook(lambda *_: None)
    elif change == "hook within":
        layer.output.dense.register_full_backward_hook(lambda *_: None)
    elif change == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    elif change == "wrapped":
        layer.attention.self.value = Wrapped(layer.attention.self.value)
    elif change == "norm":
        layer.output.LayerNorm = torch.nn.Identity()
    elif change.startswith("forward"):
        module = layer.output.dropout if change.endswith("within") else layer
        module.forward = functools.partial(type(module).forward, module)
    elif change == "parametrized gate":
        parametrizations.weight_norm(layer.attention.self.gate_visual)
    elif change in PARTS:
        part = layer.get_submodule(change)
        part.__class__ = type("Other", (type(part),), {})
    model(**(packed(batch) if change != "chunks" else batch), labels=LABELS.double())
    assert fused == []


def test_only_by_name(batch, monkeypatch):
    """Never by "auto": no device has timed them."""
    monkeypatch.delenv("CMSBERT_BACKEND", raising=False)
    monkeypatch.setattr(capability, "why_not_triton", lambda *_: None)
    model = CMSBertCLRForSequenceClassification(config())
    packing = model.bert.pack(Inputs(**batch)).batch
    found = []
    for model.config.backend in ("auto", "torch", "cpu", "reference", "triton"):
        layers = model.bert.encoder.layer
        found.append(fused_layer.FusedLayers.of(layers, torch.zeros(1, 22, 16), packing, model.config))
    assert [layers is None for layers in found] == [True] * 4 + [False]


@pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1")
def test_the_kernels_in_float16(batch):
    """Under autocast, with the interpreter's 16-bit dtype."""
    device = "cpu" if INTERPRETED else "cuda"
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config(num_hidden_layers=1)).to(device)
    inputs = {
        name: x if isinstance(x, int) else x.to(device, torch.float32 if x.is_floating_point() else x.dtype)
        for name, x in packed(batch).items()
    } | {"labels": LABELS.to(device)}
    found = []
    for backend, enabled in (("reference", False), ("torch", True), ("triton", True)):
        model.config.backend = backend
        model.zero_grad()
        with torch.autocast(device, torch.float16, enabled=enabled):
            loss = model(**inputs).loss
        loss.backward()
        found.append((loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (loss, exact), *others = found
    errors = [sum((g[name] - e).norm() / (e.norm() + 1e-3) for name, e in exact.items()) for _, g in others]
    assert abs(others[1][0] - loss) <= 2 * abs(others[0][0] - loss) + 1e-3
    assert errors[1] < 1.5 * errors[0]
