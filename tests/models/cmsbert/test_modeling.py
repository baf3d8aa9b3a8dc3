"""The models: against Hugging Face's BERT, against the literal equations, and as users of Hugging Face expect them."""

import inspect
import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel

from cmsbert_fast import (
    CMSBertCLRForSequenceClassification,
    CMSBertConfig,
    CMSBertForSequenceClassification,
    CMSBertModel,
    reference,
)
from cmsbert_fast.ops.attention import triton as attention_triton

SMALL = dict(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=40,
)
SIZES = dict(visual_size=5, acoustic_size=3)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def config(**changes):
    return CMSBertConfig(**(SMALL | SIZES | NO_DROPOUT | changes))


def lively(model):
    """Larger weights than the initial ones, so that gates and shifts matter to the result; float64, eval."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.double().eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return dict(
        input_ids=torch.randint(0, 50, (4, 9), generator=generator),
        attention_mask=(torch.arange(9) < torch.tensor([9, 1, 5, 7])[:, None]).long(),
        visual=torch.randn(4, 6, 5, generator=generator, dtype=torch.float64),
        acoustic=torch.randn(4, 8, 3, generator=generator, dtype=torch.float64),
        visual_mask=(torch.arange(6) < torch.tensor([3, 6, 0, 1])[:, None]).long(),
        acoustic_mask=(torch.arange(8) < torch.tensor([8, 2, 1, 0])[:, None]).long(),
    )


def packed(batch):
    """The same batch as Hugging Face's padding-free convention has it."""
    inputs = {}
    tokens = batch["attention_mask"].bool()
    inputs["input_ids"] = batch["input_ids"][tokens][None]
    inputs["position_ids"] = torch.arange(tokens.shape[1]).expand_as(tokens)[tokens][None]
    for name, mask in (
        ("q", tokens),
        ("visual", batch["visual_mask"].bool()),
        ("acoustic", batch["acoustic_mask"].bool()),
    ):
        lengths = mask.sum(1)
        inputs[f"cu_seq_lens_{name}"] = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        inputs[f"max_length_{name}"] = int(lengths.max())
        if name != "q":
            inputs[name] = batch[name][mask]
    return inputs | dict(cu_seq_lens_k=inputs["cu_seq_lens_q"], max_length_k=inputs["max_length_q"])


# ------------------------------------------------------------------ BERT


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


def test_from_pretrained_reports_only_the_new_weights_and_initialises_them(tmp_path):
    BertModel(BertConfig(**SMALL), add_pooling_layer=True).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model, report = CMSBertCLRForSequenceClassification.from_pretrained(tmp_path, **SIZES, output_loading_info=True)
    new = {name for name in model.state_dict() if "gate_" in name or "shift_" in name or not name.startswith("bert.")}
    assert set(report["missing_keys"]) == new
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert model.nu == 1
    for name, bound in (("visual_lstm.weight_hh_l0", 0.25), ("acoustic_projector.dense.bias", 0.25)):
        values = model.get_parameter(name).abs()
        assert 0.5 * bound < values.max() <= bound, name  # uniform in +-1 / sqrt(16), as torch's own modules start
    attention = model.bert.encoder.layer[1].attention.self
    assert attention.shift_visual.weight.std().item() == pytest.approx(0.02, rel=0.4)
    assert (attention.gate_visual.bias == 0).all()
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), name
        assert tensor.abs().max() < 10, name


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(ValueError, match="is a roberta checkpoint; CMSBERT starts from a bert checkpoint"):
        CMSBertModel.from_pretrained(tmp_path)


def test_an_utterance_without_frames_has_a_direction_from_the_start(batch):
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config()).double()
    output = model(**batch, labels=torch.tensor([1.0, 1.05, -2.0, 0.0], dtype=torch.float64))
    output.loss.backward()
    assert output.visual_embeds[2].norm() > 0.1  # its visual_mask is all 0
    assert max(p.grad.abs().max() for p in model.parameters()) < 100


def test_settings_given_to_from_pretrained_are_checked_and_completed(tmp_path):
    CMSBertModel(config()).save_pretrained(tmp_path)
    assert CMSBertModel.from_pretrained(tmp_path, num_hidden_layers=1).config.cms_layers == [0]
    for message, fields in {
        "gate_activation='gelu' is unknown": dict(gate_activation="gelu"),
        r"cms_layers names \[99\]": dict(cms_layers=[99]),
        "projection_size=3 cannot be split": dict(projection_size=3),
    }.items():
        with pytest.raises(ValueError, match=message):
            CMSBertModel.from_pretrained(tmp_path, **fields)


