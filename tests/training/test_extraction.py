"""A model and features of another extraction: refused wherever they could meet."""

import json
import shutil
from pathlib import Path

import pytest

from cmsbert_fast import evaluate, predict
from cmsbert_fast.training.build import load_trained
from cmsbert_fast.training.runs import main as train
from tests.data.extracted import COLUMNS, FINGERPRINT, write_extracted

SPLITS = ("train", "valid", "test")
TEXTS = ("the film was good", "dull and bad") * 6
OTHER = "0dd5" * 8


def data(folder: Path, fingerprint: str | None = FINGERPRINT) -> Path:
    return write_extracted(folder, TEXTS, SPLITS, fingerprint, labels=True)


def train_on(folder: Path, model: Path, out: Path, *more: object) -> Path:
    arguments = ["--data", folder, "--model", model, "--epochs", 1, "--batch-size", 4, "--output", out, *more]
    assert train([str(a) for a in arguments], embedded_config=Path("none")) == 0
    return next(out.glob("*/seed-0"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, bert) -> dict[str, Path]:
    """Runs on extracted features and on others of the same sizes."""
    folder = tmp_path_factory.mktemp("trained")
    return {
        name: train_on(data(folder / f"{name}-data", fingerprint), bert, folder / name)
        for name, fingerprint in (("extracted", FINGERPRINT), ("released", None))
    }


CASES = {
    "another extraction": ("extracted", OTHER, "of another extraction (0dd50dd50dd5) than those that"),
    "none": ("extracted", None, "give it videos, or features that were extracted with the same command"),
    "extracted for released": ("released", FINGERPRINT, "a model of released COVAREP or FACET features cannot score"),
}


@pytest.mark.parametrize(("model", "fingerprint", "message"), CASES.values(), ids=CASES)
def test_other_features_are_refused(capsys, trained, tmp_path, model, fingerprint, message) -> None:
    folder = data(tmp_path / "data", fingerprint)
    again = ["--data", folder, "--model", trained[model] / "best", "--output", tmp_path / "out"]
    for run in (
        lambda: predict.main([str(trained[model]), str(folder)]),
        lambda: evaluate.main([str(trained[model]), "--data", str(folder)]),
        lambda: train([str(a) for a in again], embedded_config=Path("none")),
    ):
        capsys.readouterr()
        assert run() == 2
        out, err = capsys.readouterr()
        assert out.strip() == "" or "visual: 3 features" in out  # train's report
        assert message in err.splitlines()[-1]
        assert "same command" in err
    assert not (tmp_path / "out").exists()


def test_the_same_features_are_taken(capsys, trained, tmp_path, bert) -> None:
    assert load_trained(trained["extracted"])[1].extraction == dict.fromkeys(("visual", "acoustic"), FINGERPRINT)
    assert load_trained(trained["released"])[1].extraction is None
    for model, fingerprint in (("extracted", FINGERPRINT), ("released", None)):
        folder = data(tmp_path / model, fingerprint)
        assert predict.main([str(trained[model]), str(folder)]) == 0
        train_on(folder, trained[model] / "best", tmp_path / f"{model}-again")


def test_features_of_other_names_are_refused(capsys, trained, tmp_path) -> None:
    """As many as the model reads, but others: those of another ``--columns``, or in another order."""
    assert load_trained(trained["released"])[1].feature_names == COLUMNS
    folder = data(tmp_path / "data", None)
    for file in (folder / "face").glob("*.csv"):
        file.write_text(file.read_text().replace("roll,smile", "smile,roll", 1))
    again = ["--data", folder, "--model", trained["released"] / "best", "--output", tmp_path / "out"]
    for run in (
        lambda: predict.main([str(trained["released"]), str(folder)]),
        lambda: train([str(a) for a in again], embedded_config=Path("none")),
    ):
        assert run() == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert "'smile' as feature 1, those had 'roll'); choose the same with --columns." in message
    without = ["--visual", "none"]
    assert predict.main([str(trained["released"]), str(folder), *without]) == 0


def test_what_a_model_does_not_read_may_be_any(trained, tmp_path, bert) -> None:
    text_only = train_on(data(tmp_path / "data", None), bert, tmp_path / "out", "--variant", "bert")
    assert predict.main([str(text_only), str(data(tmp_path / "extracted"))]) == 0
    without = ["--visual", "none", "--acoustic", "none"]
    assert predict.main([str(trained["released"]), str(tmp_path / "extracted"), *without]) == 0


@pytest.mark.parametrize(
    "entries",
    [
        {"extraction": [1]},
        {"extraction": {"visual": 1}},
        {"extraction": {"smell": FINGERPRINT}},
        {"feature_names": {"visual": "roll"}},
        {"feature_names": {"visual": ["roll", 1]}},
    ],
)
def test_a_damaged_processor_of_the_checkpoint_is_an_error(capsys, trained, tmp_path, entries) -> None:
    shutil.copytree(trained["extracted"] / "best", tmp_path / "best")
    (tmp_path / "best" / "processor_config.json").write_text(json.dumps(entries))
    arguments = ["--data", data(tmp_path / "data"), "--model", tmp_path / "best", "--output", tmp_path / "out"]
    assert train([str(a) for a in arguments], embedded_config=Path("none")) == 2
    assert "processor_config.json is damaged" in capsys.readouterr().err
    assert predict.main([str(tmp_path / "best"), str(tmp_path / "data")]) == 2
