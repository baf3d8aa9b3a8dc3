"""The models as users of Hugging Face expect them: checkpoints, Auto classes, the Trainer."""

import inspect
import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertForSequenceClassification, CMSBertModel
from tests.models.small import SIZES, SMALL, config, lively


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


@pytest.mark.parametrize("kind", [CMSBertForSequenceClassification, CMSBertCLRForSequenceClassification])
def test_inputs_are_named_in_the_signature(kind):
    """The Hugging Face Trainer drops every column that is not."""
    names = ["input_ids", "attention_mask", "token_type_ids", "visual", "acoustic", "visual_mask", "acoustic_mask"]
    assert list(inspect.signature(kind.forward).parameters)[1:9] == [*names, "labels"]


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
