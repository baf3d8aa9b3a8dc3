"""The code in README.md is what a reader copies: it runs, or at least compiles."""

import re
from pathlib import Path

import numpy as np
import torch

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertProcessor
from cmsbert_fast.data import Example
from cmsbert_fast.data.embedded import embedded_tokenizer
from tests.models.small import config

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(section: str) -> list[str]:
    """The Python blocks of a section."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_contrastive_loss_by_itself() -> None:
    """Twelve lines of code at most, which train."""
    (code,) = blocks("The contrastive loss by itself")
    lines = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 12
    short = code.replace("] * 10:", "] * 2:").replace("(256,", "(64,")
    assert short != code
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(short, "README.md", "exec"), names)
    assert torch.isfinite(names["loss"])
    for parameter in names["parameters"]:
        assert parameter.grad.abs().max() > 0
        assert names["optimizer"].state[parameter]["step"] == 2


def test_the_parts_compile_and_exist() -> None:
    for code in blocks("Use the parts"):
        compile(code, "README.md", "exec")
        imports = re.findall(r"^from cmsbert_fast import .*$", code, re.MULTILINE)
        assert imports
        exec("\n".join(imports), {})


def test_hugging_faces_trainer(tmp_path: Path) -> None:
    """The example trains, and nu does not stay 1."""
    _, code = blocks("Use the parts")
    rng = np.random.default_rng(0)
    examples = [
        Example(str(k), ("good",), k / 2 - 1, *(rng.normal(size=(2, d)).astype(np.float32) for d in (5, 3)))
        for k in range(5)
    ]
    torch.manual_seed(0)
    names: dict = {
        "model": CMSBertCLRForSequenceClassification(config(vocab_size=len(embedded_tokenizer()))),
        "processor": CMSBertProcessor(embedded_tokenizer()).fit(examples),
        "training_examples": examples,
        "validation_examples": examples[:3],
    }
    quiet = 'num_train_epochs=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True'
    short = code.replace('"out"', f'r"{tmp_path}", {quiet}')
    assert short != code
    exec(compile(short, "README.md", "exec"), names)
    assert 0 < float(names["model"].nu) != 1