def test_auto_class_loads_the_class_that_was_saved(tmp_path, batch):
    model = lively(CMSBertForSequenceClassification(config()))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert isinstance(loaded, CMSBertForSequenceClassification)
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=0, atol=1e-14)


@pytest.mark.parametrize("num_labels", [1, 2, 4])
def test_save_and_load_round_trip_through_the_auto_classes(tmp_path, batch, num_labels):
    torch.manual_seed(0)
    model = lively(
        CMSBertCLRForSequenceClassification(config(num_labels=num_labels, cms_layers=[0, 2], backend="torch"))
    )
    model.nu.fill_(0.25)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert "backend" not in json.loads((tmp_path / "config.json").read_text())
    assert AutoConfig.from_pretrained(tmp_path).cms_layers == [0, 2]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert isinstance(loaded, CMSBertCLRForSequenceClassification)
    assert loaded.nu == 0.25
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=0, atol=1e-14)
    encoder, report = AutoModel.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    assert isinstance(encoder, CMSBertModel)
    assert not report["missing_keys"]


# ------------------------------------------------------------------ the equations


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


@pytest.mark.skipif(
    not (attention_triton.INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)
@pytest.mark.parametrize("form", ["padded", "full", "packed", "no visual"])
def test_the_kernels_give_the_references_loss_and_gradients(batch, form, monkeypatch):
    device = "cpu" if attention_triton.INTERPRETED else "cuda"
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


def test_the_real_padding_free_collator_is_understood(batch):
    """All that Hugging Face's DataCollatorWithFlattening says of a batch when asked, and single utterances agree."""
    from transformers import DataCollatorWithFlattening

    model = CMSBertModel(config()).eval()
    masks = batch["attention_mask"].bool()
    rows = [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], masks, strict=True)]
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    collated = collate([{"input_ids": row, "labels": row} for row in rows])
    collated.pop("labels")
    assert {"seq_idx", "cu_seq_lens_k", "max_length_k"} <= set(collated)
    expected = torch.cat([model(torch.tensor([row])).last_hidden_state[0] for row in rows])
    torch.testing.assert_close(model(**collated).last_hidden_state[0], expected, rtol=1e-4, atol=1e-5)


def test_position_ids_of_packed_input_may_be_left_out(batch):
    model = lively(CMSBertModel(config()))
    inputs = packed(batch)
    expected = model(**inputs).last_hidden_state
    del inputs["position_ids"]
    assert torch.equal(model(**inputs).last_hidden_state, expected)


def test_position_ids_that_start_anew_are_utterances(batch):
    """What Hugging Face's DataCollatorWithFlattening gives by default: position_ids and nothing else."""
    model = lively(CMSBertModel(config()))
    inputs = packed(batch)
    frameless = {name: inputs[name] for name in ("input_ids", "position_ids")}
    lengths = {name: inputs[name] for name in ("cu_seq_lens_q", "max_length_q")}
    expected = model(**frameless, **lengths).last_hidden_state
    assert torch.equal(model(**frameless).last_hidden_state, expected)
    one = {"input_ids": frameless["input_ids"], "position_ids": torch.arange(frameless["input_ids"].shape[1])[None]}
    assert not torch.equal(model(**one).last_hidden_state, expected)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**frameless).last_hidden_state, expected, rtol=0, atol=1e-12)


def test_masks_with_holes_equal_the_tokens_left(batch):
    model = lively(CMSBertModel(config()))
    batch["attention_mask"] = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 0, 1]]).expand(4, -1)
    output = model(**batch).last_hidden_state
    keep = batch["attention_mask"][0].bool()
    alone = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
    alone |= dict(input_ids=batch["input_ids"][:, keep], position_ids=torch.arange(9)[keep].expand(4, -1))
    torch.testing.assert_close(output[:, keep], model(**alone).last_hidden_state, rtol=0, atol=1e-12)


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
    with pytest.raises(ValueError, match="the model was made for visual_size=0"):
        model(**batch)
    with pytest.raises(ValueError, match="contrasts modalities"):
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


