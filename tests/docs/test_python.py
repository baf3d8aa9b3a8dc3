"""The Python blocks of the pages are what a reader copies: every one is run, with small models and made frames.

Names that a page takes as known (``model``, ``words``) are given. Where a block would take minutes, a number in it is
replaced by a smaller one.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from cmsbert_fast import (
    CMSBertCLRForSequenceClassification,
    CMSBertForSequenceClassification,
    CMSBertProcessor,
    export,
    hub_kernels,
)
from cmsbert_fast.data import Example
from cmsbert_fast.data.embedded import embedded_tokenizer
from tests.docs.blocks import BLOCKS
from tests.models.baselines import systems
from tests.models.small import SMALL, config

WORDS = ["the", "film", "was", "good"]


def run(page: str, number: int, names: Mapping[str, Any] = {}, shorter: Mapping[str, str] = {}) -> dict[str, Any]:
    """Runs a page's block and returns its names."""
    code = [block.code for block in BLOCKS if block.page == page and block.language == "python"][number]
    for longer, short in shorter.items():
        assert code.count(longer) == 1
        code = code.replace(longer, short)
    known = dict(names)
    exec(compile(code, f"{page}, block {number}", "exec"), known)
    return known


def frames(*sizes: int, rows: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(rows, size)).astype(np.float32) for size in sizes]


def examples(count: int, *sizes: int) -> list[Example]:
    return [Example(str(k), ("good",), k / 2 - 1, *(x * (k + 1) for x in frames(*sizes))) for k in range(count)]


def model_of(**changes: Any) -> CMSBertCLRForSequenceClassification:
    torch.manual_seed(0)
    fields = dict(vocab_size=len(embedded_tokenizer()), num_hidden_layers=1, max_position_embeddings=64) | changes
    return CMSBertCLRForSequenceClassification(config(**fields)).eval()


def processor_of(*sizes: int) -> CMSBertProcessor:
    return CMSBertProcessor(embedded_tokenizer()).fit(examples(5, *sizes))


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_block_is_run() -> None:
    """Each has a call of ``run`` in this file."""
    called = re.findall(r'\brun\(\s*"([\w/]+\.md)",\s*(\d)', Path(__file__).read_text(encoding="utf-8"))
    numbers = {page: range(sum(b.page == page and b.language == "python" for b in BLOCKS)) for page, *_ in BLOCKS}
    assert sorted(called) == sorted((page, str(k)) for page in numbers for k in numbers[page])
    assert {block.language for block in BLOCKS} == {"", "python", "mermaid"}


def test_the_contrastive_loss_by_itself() -> None:
    """Twelve lines of code at most, which train."""
    code = [block.code for block in BLOCKS if block.page == "docs/recipes.md" and block.language == "python"][2]
    lines = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 12
    torch.manual_seed(0)
    names = run("docs/recipes.md", 2, shorter={"] * 10:": "] * 2:", "(256,": "(64,"})
    assert torch.isfinite(names["loss"])
    for parameter in names["parameters"]:
        assert parameter.grad.abs().max() > 0
        assert names["optimizer"].state[parameter]["step"] == 2


def test_lora(capsys) -> None:
    """Every layer that the page names has an adapter, and all of them are trained."""
    pytest.importorskip("peft")
    model, processor = model_of(), processor_of(5, 3)
    face, voice = frames(5, 3)
    inputs = processor([WORDS, WORDS[1:]], visual=[face, face], acoustic=[voice, -voice])
    adapted = ("query", "value", "gate_visual", "gate_acoustic", "shift_visual", "shift_acoustic")
    sizes = [
        module.in_features + module.out_features for name, module in model.named_modules() if name.endswith(adapted)
    ]
    assert len(sizes) == len(adapted)
    trained = 8 * sum(sizes) + sum(p.numel() for p in model.fusion.parameters())
    names = run("docs/recipes.md", 0, {"model": model, "inputs": inputs, "labels": torch.tensor([1.0, -1.0])})
    assert f"trainable params: {trained:,} " in capsys.readouterr().out
    assert type(names["merged"]) is CMSBertCLRForSequenceClassification


def test_cms_attention_in_an_encoder() -> None:
    torch.manual_seed(0)
    names = run("docs/recipes.md", 1)
    assert names["z"].shape == names["query"].shape
    names["z"].sum().backward()
    assert names["token_gate"].weight.grad.any()
    assert names["shift"].weight.grad.any()


def test_gradcache(capsys) -> None:
    torch.manual_seed(0)
    names = run(
        "docs/recipes.md",
        3,
        shorter={"torch.randn(256, 768), torch.randn(256, 1024)": "torch.randn(64, 768), torch.randn(64, 1024)"},
    )
    text, image, batch = names["text"], names["image"], names["batch"]
    found = text.weight.grad.clone()
    text.weight.grad = None
    whole = names["loss"](text(batch[0]), image(batch[1]))
    whole.backward()
    torch.testing.assert_close(names["result"].loss, whole.detach())
    torch.testing.assert_close(found, text.weight.grad)


