"""The table of systems in ``docs/systems.md``: every system, with its numbers of parameters."""

import re
from pathlib import Path

import pytest
import torch

from cmsbert_fast.models.registry import BASELINES, VARIANTS
from cmsbert_fast.training.command import parse_command

ROOT = Path(__file__).resolve().parents[1]
VISUAL = {"mosi": 47, "mosei": 35}
TEXTS = {"bert": "BERT", "bert-frozen": "frozen BERT", "vectors": "word vectors"}


def row(name: str) -> list[str]:
    """The cells of a system's row."""
    lines = (ROOT / "docs/systems.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"| `{name}` | [")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def new_parameters(name: str, corpus: str) -> int:
    path = ROOT / "configs" / "baselines" / f"{name}-{corpus}.yaml"
    (settings,) = parse_command(["--config", str(path)], ROOT / "configs" / "embedded.yaml").runs
    asked = {field: getattr(settings, field) for field in ("text", "pooling", "frozen_layers")}
    given = {field: value for field, value in asked.items() if value is not None} | settings.architecture
    model_class = VARIANTS[name].model_class
    with torch.device("meta"):
        model = model_class(model_class.config_class(visual_size=VISUAL[corpus], acoustic_size=74, **given))
    return sum(p.numel() for key, p in model.named_parameters() if not model.from_bert(key))


@pytest.mark.parametrize("name", BASELINES)
def test_a_system_of_the_table(name):
    cells = row(name)
    found = {corpus: new_parameters(name, corpus) for corpus in VISUAL}
    assert cells[-1] == f"{found['mosi']:,} / {found['mosei']:,}"
    assert cells[2] == TEXTS[VARIANTS[name].model_class.config_class.text]
    of_words = bool(VARIANTS[name].needs & {"word_frames", "frames_of_words"})
    assert ("frames of words" in cells[3]) == of_words
    assert re.search(r"arxiv.org/abs/[\d.]+", cells[1])


def test_every_variant_is_named():
    for file in ("systems", "train"):
        text = (ROOT / "docs" / f"{file}.md").read_text(encoding="utf-8")
        assert all(f"`{name}`" in text for name in VARIANTS if "-no-" not in name)
