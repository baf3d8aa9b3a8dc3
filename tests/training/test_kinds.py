"""Runs on every kind of label: what is trained, measured and left behind."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import pipeline

from cmsbert_fast.predict import main as predict
from cmsbert_fast.training.build import load_trained


def run_folder(out: Path) -> Path:
    return next(out.glob("*/seed-0"))


def predictions(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(train, bert_without_dropout, make_corpus, tmp_path) -> Callable[..., tuple[Path, dict, str]]:
    """Trains on labels of a function; returns folder, results and what was printed on stderr."""

    def run(label: Callable[[int], str], *arguments: object, figures: bool = False) -> tuple[Path, dict, str]:
        data = make_corpus(tmp_path / "reviews", label)
        given = ["--data", data, "--model", bert_without_dropout, "--epochs", 2, "--batch-size", 9]
        status, errors = train(*given, *arguments, "--output", tmp_path / "out", figures=figures)
        assert status == 0, errors
        folder = run_folder(tmp_path / "out")
        return folder, json.loads((folder / "results.json").read_text()), errors

    return run


def test_scores_of_sims(trained):
    _, results, errors = trained(lambda i: f"{(i % 11 - 5) / 5:.1f}")
    assert list(results["test"]) == ["mae", "corr", "acc2", "acc3", "acc5", "f1"]
    assert "warning" not in errors


def test_a_column_of_one_emotion_gets_no_accuracy(trained):
    _, results, _ = trained(lambda i: f"{max(0, i % 7 - 3) / 3:.2f}")
    assert list(results["test"]) == list(results["valid"]) == ["mae", "corr"]


def test_whole_numbers_are_warned_of_and_become_classes(trained, train, tmp_path, bert_without_dropout):
    _, results, errors = trained(lambda i: str(i % 2), figures=True)
    assert list(results["test"]) == ["mae", "corr"]
    assert "warning: all labels are whole numbers (0, 1) and are predicted as scores" in errors
    given = ["--data", tmp_path / "reviews", "--model", bert_without_dropout, "--epochs", 1, "--task", "classification"]
    status, errors = train(*given, "--output", tmp_path / "classes", figures=True)
    assert (status, "warning" in errors) == (0, False)
    folder = run_folder(tmp_path / "classes")
    results = json.loads((folder / "results.json").read_text())
    assert list(results["test"]) == ["wa", "ua", "f1"]
    assert {row["label"] for row in predictions(folder)} == {"0", "1"}
    assert (folder / "figures" / "confusion.png").stat().st_size > 5_000
    model, _ = load_trained(folder)
    assert (model.config.problem_type, model.config.id2label) == ("single_label_classification", {0: "0", 1: "1"})
    status, errors = train(*given[:-1], "ranking", "--output", tmp_path / "other")
    assert (status, errors) == (2, "error: task is 'ranking' but must be one of classification, regression.\n")


def test_a_single_class_is_refused(train, make_corpus, bert_without_dropout, tmp_path):
    data = make_corpus(tmp_path / "reviews", lambda i: "glad")
    status, errors = train("--data", data, "--model", bert_without_dropout, "--output", tmp_path / "out")
    assert status == 2
    assert "All examples of reviews are of the class 'glad'" in errors


EMOTIONS = ("happy", "sad", "fear")


@pytest.mark.parametrize("variant", ["cmsbert", "cmsbert-clr"])
def test_several_labels_at_once(train, make_corpus, bert_without_dropout, tmp_path, variant, capsys):
    data = make_corpus(tmp_path / "reviews")
    table = data / "segments.tsv"
    header, *lines = table.read_text().splitlines()
    present = {line.split("\t")[0]: (k % 2, (k // 2) % 2, k % 3 == 0) for k, line in enumerate(lines)}
    rows = ["\t".join([line, *(str(0.5 * there) for there in present[line.split("\t")[0]])]) for line in lines]
    table.write_text("\n".join(["\t".join([header, *EMOTIONS]), *rows]) + "\n")
    given = ["--data", data, "--model", bert_without_dropout, "--variant", variant, "--label", ",".join(EMOTIONS)]
    given += ["--epochs", 2, "--batch-size", 9]
    status, errors = train(*given, "--output", tmp_path / "out", figures=True)
    assert status == 0, errors
    folder = run_folder(tmp_path / "out")
    results = json.loads((folder / "results.json").read_text())
    names = [f"{metric}_{emotion}" for emotion in EMOTIONS for metric in ("acc", "ua", "f1")]
    assert list(results["test"]) == ["acc", "ua", "f1", *names]
    found = predictions(folder)
    for row in found:
        assert row["label"].split() == [name for name, there in zip(EMOTIONS, present[row["id"]], strict=True) if there]
        likely = [name for name in EMOTIONS if float(row[f"probability_{name}"]) > 0.5]
        assert row["prediction"].split() == likely
    right = np.mean([("happy" in row["label"]) == ("happy" in row["prediction"]) for row in found])
    assert results["test"]["acc_happy"] == pytest.approx(100 * right)
    assert (folder / "figures" / "confusion.png").stat().st_size > 5_000
    model, _ = load_trained(folder)
    assert model.config.problem_type == "multi_label_classification"
    assert predict([str(folder), str(data), "--split", "test"]) == 0
    written = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["prediction"] for row in written] == [row["prediction"] for row in found]
    record = json.loads((folder / "log.jsonl").read_text().splitlines()[-2])
    assert 0 < record["task_loss"] < 2


def test_several_labels_train_by_binary_cross_entropy(batch_of_three):
    model, inputs = batch_of_three
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    output = model(**inputs, labels=labels)
    logits = output.logits.detach()
    expected = -(labels * F.logsigmoid(logits) + (1 - labels) * F.logsigmoid(-logits)).mean()
    torch.testing.assert_close(output.task_loss, expected)
    # Of Eq. 23, examples with the same labels are alike, as those of a class are.
    same = model(**inputs, labels=torch.tensor([[1.0, 0, 0], [0, 0, 0], [1.0, 0, 0]])).contrastive_loss
    classes = model(**inputs, labels=torch.tensor([1, 0, 1])).contrastive_loss
    torch.testing.assert_close(same, classes)
    with pytest.raises(ValueError, match="several labels at once"):
        model(**inputs, labels=labels.long())


@pytest.fixture
def batch_of_three():
    from cmsbert_fast import CMSBertCLRForSequenceClassification
    from tests.models.small import config

    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config(num_labels=3)).eval()
    inputs = dict(input_ids=torch.randint(50, (3, 5)), visual=torch.randn(3, 4, 5), acoustic=torch.randn(3, 2, 3))
    return model, inputs


def test_the_pipeline_prints_the_score(trained):
    folder, _, _ = trained(lambda i: f"{(7 * i % 31 - 15) / 5:.1f}", "--variant", "bert")
    model, processor = load_trained(folder)
    assert model.config.problem_type == "regression"
    classify = pipeline("text-classification", model=model, tokenizer=processor.tokenizer)
    text = "the film was not good"
    with torch.no_grad():
        score = float(model(**processor(text)).logits)
    assert classify(text)[0]["score"] == pytest.approx(score, abs=1e-6)