def test_inference_in_bfloat16() -> None:
    face, voice = frames(5, 3)
    model, batch = model_of(), processor_of(5, 3)([WORDS, WORDS[1:]], visual=[face, face], acoustic=[voice, -voice])
    (scores,) = run("docs/recipes.md", 4, {"model": model, "batches": [batch]})["scores"]
    with torch.no_grad():
        torch.testing.assert_close(scores.float(), model(**batch).logits, rtol=0, atol=0.02)


def test_from_a_checkpoint_of_bert() -> None:
    tokenizer = embedded_tokenizer()
    fields = SMALL | dict(vocab_size=len(tokenizer))
    BertModel(BertConfig(**fields)).save_pretrained("bert-base-uncased")
    tokenizer.save_pretrained("bert-base-uncased")
    face, voice = frames(47, 74)
    given = {"training_examples": examples(3, 47, 74), "words": WORDS, "face": face, "voice": voice}
    output = run("docs/hugging_face.md", 0, given)["output"]
    assert output.logits.isfinite().all()
    assert len(output.shift_maps) == SMALL["num_hidden_layers"]


def test_hugging_faces_trainer(tmp_path: Path) -> None:
    """The example trains, and nu does not stay 1."""
    training = examples(5, 5, 3)
    model = model_of().train()
    given = {
        "model": model,
        "processor": processor_of(5, 3),
        "training_examples": training,
        "validation_examples": training[:3],
    }
    quiet = '"out", num_train_epochs=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True'
    run("docs/hugging_face.md", 1, given, {'"out"': quiet})
    assert 0 < float(model.nu) != 1


def test_other_systems_through_the_processor() -> None:
    tokenizer = embedded_tokenizer()
    model = systems.system("mag-bert", vocab_size=len(tokenizer), visual_size=5, acoustic_size=3).float()
    face, voice = frames(5, 3)
    words_of_frames = np.arange(4)
    given = dict(model=model, processor=processor_of(5, 3), words=WORDS, face=face, voice=voice)
    given |= dict(of_face=words_of_frames, of_voice=words_of_frames)
    inputs = run("docs/systems.md", 0, given)["inputs"]
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_the_folds_of_the_sdk(tmp_path, monkeypatch) -> None:
    """The SDK is not on PyPI: a module of its shape stands in for it."""
    folds = SimpleNamespace(standard_train_fold=["a"], standard_valid_fold=["b"], standard_test_fold=["c"])
    stand_in = SimpleNamespace(mmdatasdk=SimpleNamespace(cmu_mosi=SimpleNamespace(standard_folds=folds)))
    monkeypatch.setitem(sys.modules, "mmsdk", stand_in)
    run("docs/data.md", 0)
    assert json.loads((tmp_path / "folds.json").read_text()) == {"train": ["a"], "valid": ["b"], "test": ["c"]}


def test_onnx() -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    processor = processor_of(47, 74)
    fields = dict(vocab_size=len(embedded_tokenizer()), num_hidden_layers=1, max_position_embeddings=64)
    model = CMSBertForSequenceClassification(config(visual_size=47, acoustic_size=74, **fields)).eval()
    export.export_onnx(model, processor, Path("model.onnx"))  # a model without LSTMs exports sooner
    names = run("docs/export.md", 0, {"processor": processor, "text": "the film was good"})
    assert np.isfinite(names["logits"]).all()


def test_torch_export() -> None:
    model, processor = model_of(), processor_of(5, 3)
    model.save_pretrained("CHECKPOINT")
    processor.save_pretrained("CHECKPOINT")
    inputs = tuple(export.example_inputs(export.Program(model, processor)).values())
    names = run("docs/export.md", 1, {"inputs": inputs})
    assert Path("model.pt2").is_file()
    assert names["outputs"][0].isfinite().all()


def test_push_to_the_hub(monkeypatch) -> None:
    """Without the hub; tests/training/test_model_card.py has one that takes what is pushed."""
    model_of().save_pretrained("RUN/best")
    processor_of(5, 3).save_pretrained("RUN/best")
    pushed = []
    for kind in (CMSBertCLRForSequenceClassification, CMSBertProcessor):
        monkeypatch.setattr(kind, "push_to_hub", lambda self, name: pushed.append((type(self), name)))
    run("docs/export.md", 2)
    assert pushed == [(kind, "NAME/MODEL") for kind in (CMSBertCLRForSequenceClassification, CMSBertProcessor)]


def test_as_a_kernel() -> None:
    pytest.importorskip("kernels._rust")  # in a checkout our folder kernels has the name, too
    assert hub_kernels.main(["FOLDER"]) == 0
    query = torch.ones(1, 2, 1, 4)
    assert run("docs/export.md", 3, dict(query=query, key=query, value=query))["z"].eq(1).all()