@pytest.mark.parametrize("kind", [CMSBertForSequenceClassification, CMSBertCLRForSequenceClassification])
def test_inputs_are_named_in_the_signature(kind):
    """The Hugging Face Trainer drops every column that is not."""
    names = ["input_ids", "attention_mask", "token_type_ids", "visual", "acoustic", "visual_mask", "acoustic_mask"]
    assert list(inspect.signature(kind.forward).parameters)[1:9] == [*names, "labels"]


# ------------------------------------------------------------------ compile, checkpointing, autocast


@pytest.mark.parametrize("form", ["padded", "packed"])
def test_compiles_without_a_graph_break_to_the_same_loss_and_gradients(batch, form):
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config(num_hidden_layers=2)).double()
    labels = torch.tensor([1.0, 1.05, -2.0, 0.0], dtype=torch.float64)
    inputs = dict(batch if form == "padded" else packed(batch), labels=labels)
    expected = model(**inputs)
    expected.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.compiler.reset()
    output = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_compiles_without_a_graph_break_in_bfloat16(batch, dropout):
    """In training mode under autocast: compiled code's dropout is PyTorch's own."""
    torch.compiler.reset()
    batch = {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}
    model = CMSBertCLRForSequenceClassification(config(num_hidden_layers=1, hidden_dropout_prob=dropout)).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        loss = compiled(**batch, labels=torch.zeros(4)).loss
        expected = model(**batch, labels=torch.zeros(4)).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(loss, expected, rtol=0.5 if dropout else 0.02, atol=0)


def test_checkpointing_gives_the_same_gradients(batch):
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(
        config(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    ).double()
    labels = torch.tensor([1.0, 1.05, -2.0, 0.0], dtype=torch.float64)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train().zero_grad()
        torch.manual_seed(3)
        model(**batch, labels=labels).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert model.bert.encoder.layer[0].gradient_checkpointing
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(batch, dtype):
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config())
    batch = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
    labels = torch.tensor([1.0, 1.05, -2.0, 0.0])
    expected = model(**batch, labels=labels).loss
    with torch.autocast("cpu", dtype):
        output = model(**batch, labels=labels)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected, rtol=2e-2, atol=0)
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_half_precision_models_take_float32_frames(batch):
    model = CMSBertCLRForSequenceClassification(config()).to(torch.bfloat16)
    assert model(**batch, labels=torch.zeros(4)).loss.isfinite()


def test_hugging_face_trainer_trains_it(tmp_path, batch):
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config())
    labels = torch.tensor([1.0, 1.05, -2.0, 0.0])
    rows = [
        {name: tensor[k].float() if tensor.is_floating_point() else tensor[k] for name, tensor in batch.items()}
        | {"labels": labels[k]}
        for k in range(4)
    ]
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=15,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        use_cpu=True,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    before = model(**batch, labels=labels).loss.item()
    Trainer(model, arguments, train_dataset=rows).train()
    trained = model.eval()(**batch, labels=labels)
    assert trained.loss.item() < 0.8 * before
    predictions = Trainer(model, arguments).predict(rows).predictions
    assert predictions[0].shape == (4, 1)


def test_hugging_face_trainer_accumulates_the_mean(tmp_path, batch):
    """Two parts of 4 give the step of one batch of 8: the Trainer divides the loss by the number of parts."""
    from transformers import Trainer, TrainingArguments

    labels = torch.linspace(-3, 3, 8)
    rows = [
        {name: tensor[k % 4].float() if tensor.is_floating_point() else tensor[k % 4] for name, tensor in batch.items()}
        | {"labels": labels[k]}
        for k in range(8)
    ]
    weights = []
    for parts in (1, 2):
        torch.manual_seed(0)
        model = CMSBertForSequenceClassification(config())
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=8 // parts,
            gradient_accumulation_steps=parts,
            optim="sgd",  # whose step is as long as the gradient
            max_grad_norm=0,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=rows).train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    assert weights[0].abs().max() > 1e-3
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------ errors


