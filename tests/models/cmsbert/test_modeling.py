"""The models: against Hugging Face's BERT, and against the literal equations."""

import pytest
import torch
from transformers import BertConfig, BertModel

from cmsbert_fast import (
    CMSBertCLRForSequenceClassification,
    CMSBertForSequenceClassification,
    CMSBertModel,
    reference,
)
from cmsbert_fast.ops.attention import triton as attention_triton
from cmsbert_fast.ops.capability import INTERPRETED
from tests.models.small import SIZES, SMALL, config, lively, packed


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_zero_cms_weights_are_exactly_bert(tmp_path, batch, with_mask, backend):
    torch.manual_seed(0)
    bert = lively(BertModel(BertConfig(**SMALL), add_pooling_layer=False))
    bert.save_pretrained(tmp_path)
    model = CMSBertModel.from_pretrained(tmp_path, **SIZES, dtype=torch.float64, backend=backend).eval()
    for layer in model.encoder.layer:
        layer.attention.self.shift_visual.weight.data.zero_()
        layer.attention.self.shift_acoustic.weight.data.zero_()
    if not with_mask:
        batch = {name: tensor for name, tensor in batch.items() if "mask" not in name}
    expected = bert(batch["input_ids"], attention_mask=batch.get("attention_mask"), output_hidden_states=True)
    output = model(**batch, output_hidden_states=True)
    valid = batch.get("attention_mask", torch.ones(4, 9)).bool()
    assert len(output.hidden_states) == len(expected.hidden_states) == 4
    for mine, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
        error = (mine - theirs)[valid].abs().max()
        limit = 0 if backend == "torch" and not with_mask else 1e-15 * theirs[valid].abs().max()
        assert error <= limit


def test_no_cms_layers_is_bert_and_one_layer_is_not(batch):
    torch.manual_seed(0)
    model = lively(CMSBertModel(config(cms_layers=[])))
    without = {name: tensor for name, tensor in batch.items() if name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(**batch).last_hidden_state, model(**without).last_hidden_state, rtol=0, atol=0)
    model = lively(CMSBertModel(config(cms_layers=[0])))
    assert [hasattr(layer.attention.self, "gate_visual") for layer in model.encoder.layer] == [True, False, False]
    assert (model(**batch).last_hidden_state - model(**without).last_hidden_state).abs().max() > 0.1


def test_an_utterance_without_frames_has_a_direction_from_the_start(batch):
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config()).double()
    output = model(**batch, labels=torch.tensor([1.0, 1.05, -2.0, 0.0], dtype=torch.float64))
    output.loss.backward()
    assert output.visual_embeds[2].norm() > 0.1  # its visual_mask is all 0
    assert max(p.grad.abs().max() for p in model.parameters()) < 100


