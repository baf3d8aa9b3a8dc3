"""The code in README.md is what a reader copies: it runs, or at least compiles."""

import re
from pathlib import Path

import torch

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def block(section: str) -> str:
    """The one Python block of a section."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    (found,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return found


def test_the_contrastive_loss_by_itself() -> None:
    """Twelve lines of code at most, which train."""
    code = block("The contrastive loss by itself")
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
    code = block("Use the parts")
    compile(code, "README.md", "exec")
    imports = re.findall(r"^from cmsbert_fast import .*$", code, re.MULTILINE)
    assert imports
    exec("\n".join(imports), {})
