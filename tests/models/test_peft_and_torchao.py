"""PEFT, torchao and accelerate with the models; skipped where these libraries are not installed."""

import copy

import pytest
import torch

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertForSequenceClassification
from tests.models.small import config, lively

LABELS = torch.tensor([1.0, 1.05, -2.0, 0.0])
both = pytest.mark.parametrize("kind", [CMSBertForSequenceClassification, CMSBertCLRForSequenceClassification])


def model_of(kind):
    torch.manual_seed(0)
    return lively(kind(config(gate_activation="tanh"))).float()


def single(batch):
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


@both
@pytest.mark.parametrize(
    "options",
    [
        dict(target_modules="all-linear"),
        dict(target_modules=r".*\.(gate|shift)_(visual|acoustic)"),
        dict(target_modules=["shift_visual", "gate_acoustic"], use_dora=True),
        dict(target_modules=["query"], modules_to_save=["gate_visual", "shift_acoustic", "acoustic_lstm", "fusion"]),
        dict(target_modules=["query"], target_parameters=["visual_lstm.weight_hh_l0"]),
        dict(target_modules="all-linear", task_type="SEQ_CLS"),
    ],
    ids=["all", "gates-and-shifts", "dora", "modules-to-save", "lstm", "sequence-classification"],
)
def test_peft_trains_merges_and_reloads(kind, options, batch, tmp_path):
    peft = pytest.importorskip("peft")
    batch = single(batch)
    base = model_of(kind)
    base.save_pretrained(tmp_path / "base")
    wrap = peft.LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, **options)
    adapted = peft.get_peft_model(base, wrap).train()
    adapted(**batch, labels=LABELS).loss.backward()
    for name, parameter in adapted.named_parameters():
        # The head that SEQ_CLS trains has a copy that it does not use.
        assert not parameter.requires_grad or parameter.grad.any(), name
    with torch.no_grad():
        logits = adapted.eval()(**batch).logits
        with adapted.disable_adapter():
            assert (adapted(**batch).logits - logits).abs().max() > 1e-2
        adapted.save_pretrained(tmp_path / "adapter")
        loaded = peft.PeftModel.from_pretrained(kind.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(**batch).logits, logits, rtol=0, atol=1e-6)
        torch.testing.assert_close(adapted.merge_and_unload()(**batch).logits, logits, rtol=0, atol=1e-5)


@both
def test_torchao_quantises_every_linear_layer(kind, batch):
    """The result is that of the weights which the quantised ones stand for."""
    torchao = pytest.importorskip("torchao.quantization")
    batch, model = single(batch), model_of(kind)
    plain = copy.deepcopy(model)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    quantised = {name: p for name, p in model.named_parameters() if type(p) is not torch.nn.Parameter}
    assert any("gate_visual" in name for name in quantised)
    with torch.no_grad():
        before = plain(**batch).logits
        for name, parameter in quantised.items():
            plain.get_parameter(name).copy_(parameter.dequantize())
        logits = model(**batch).logits
        assert 1e-4 < (logits - before).abs().max() < 0.1
        torch.testing.assert_close(logits, plain(**batch).logits, rtol=0, atol=1e-5)


@both
def test_accelerate_trains_saves_and_loads(kind, batch, tmp_path):
    """Accelerator.prepare, a loop over packed batches of several sizes, save_model, and the weights in a new model."""
    accelerate = pytest.importorskip("accelerate")
    batch, model = single(batch), model_of(kind)
    accelerator = accelerate.Accelerator(cpu=True)
    examples = [({name: tensor[k : k + 2] for name, tensor in batch.items()}, LABELS[k : k + 2]) for k in (0, 2)]
    loader = torch.utils.data.DataLoader(examples, batch_size=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    prepared, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)
    losses = []
    for _ in range(15):
        for inputs, labels in loader:
            loss = prepared(**inputs, labels=labels).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    accelerator.save_model(prepared, tmp_path)
    new = kind(config(gate_activation="tanh")).float()
    accelerate.load_checkpoint_in_model(new, tmp_path)
    with torch.no_grad():
        expected = accelerator.unwrap_model(prepared).eval()(**batch).logits
        torch.testing.assert_close(new.eval()(**batch).logits, expected, rtol=0, atol=1e-6)
