"""Metrics of a trained model from the command line."""

import csv
import json

import pytest

from cmsbert_fast.evaluate import main


@pytest.fixture
def evaluate(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run


def table(folder):
    return list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))


def trained(train, out, *arguments):
    assert train(*arguments, "--batch-size", 9, "--epochs", 1, "--output", out)[0] == 0
    (results,) = out.glob("*/*/results.json")
    return results.parent, json.loads(results.read_text())


def test_metrics_of_scores_are_those_of_the_run(train, evaluate, short, corpus_folder, tmp_path):
    run, results = trained(train, tmp_path / "run", *short)
    out = tmp_path / "new" / "metrics"
    status, printed, errors = evaluate(run, "--data", corpus_folder, "--output", out)
    assert status == 0
    found = json.loads((out / "metrics.json").read_text())["metrics"]
    assert found == pytest.approx(results["test"], abs=1e-4)
    assert printed.startswith("reviews, the test split, 9 examples: scores from")
    assert f"mae                {results['test']['mae']:.3f}" in printed
    assert (out / "scatter.png").stat().st_size > 1000
    assert [row["id"] for row in table(out)] == [f"test{k}" for k in range(32, 41)]
    assert f"are in {out}" in errors
    status, _, errors = evaluate(run, "--data", corpus_folder, "--output", out)
    assert status == 2
    assert f"{out} exists" in errors
    assert "all splits, 41 examples" in evaluate(run, "--data", corpus_folder, "--split", "all")[1]
    assert "the valid split, 7 examples" in evaluate(run, "--data", corpus_folder, "--split", "valid")[1]


def test_classes_are_told_by_their_names(train, evaluate, bert, make_corpus, tmp_path):
    """Data that lack a class, and number the others otherwise, are measured as the model numbers them."""
    moods = ("angry", "calm", "happy")
    data = make_corpus(tmp_path / "data", label=lambda k: moods[k % 3])
    run, results = trained(train, tmp_path / "run", "--data", data, "--model", bert, "--variant", "bert")
    assert evaluate(run, "--data", data, "--output", tmp_path / "all")[0] == 0
    found = json.loads((tmp_path / "all" / "metrics.json").read_text())["metrics"]
    assert found == pytest.approx(results["test"], abs=1e-4)
    assert (tmp_path / "all" / "confusion.png").stat().st_size > 1000

    few = make_corpus(tmp_path / "few", label=lambda k: moods[1 + k % 2])
    assert evaluate(run, "--data", few, "--output", tmp_path / "two")[0] == 0
    rows = table(tmp_path / "two")
    assert [row["label"] for row in rows] == [moods[1 + k % 2] for k in range(32, 41)]
    right = sum(row["label"] == row["prediction"] for row in rows)
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())["metrics"]
    assert metrics["wa"] == pytest.approx(100 * right / 9)

    other = make_corpus(tmp_path / "other", label=lambda k: ("calm", "sad")[k % 2])
    status, _, errors = evaluate(run, "--data", other)
    assert status == 2
    assert "The data have the class 'sad', which the model does not know" in errors


def test_users_errors(train, evaluate, short, make_corpus, corpus_folder, tmp_path):
    run, _ = trained(train, tmp_path / "run", *short)
    named = make_corpus(tmp_path / "named", label=lambda k: "ab"[k % 2])
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "segments.csv").write_text("id,text\na,the film was good\n")
    for arguments, message in [
        ([run], "arguments are required: --data"),
        ([run, "--data", named], "labels of named are names of classes"),
        ([run, "--data", bare], "label"),
        ([run, "--data", corpus_folder, "--split", "tset"], "no split 'tset'"),
        ([run, "--data", corpus_folder, "--batch-size", 0], "at least 1"),
        ([tmp_path / "none", "--data", corpus_folder], "There is no checkpoint"),
    ]:
        status, out, errors = evaluate(*arguments)
        assert (status, out) == (2, ""), arguments
        assert errors.splitlines()[-1].startswith("error: ")
        assert message in errors