def literal_clr(model, batch):
    """Eq. 1-16 with the reference, layer by layer, from the model's own weights."""
    state, settings = model.state_dict(), model.config
    tokens, masks = batch["attention_mask"].bool(), {m: batch[f"{m}_mask"].bool() for m in ("visual", "acoustic")}
    hidden = model.bert.embeddings(batch["input_ids"])
    for index, layer in enumerate(model.bert.encoder.layer):
        self_attention, a = layer.attention.self, torch.zeros_like(hidden)
        if index in settings.cms_layers:
            for m, mask in masks.items():
                gate = getattr(self_attention, f"gate_{m}")
                gates = reference.gate(hidden, batch[m], gate.weight, gate.bias, settings.gate_activation)
                a = a + reference.shift(gates, batch[m], getattr(self_attention, f"shift_{m}").weight, mask)
        q, k, v = (
            getattr(self_attention, name)(hidden).unflatten(-1, (settings.num_attention_heads, -1))
            for name in ("query", "key", "value")
        )
        z = reference.attention(q, k, v, a, tokens).flatten(2)
        hidden = layer.feed_forward_chunk(layer.attention.output(z, hidden))
    pooled = {"linguistic": reference.mean_pool(hidden, tokens)}
    for m, mask in masks.items():
        h = reference.lstm(batch[m], mask, dict(getattr(model, f"{m}_lstm").named_parameters()))
        pooled[m] = reference.mean_pool(h, mask)
    projected = {
        m: reference.projector(u, dict(getattr(model, f"{m}_projector").named_parameters())) for m, u in pooled.items()
    }
    fusion = {name.removeprefix("fusion."): tensor for name, tensor in state.items() if name.startswith("fusion.")}
    logits = reference.fusion([middle for middle, _ in projected.values()], fusion)
    return logits, {m: z for m, (_, z) in projected.items()}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_clr_is_the_equations(batch, activation, backend):
    torch.manual_seed(0)
    model = lively(
        CMSBertCLRForSequenceClassification(config(gate_activation=activation, cms_layers=[0, 2], backend=backend))
    )
    model.nu.fill_(0.3)
    labels = torch.tensor([1.0, 1.05, -2.0, 0.0], dtype=torch.float64)
    output = model(**batch, labels=labels)
    logits, embeds = literal_clr(model, batch)
    torch.testing.assert_close(output.logits, logits, rtol=0, atol=1e-12)
    for m, z in embeds.items():
        torch.testing.assert_close(output[f"{m}_embeds"], z, rtol=0, atol=1e-12)
    task = (logits[:, 0] - labels).square().mean()
    contrastive = reference.pairwise_contrastive_loss(*embeds.values(), labels)
    torch.testing.assert_close(output.contrastive_loss, contrastive, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.loss, reference.total_loss(task, contrastive, model.nu), rtol=0, atol=1e-12)


def test_padding_packing_and_its_content_change_nothing(batch):
    torch.manual_seed(0)
    model = lively(CMSBertCLRForSequenceClassification(config()))
    labels = torch.tensor([1.0, 1.05, -2.0, 0.0], dtype=torch.float64)
    expected = model(**batch, labels=labels, output_hidden_states=True, output_shift_maps=True)
    tokens = batch["attention_mask"].bool()

    flat = model(**packed(batch), labels=labels, output_hidden_states=True, output_shift_maps=True)
    torch.testing.assert_close(flat.loss, expected.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(flat.hidden_states[-1][0], expected.hidden_states[-1][tokens], rtol=0, atol=1e-12)
    assert (expected.hidden_states[-1][~tokens] == 0).all()

    poisoned = dict(batch)
    poisoned["input_ids"] = batch["input_ids"].masked_fill(~tokens, 7)
    for m in ("visual", "acoustic"):
        poisoned[m] = batch[m].masked_fill(~batch[f"{m}_mask"].bool()[..., None], torch.nan)
    poisoned = {name: torch.cat([tensor, torch.zeros_like(tensor[:, :3])], dim=1) for name, tensor in poisoned.items()}
    output = model(**poisoned, labels=labels)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.visual_embeds, expected.visual_embeds, rtol=0, atol=1e-12)

    gradients = []
    for inputs in (batch, packed(batch)):
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-11, msg=name)


@pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("form", ["padded", "full", "packed", "no visual"])
def test_the_kernels_give_the_references_loss_and_gradients(batch, form, monkeypatch):
    device = "cpu" if INTERPRETED else "cuda"
    torch.manual_seed(0)
    model = lively(CMSBertCLRForSequenceClassification(config(num_hidden_layers=2))).float().to(device)
    inputs = {
        "padded": batch,
        "full": {name: tensor for name, tensor in batch.items() if "mask" not in name},
        "packed": packed(batch),
        "no visual": {name: tensor for name, tensor in batch.items() if not name.startswith("visual")},
    }[form] | {"labels": torch.tensor([1.0, 1.05, -2.0, 0.0])}
    inputs = {
        name: x if isinstance(x, int) else x.to(device, torch.float32 if x.is_floating_point() else x.dtype)
        for name, x in inputs.items()
    }
    launched, run = [], attention_triton.kernels.launch.run

    def record(kernel, *arguments):
        launched.append(kernel.fn.__name__)
        run(kernel, *arguments)

    monkeypatch.setattr(attention_triton.kernels.launch, "run", record)

    def loss_and_gradients(backend):
        model.config.backend = backend
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

    expected, gradients = loss_and_gradients("reference")
    assert not launched
    loss, found = loss_and_gradients("triton")
    assert launched.count("medium_forward_kernel") == 2  # one launch a layer
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, gradient in gradients.items():
        atol = 1e-5 + 1e-4 * gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("m", ["visual", "acoustic"])
