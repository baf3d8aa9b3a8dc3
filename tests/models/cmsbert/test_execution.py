"""The same numbers however it runs: compiled, with checkpointing, under autocast, in half precision."""

import pytest
import torch

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertForSequenceClassification
from tests.models.small import config, packed


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


def test_position_ids_alone_in_one_graph_say_what_to_give():
    """Their number of utterances depends on data. With graph breaks they work."""
    torch.compiler.reset()
    model = CMSBertForSequenceClassification(config(num_hidden_layers=1, visual_size=0, acoustic_size=0)).eval()
    inputs = dict(input_ids=torch.arange(1, 6)[None], position_ids=torch.tensor([[0, 1, 0, 1, 2]]))
    with pytest.raises(Exception, match="give cu_seq_lens_q and max_length_q"):
        torch.compile(model, fullgraph=True, backend="eager")(**inputs)
    torch.compiler.reset()
    logits = torch.compile(model, backend="eager")(**inputs).logits
    torch.testing.assert_close(logits, model(**inputs).logits)
