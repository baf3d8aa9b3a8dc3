"""The examples run as they are given to the reader, at small sizes, and do what they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frozen.programs import call, environment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(name: str, *arguments: object) -> str:
    """What an example prints, run in this process."""
    status, out, errors = call(str(EXAMPLES / name), *arguments)
    assert status == 0, out + errors
    return out


def test_each_is_tested_and_tells_its_options() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tests
        source = path.read_text(encoding="utf-8")
        assert f"python examples/{path.name}" in source  # how it is run
        assert len(source.splitlines()) <= 150


def test_hugging_face_trainer(tmp_path: Path) -> None:
    told = run("hugging_face_trainer.py", "--epochs", 2, "--examples", 64, "--output", "model")
    # nu, the weight of the contrastive loss, does not stay 1.
    assert re.search(r"'nu': '?0\.\d+", told)
    assert re.search(r"test MAE \d\.\d{3}; of the training mean as constant answer 1\.\d{3}", told)
    assert re.search(r"': -?\d\.\d\d \(label -?\d\.\d\)", told)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "model").iterdir()
    }


def test_attention_in_another_encoder() -> None:
    told = run("attention_in_another_encoder.py", "--epochs", 1, "--examples", 64)
    errors = [float(value) for value in re.findall(r"^test MAE of .*: (\d\.\d+)$", told, re.MULTILINE)]
    assert len(errors) == 2
    assert errors[0] != errors[1]  # the face is seen


def test_attention_without_a_face_is_theirs() -> None:
    """Whatever a pretrained encoder has learned, it still does."""
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import attention_in_another_encoder as example
    finally:
        sys.path.remove(str(EXAMPLES))
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    theirs = DistilBertModel(DistilBertConfig(vocab_size=20, dim=16, n_layers=2, n_heads=2, hidden_dim=8)).eval()
    words, mask = torch.randint(1, 20, (2, 5)), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    with torch.no_grad():
        before = theirs(words, mask).last_hidden_state[mask]
        model = example.DistilBertWithFace(theirs, 4).eval()
        for frames in (None, torch.randn(2, 6, 4)):  # the new parts start at zero
            model(words, mask, frames, None if frames is None else torch.ones(2, 6, dtype=torch.bool))
            after = theirs(words, mask).last_hidden_state[mask]
            torch.testing.assert_close(after, before)


def test_contrastive_loss_on_many_processes() -> None:
    """The losses do not depend on the number of processes."""
    name, small = "contrastive_loss_on_many_processes.py", ("--steps", 2, "--batch", 24)
    one = run(name, *small, "--micro-batches", 1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(EXAMPLES / name), *map(str, small), "--micro-batches", "2"]
    two = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=True).stdout
    losses = [[float(value) for value in re.findall(r"loss (\d+\.\d+)", told)] for told in (one, two)]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)


def test_own_features(tmp_path: Path) -> None:
    told = run("own_features.py", "--epochs", 1, "--examples", 24)
    assert "$ cmsbert inspect own/data" in told
    page = (tmp_path / "own" / "page.html").read_text(encoding="utf-8")
    assert all(f"test-{k:04d}" in page for k in range(24))
    assert (tmp_path / "own" / "runs" / "cmsbert-clr" / "seed-0" / "figures" / "shift_maps.png").stat().st_size > 10_000
