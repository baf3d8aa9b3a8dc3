"""YAML that grows, waits or holds what settings cannot be."""

import os
from pathlib import Path

import pytest
import yaml

from cmsbert_fast.training import folders, plain_yaml
from cmsbert_fast.training.command import parse_command
from cmsbert_fast.training.errors import UsageError
from tests.data.untrusted.limited import seconds
from tests.training.conftest import CONFIGS

BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{k}: &a{k} [{','.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{k}: &a{k} {{<<: [{','.join([f'*a{k - 1}'] * 10)}]}}\n" for k in range(1, 12))


def parse(text, folder, *more):
    (folder / "c.yaml").write_text(text)
    return parse_command(["--config", str(folder / "c.yaml"), *more], CONFIGS / "embedded.yaml")


@pytest.mark.parametrize(
    "text",
    [
        BOMB + "architecture: {hidden_size: *a11}\n",
        BOMB + "seed: *a11\n",
        BOMB + "variant: *a3\n",
        MERGES + "architecture: *a11\n",
        "seed: &a [*a]\n",
        "architecture: &a {hidden_size: *a}\n",
        "seed: " + "[" * 5_000 + "]" * 5_000,
        "seed: 1" + ":59" * 30_000,
        "seed: " + "9" * 400,
        "seed: " + "9" * 5000,
        "seed: " + "9" * 30,
        "temperature: " + "9" * 400 + ".0",
        "data: 2024-01-31\n",
        "data: 2024-99-31\n",
        "architecture: {hidden_act: 2024-01-31 10:00:00}\n",
        "variant: !!set {bert, cmsbert}\n",
        "data: !!binary aGVsbG8=\n",
        "data: !!omap [a: 1]\n",
        "data: !!python/object/apply:os.system ['true']\n",
        "architecture: {[1, 2]: 3}\n",
        "? [a]\n: 1\n",
        f"seed: {list(range(5000))}\nfold: {list(range(1, 4000))}\n",
        f"seed: {list(range(11_000))}\n",
        "data: " + "x" * 200_000,
        "data: \0\n",
        "seed: 1\nepochs: 3\nseed: 2\n",
        "architecture: {hidden_dropout_prob: 0.1, hidden_dropout_prob: 0.2}\n",
        "seed: 010\n",
        "batch_size: 1:30\n",
        "learning_rate: 1:30.5\n",
    ],
    ids=range(30),
)
def test_what_is_no_setting(tmp_path, text):
    with seconds(30), pytest.raises(UsageError) as caught:
        parse(text, tmp_path)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_config_file_that_is_none(tmp_path, kind):
    path = tmp_path / "c.yaml"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with seconds(5), pytest.raises(UsageError, match="regular file"):
        parse_command(["--config", str(path)], CONFIGS / "embedded.yaml")


def test_bombs_in_options():
    for value in ("9" * 5000, "[" * 5000, "1" + ":59" * 5000, "!!set {a}", "2024-01-31"):
        with seconds(30), pytest.raises(UsageError) as caught:
            parse_command(["--architecture", f"hidden_size={value}"], CONFIGS / "embedded.yaml")
        assert len(str(caught.value)) < 1300


def test_plain_values_are_read_as_ever(tmp_path):
    for path in sorted(CONFIGS.rglob("*.yaml")):
        text = path.read_text()
        assert plain_yaml.loads(text) == yaml.safe_load(text)
    assert plain_yaml.loads("a: &x [1, 2.5, yes, null, text]\nb: *x\nc: {d: *x}\n") == {
        "a": [1, 2.5, True, None, "text"],
        "b": [1, 2.5, True, None, "text"],
        "c": {"d": [1, 2.5, True, None, "text"]},
    }
    assert plain_yaml.loads("") is None


@pytest.mark.parametrize("text", ["1e-12", "1E-12", "1.0e-12"])
def test_small_numbers_without_a_point(tmp_path, text):
    for runs in (
        parse_command(["--architecture", f"layer_norm_eps={text}"], CONFIGS / "embedded.yaml").runs,
        parse(f"architecture: {{layer_norm_eps: {text}}}\n", tmp_path).runs,
    ):
        assert runs[0].architecture["layer_norm_eps"] == 1e-12


@pytest.mark.parametrize("name", ["..", ".", "...", "../..", "", "/", "\x1b[2J", "x" * 500])
def test_the_default_folder_lies_in_runs(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = folders.output_folder(None, name, resume=False)
    assert found.resolve().parent == (tmp_path / "here" / "runs").resolve()
    assert str(found).isprintable()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here"]
    assert Path("runs").is_dir()


def test_a_value_that_would_be_lost_or_read_as_another_is_named(tmp_path):
    """YAML keeps the last of two, and reads 010 as 8."""
    for text, message in [
        ("seed: 1\nseed: 2\n", "it holds 'seed' twice"),
        ("seed: 010\n", "it holds 010, which YAML reads as another number"),
    ]:
        with pytest.raises(UsageError, match=message):
            parse(text, tmp_path)
    (run,) = parse("seed: 0\ntemperature: 0.5\nmomentum: 0\nvariant: bert\n", tmp_path).runs
    assert (run.seed, run.temperature, run.momentum) == (0, 0.5, 0)
    (run,) = parse("seed: 1_0\nvariant: bert\nthreshold: 00.5\n", tmp_path).runs
    assert (run.seed, run.threshold) == (10, 0.5)
