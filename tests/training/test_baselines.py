"""Every baseline through the programs: it trains, stops, resumes to the bit, predicts, and says what it cannot do."""

import csv
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cmsbert_fast.models.registry import BASELINES, VARIANTS
from cmsbert_fast.predict import main as predict
from cmsbert_fast.training.build import load_trained
from cmsbert_fast.training.command import parse_command
from tests.models.baselines.systems import case
from tests.training.conftest import CONFIGS, SIZES, WORDS
from tests.training.helpers import records, stop_and_resume

every_system = pytest.mark.parametrize("name", BASELINES)


@pytest.fixture(scope="session")
def words_file(tmp_path_factory) -> Path:
    """As many examples as ``corpus_folder`` has, with one frame a word."""
    rng = np.random.default_rng(0)
    content = {}
    for split, size in SIZES.items():
        content[{"valid": "dev"}.get(split, split)] = [
            (
                (
                    [WORDS[k] for k in rng.integers(len(WORDS), size=count)],
                    rng.normal(size=(count, 3)),
                    rng.normal(size=(count, 2)),
                ),
                np.full((1, 1), rng.normal()),
                f"{split}{k}",
            )
            for k, count in enumerate(rng.integers(1, 7, size=size))
        ]
    path = tmp_path_factory.mktemp("words") / "words.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.fixture
def arguments_of(corpus_folder, words_file, bert):
    """Of a run of two epochs of three steps, on data as the system needs them, with dropout."""

    def arguments(name: str) -> list:
        of_words = VARIANTS[name].needs & {"word_frames", "frames_of_words"}
        data = words_file if of_words else corpus_folder
        fields = [f"{field}={value}" for field, value in case(name).FIELDS.items()]
        vectors = ["--word-vectors", "bert"] if VARIANTS[name].model_class.config_class.text == "vectors" else []
        given = ["--data", data, "--model", bert, "--variant", name, "--epochs", 2, "--batch-size", 9]
        return [*given, *vectors, *(["--architecture", *fields] if fields else [])]

    return arguments


@every_system
@pytest.mark.parametrize("batch", [2, 4])
def test_resumed_to_the_bit(train, arguments_of, name, tmp_path, monkeypatch, batch):
    arguments = [*arguments_of(name), "--checkpoint-every-steps", 1, "--accumulation", 2]
    stop_and_resume(train, arguments, tmp_path, monkeypatch, batch)
    ours, theirs = (
        torch.load(next((tmp_path / out).glob("*/*/checkpoint.pt")), weights_only=True) for out in ("again", "whole")
    )
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)  # what the system remembers


@every_system
def test_trained_model_is_loaded_and_predicts(train, arguments_of, name, tmp_path, capsys):
    arguments = arguments_of(name)
    assert train(*arguments, "--output", tmp_path)[0] == 0
    model, _ = load_trained(tmp_path / name / "seed-0")
    assert type(model) is VARIANTS[name].model_class
    assert not model.training
    (start,) = records(tmp_path, "start")
    assert start["parameters"] == model.num_parameters()
    capsys.readouterr()
    options = [tmp_path / name / "seed-0", arguments[1], "--split", "test", "--batch-size", 2]
    assert predict([str(option) for option in options]) == 0
    found, expected = (
        {row["id"]: float(row["prediction"]) for row in csv.DictReader(io.StringIO(text))}
        for text in (capsys.readouterr().out, next(tmp_path.glob("*/*/predictions.csv")).read_text())
    )
    assert found == pytest.approx(expected, abs=1e-5)
    # Its checkpoint is one to start from.
    assert train(*arguments, "--model", tmp_path / name / "seed-0" / "best", "--output", tmp_path / "on")[0] == 0


def refused(train, *arguments) -> str:
    status, errors = train(*arguments)
    assert status == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


