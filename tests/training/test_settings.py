"""Settings: from YAML and the command line, checked before anything runs."""

import dataclasses
from pathlib import Path

import pytest

from cmsbert_fast.data.request import DataOptions
from cmsbert_fast.training.command import GROUPS, parse_command
from cmsbert_fast.training.conversion import read_yaml
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TrainingSettings, settings_from

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EMBEDDED = CONFIGS / "embedded.yaml"


def test_command_line_wins_over_yaml(tmp_path):
    config = tmp_path / "c.yaml"
    # YAML 1.1 reads 3e-4 as text and 1 as an int.
    config.write_text(
        "learning_rate: 3e-4\nmax_grad_norm: 1\nepochs: 7\nvisual: facet\narchitecture: {hidden_size: 32}\n"
    )
    (run,) = parse_command(
        ["--data", "x", "--config", str(config), "--epochs", "9", "--early-stopping", "none", "--acoustic", "a", "b"],
        EMBEDDED,
    ).runs
    assert (run.learning_rate, run.max_grad_norm, run.epochs, run.early_stopping) == (3e-4, 1.0, 9, None)
    assert (run.visual, run.acoustic, run.architecture) == (("facet",), ("a", "b"), {"hidden_size": 32})
    assert isinstance(run.max_grad_norm, float)


def test_architecture_on_the_command_line_changes_single_fields(tmp_path):
    arguments = ["--architecture", "hidden_size=32", "hidden_act=relu"]
    run = parse_command(arguments, EMBEDDED).runs[0]
    assert run.architecture == read_yaml(EMBEDDED)["architecture"] | {"hidden_size": 32, "hidden_act": "relu"}
    config = tmp_path / "c.yaml"
    config.write_text("architecture: 3\n")
    with pytest.raises(UsageError, match="mapping"):
        parse_command([*arguments, "--config", str(config)], EMBEDDED)