def test_an_absent_modality_is_a_fully_masked_one(batch, m):
    model = lively(CMSBertCLRForSequenceClassification(config()))
    masked = batch | {f"{m}_mask": torch.zeros_like(batch[f"{m}_mask"])}
    absent = {name: tensor for name, tensor in batch.items() if not name.startswith(m)}
    output, other = (
        model(**inputs, labels=torch.randn(4, generator=torch.Generator().manual_seed(0)).double())
        for inputs in (masked, absent)
    )
    torch.testing.assert_close(output.logits, other.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.loss, other.loss, rtol=0, atol=1e-12)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("size", [0, None])
def test_a_modality_of_size_zero_does_not_exist(batch, size):
    model = lively(CMSBertCLRForSequenceClassification(config(visual_size=size)))
    assert not any("visual" in name for name in model.state_dict())
    assert model.fusion.dense.in_features == 2 * 16
    inputs = {name: tensor for name, tensor in batch.items() if not name.startswith("visual")}
    labels = torch.tensor([1.0, 1.05, -2.0, 0.0], dtype=torch.float64)
    output = model(**inputs, labels=labels)
    assert output.visual_embeds is None
    expected = reference.pairwise_contrastive_loss(output.linguistic_embeds, None, output.acoustic_embeds, labels)
    torch.testing.assert_close(output.contrastive_loss, expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="the model has visual_size=0"):
        model(**batch)
    with pytest.raises(ValueError, match="needs a second modality"):
        CMSBertCLRForSequenceClassification(config(visual_size=0, acoustic_size=0))


def test_shift_maps_are_the_gates(batch):
    model = lively(CMSBertModel(config(cms_layers=[1])))
    output = model(**batch, output_shift_maps=True, output_hidden_states=True)
    ((visual, acoustic),) = output.shift_maps
    gate = model.encoder.layer[1].attention.self.gate_visual
    expected = reference.gate(output.hidden_states[1], batch["visual"], gate.weight, gate.bias)
    valid = batch["attention_mask"].bool()[:, :, None] & batch["visual_mask"].bool()[:, None]
    torch.testing.assert_close(visual[valid], expected[:, :, : visual.shape[2]][valid], rtol=0, atol=1e-12)
    assert (visual[~valid] == 0).all()
    assert acoustic.shape == (4, 9, 8)
    assert model(**batch).shift_maps is None


def test_classification_labels(batch):
    model = lively(CMSBertCLRForSequenceClassification(config(num_labels=4)))
    labels = torch.tensor([0, 1, 1, 3])
    output = model(**batch, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits, labels)
    torch.testing.assert_close(output.task_loss, expected)
    with pytest.raises(ValueError, match="class indices as integers"):
        model(**batch, labels=labels.double())


def test_classifier_without_contrast(batch):
    model = lively(CMSBertForSequenceClassification(config()))
    labels = torch.tensor([1.0, 1.05, -2.0, 0.0], dtype=torch.float64)
    output = model(**batch, labels=labels, output_hidden_states=True)
    pooled = reference.mean_pool(output.hidden_states[-1], batch["attention_mask"].bool())
    torch.testing.assert_close(output.logits, model.classifier(pooled), rtol=0, atol=1e-12)
    torch.testing.assert_close(output.loss, (output.logits[:, 0] - labels).square().mean())
    assert model(**batch, labels=labels, return_dict=False)[0] == output.loss