@every_system
def test_what_the_data_lack_is_said_before_training(train, arguments_of, corpus_folder, make_corpus, name, tmp_path):
    needs, arguments = VARIANTS[name].needs, [*arguments_of(name), "--output", tmp_path / "out"]
    if needs & {"frames", "word_frames", "frames_of_words"}:
        assert name in refused(train, *arguments, "--visual", "none", "--acoustic", "none")
    if needs & {"word_frames", "frames_of_words"}:
        assert f"which {name} needs" in refused(train, *arguments, "--data", corpus_folder)
    if "regression" in needs:
        classes = make_corpus(tmp_path / "classes", label=lambda i: ("sad", "glad")[i % 2])
        assert f"has no scores, which {name} needs" in refused(train, *arguments, "--data", classes)
    config_class = VARIANTS[name].model_class.config_class
    if "vectors" in config_class.texts:
        message = f"has no word vectors, which {name} needs"
        assert message in refused(train, *arguments, "--text", "vectors", "--word-vectors", "none")
    for text in {"bert", "bert-frozen", "vectors"} - set(config_class.texts):
        assert f"text is '{text}'; choose one of" in refused(train, *arguments, "--text", text)
    if not config_class.poolings:
        assert "pooling is 'cls'; this system has none" in refused(train, *arguments, "--pooling", "cls")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "bert"], "text is no setting of cmsbert-clr; leave it out, or train another variant"),
        (["--loss", "l1"], "loss is no setting of cmsbert-clr"),
        (["--variant", "tfn", "--projection-size", "8"], "projection_size is no setting of tfn"),
        (["--variant", "tfn", "--architecture", "cms_layers=3"], "architecture names 'cms_layers'; it may change"),
        (["--variant", "tfn", "--architecture", "text_dropout=1.5"], "text_dropout is 1.5 but must be at least 0"),
        (
            ["--variant", "tfn", "--architecture", "fusion_size=0"],
            "fusion_size is 0 but must be a whole number of at least 1",
        ),
        (["--variant", "tfn", "--architecture", "fusion_size=a"], "fusion_size is 'a' but must be a whole number of"),
        (["--variant", "tfn", "--loss", "l3"], "loss is 'l3'; choose one of mse, l1"),
        (["--variant", "tfn", "--frozen-layers", "1"], "frozen_layers is for text 'bert', not 'bert-frozen'"),
        (
            ["--learning-rates", "visual=1"],
            "the parameter groups of cmsbert-clr are bert, new",
        ),
        (["--variant", "tfn", "--weight-decays", "bert=0"], "the parameter groups of tfn are text, visual, acoustic"),
        (["--variant", "tfn", "--weight-decays", "text=-1"], "weight_decays has text=-1.0 but it must be at least 0"),
        (["--variant", "tfn", "--learning-rates", "text=fast"], "learning_rates text is 'fast' but must be a number"),
        (["--schedule", "cosine"], "schedule is 'cosine' but must be one of linear, constant"),
        (["--max-grad-value", "1", "--max-grad-norm", "1"], "both clip the gradient; give one of them"),
        (["--max-grad-value", "0"], "max_grad_value is 0.0 but must be greater than 0"),
    ],
)
def test_wrong_combinations_end_in_one_sentence(train, short, tmp_path, options, message):
    assert message in refused(train, *short, *options, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


PRESETS = sorted((CONFIGS / "baselines").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_names_every_field_of_its_system(path):
    """And makes a configuration; fields left to their defaults would change with these."""
    (settings,) = parse_command(["--config", str(path)], CONFIGS / "embedded.yaml").runs
    name, _, corpus = path.stem.rpartition("-")
    assert (settings.variant, settings.data) == (name, f"data/{corpus}")
    config_class = VARIANTS[name].model_class.config_class
    asked = {field: getattr(settings, field) for field in ("text", "loss", "pooling", "frozen_layers")}
    given = {**settings.architecture, **{field: value for field, value in asked.items() if value is not None}}
    config = config_class(visual_size=47, acoustic_size=74, **given)
    assert set(config_class.own_fields()) <= settings.architecture.keys()
    assert settings.text in config_class.texts
    assert all(getattr(config, field) == value for field, value in given.items())


def test_every_baseline_has_its_presets():
    assert {path.stem for path in PRESETS} == {f"{name}-{corpus}" for name in BASELINES for corpus in ("mosi", "mosei")}