def test_rates_and_decays_of_groups(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("data: x\nvariant: tfn\nlearning_rates: {text: 5e-5, visual: 1}\nweight_decays: {text: 0}\n")
    (run,) = parse_command(["--config", str(config), "--learning-rates", "visual=2e-3", "other=1"], EMBEDDED).runs
    assert run.learning_rates == {"text": 5e-5, "visual": 2e-3, "other": 1.0}
    assert run.weight_decays == {"text": 0.0}
    assert all(isinstance(value, float) for value in run.learning_rates.values())


def test_no_argument_compares_text_with_clr_on_the_embedded_corpus():
    runs = parse_command([], EMBEDDED).runs
    assert [(run.data, run.model, run.variant) for run in runs] == [
        ("embedded", None, "bert"),
        ("embedded", None, "cmsbert-clr"),
    ]
    assert runs[0].architecture["hidden_size"] <= 128
    assert runs[0].threads == 1


def test_a_config_without_data_lies_over_that_of_the_embedded_corpus(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("epochs: 3\narchitecture: {num_hidden_layers: 1}\n")
    runs = parse_command(["--config", str(config), "--batch-size", "16"], EMBEDDED).runs
    base = read_yaml(EMBEDDED)
    assert [run.variant for run in runs] == base["variant"]
    for run in runs:
        assert (run.epochs, run.batch_size, run.learning_rate) == (3, 16, base["learning_rate"])
        assert run.architecture == base["architecture"] | {"num_hidden_layers": 1}


def test_a_checkpoint_brings_its_own_architecture(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("model: x\n")
    for arguments in (["--model", "x"], ["--config", str(config)]):
        run = parse_command(arguments, EMBEDDED).runs[0]
        assert (run.model, run.architecture, run.epochs) == ("x", {}, read_yaml(EMBEDDED)["epochs"])
        run = parse_command([*arguments, "--architecture", "hidden_act=relu"], EMBEDDED).runs[0]
        assert run.architecture == {"hidden_act": "relu"}
        run = parse_command([*arguments, "--model", "none"], EMBEDDED).runs[0]
        assert (run.model, run.architecture) == (None, read_yaml(EMBEDDED)["architecture"])


def test_true_and_false(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("standardise: no\n")  # YAML 1.1 reads it as false
    assert parse_command([], EMBEDDED).runs[0].standardise is True
    assert parse_command(["--config", str(config)], EMBEDDED).runs[0].standardise is False
    for text in ("true", "False"):
        run = parse_command(["--config", str(config), "--standardise", text], EMBEDDED).runs[0]
        assert run.standardise is (text == "true")


def test_other_data_starts_from_the_papers_values():
    (run,) = parse_command(["--data", "x"], EMBEDDED).runs
    assert run == TrainingSettings(data="x")


def test_several_runs():
    runs = parse_command(
        ["--data", "x", "--variant", "bert", "cmsbert/1", "--seeds", "0", "1", "--fold", "1", "2"], EMBEDDED
    )
    names = [(r.fold, r.variant, r.seed) for r in runs.runs]
    assert len(names) == 8
    assert names[:3] == [(1, "bert", 0), (1, "bert", 1), (1, "cmsbert/1", 0)]


@pytest.mark.parametrize("name", ["mosi", "mosei", "iemocap"])
def test_paper_configs(name):
    values = read_yaml(CONFIGS / f"{name}.yaml")
    values.pop("fold", None)
    run = settings_from(values)
    # Section IV.C, each of its numbers.
    assert (run.learning_rate, run.weight_decay, run.bert_weight_decay) == (1e-4, 0.1, 1e-3)
    assert (run.epochs, run.warmup * run.epochs, run.batch_size) == (500, 50, 128)
    assert (run.temperature, run.momentum, run.smoothing, run.threshold) == (0.1, 0.9, 0.9, 0.1)
    assert (run.variant, run.gate_activation, run.model) == ("cmsbert-clr", None, "bert-base-uncased")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "gpt"], "variant is 'gpt'"),
        (["--epochs", "many"], "epochs is 'many' but must be a whole number"),
        (["--epochs", "2.5"], "epochs is '2.5' but must be a whole number"),
        (["--epochs", "0"], "epochs is 0 but must be at least 1"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--learning-rate", "none"], "learning_rate is 'none' but must be a number"),
        (["--smoothing", "0"], "smoothing is 0.0"),
        (["--batch-size", "1"], "batch_size is 1"),
        (["--precision", "fp8"], "precision is 'fp8'"),
        (["--backend", "cuda"], "backend"),
        (["--seeds", "0", "0"], "twice"),
        (["--seeds", "x"], "seed is 'x'"),
        (["--lerning-rate", "1"], "nrecognized arguments: --lerning-rate 1; did you mean --learning-rate?"),
        (["--zzz"], "nrecognized arguments: --zzz; see --help."),
        (["--architecture", "hidden_size"], "FIELD=VALUE"),
        (["--architecture", "hidden_act=relu", "hidden_act=gelu"], "--architecture names hidden_act twice"),
        (["--architecture", "hidden_act=[1"], "'[1' is not a value"),
        *(
            (["--architecture", f"{name}=3"], f"architecture names {name!r}; it may change hidden_size")
            for name in ("hidden_sice", "to_dict", "num_labels", "visual_size", "vocab_size", "is_decoder", "backend")
        ),
        (["--standardise", "maybe"], "standardise is 'maybe' but must be true or false"),
        (["--threads", "99999999999"], "threads is 99999999999 but must be between 1 and 4096"),
        (["--config", "a\0b.yaml"], r"'a\x00b.yaml' cannot be read (embedded null byte)"),
        (["--gate-activation", "gelu"], "gate_activation is 'gelu'"),
        (["--config", "missing.yaml"], "missing.yaml cannot be read"),
    ],
)
def test_users_errors(arguments, message):
    with pytest.raises(UsageError) as error:
        parse_command(arguments, EMBEDDED)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "did you mean 'learning_rate'?"),
        ("epochs: yes", "epochs is True but must be a whole number"),
        ("epochs: [1, 2]", "epochs is [1, 2] but must be a whole number"),
        ("architecture: 3", "mapping"),
        ("visual: 3", "visual must be a name"),
        ("- 1", "has no settings"),
        ("a: [1", "not valid YAML in line"),
    ],
)
def test_users_errors_in_yaml(tmp_path, text, message):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(UsageError) as error:
        parse_command(["--config", str(config)], EMBEDDED)
    assert message in str(error.value)


def test_help_has_every_setting_in_one_group_with_its_default(capsys):
    names = [name for group in GROUPS.values() for name in group.split()]
    names += [field.name for field in dataclasses.fields(DataOptions)]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(TrainingSettings))
    with pytest.raises(SystemExit):
        parse_command(["--help"], EMBEDDED)
    text = " ".join(capsys.readouterr().out.split())
    for title in ("data:", "model:", "training:", "machine and checkpoints:"):
        assert f" {title} --" in text
    epochs = read_yaml(EMBEDDED)["epochs"]
    assert f"--epochs N passes over the training set (default: 500; for the embedded corpus {epochs})" in text
    assert "several: one run each (default: 0)" in text
    assert "(default: true)" in text
    assert "VALUE true" not in text