def test_wrong_inputs_are_named(batch):
    model = CMSBertModel(config())
    flat = packed(batch)
    for message, inputs in {
        "either input_ids or inputs_embeds": {},
        "attention_mask has shape": batch | dict(attention_mask=batch["attention_mask"][:, :4]),
        "visual_mask has shape": batch | dict(visual_mask=batch["visual_mask"][:, :4]),
        "frames of size 3, but the model was made for visual_size=5": batch | dict(visual=batch["acoustic"]),
        "acoustic holds 3 utterances but the tokens 4": batch
        | dict(acoustic=batch["acoustic"][:3], acoustic_mask=None),
        "leave it out": flat | dict(attention_mask=batch["attention_mask"]),
        r"shape \(1, T\) and max_length_q": {n: t for n, t in flat.items() if n != "max_length_q"},
        "needs cu_seq_lens_visual": {n: t for n, t in flat.items() if n != "cu_seq_lens_visual"},
        "visual_mask belongs to padded visual": flat | dict(visual_mask=batch["visual_mask"]),
        "in self-attention they are the same": flat | dict(cu_seq_lens_k=flat["cu_seq_lens_k"][:-1]),
        "cu_seq_lens_k differs from cu_seq_lens_q; in self-attention they are the same": flat
        | dict(cu_seq_lens_k=flat["cu_seq_lens_k"] - 1),
        "needs cu_seq_lens_q at least": {"input_ids": flat["input_ids"], "seq_idx": torch.zeros(1, 22).int()},
        "cu_seq_lens_q at least": {name: flat[name] for name in ("input_ids", "cu_seq_lens_k")},
        r"visual has shape \(\)": batch | dict(visual=torch.tensor(1.0), visual_mask=None),
        r"token_type_ids has shape \(4, 4\)": batch | dict(token_type_ids=batch["attention_mask"][:, :4]),
        "token_type_ids has shape": flat | dict(token_type_ids=batch["attention_mask"]),
        r"position_ids has shape \(3,\)": batch | dict(position_ids=torch.arange(3)),
        "position_ids has shape": flat | dict(position_ids=flat["position_ids"][:, 1:]),
        r"input_ids has shape \(5,\); give \(B, N\)": {"input_ids": torch.zeros(5, dtype=torch.int64)},
        "inputs_embeds has shape": {"inputs_embeds": torch.zeros(5, 8)},
        r"visual has shape \(5,\)": batch | dict(visual=torch.zeros(5), visual_mask=None),
        "cu_seq_lens_visual belongs to packed": batch | dict(cu_seq_lens_visual=flat["cu_seq_lens_visual"]),
        "rows of 600 pieces, but the model has": {"input_ids": torch.zeros(1, 600, dtype=torch.int64)},
    }.items():
        with pytest.raises(ValueError, match=message):
            model(**inputs)


def test_what_only_looks_wrong_is_not_refused(batch):
    """Counts of a modality left out, a looser bound for keys, padding beyond the last position."""
    model = CMSBertModel(config()).double().eval()
    flat = packed(batch)
    without = {name: value for name, value in flat.items() if name != "visual"}
    expected = model(**{name: value for name, value in without.items() if not name.endswith("_visual")})
    torch.testing.assert_close(model(**without).last_hidden_state, expected.last_hidden_state)
    expected = model(**flat).last_hidden_state
    torch.testing.assert_close(model(**flat | dict(max_length_k=100)).last_hidden_state, expected)
    longer = model.config.max_position_embeddings + 1 - 9
    widened = {name: torch.nn.functional.pad(batch[name], (0, longer)) for name in ("input_ids", "attention_mask")}
    valid = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch | widened).last_hidden_state[:, :9][valid], expected[0])


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("visual_size=-1 is negative", dict(visual_size=-1)),
        ("gate_activation='gelu' is unknown", dict(gate_activation="gelu")),
        (r"cms_layers names \[3\]", dict(cms_layers=[0, 3])),
        ("projection_size=3 cannot be split", dict(projection_size=3)),
        ("temperature=0", dict(temperature=0.0)),
        ("smoothing=1.5 is out of range", dict(smoothing=1.5)),
        ("threshold=-0.1 is negative", dict(threshold=-0.1)),
        ("backend='cuda' is unknown", dict(backend="cuda")),
        ("CMSBERT is an encoder", dict(is_decoder=True)),
    ],
)
def test_wrong_configurations_are_named(message, fields):
    with pytest.raises(ValueError, match=message):
        config(**fields)
