"""Reports from folders of runs: means, folds, what is missing, what is best, and the files."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from cmsbert_fast.experiments import render, report, results
from cmsbert_fast.experiments.plan import Cell
from cmsbert_fast.experiments.tables import read_table
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.metrics import sims_metrics
from cmsbert_fast.training.settings import TrainingSettings
from tests.experiments.conftest import CONFIGS, write_run

ROWS = [
    {"label": "old & cited", "figures": {"paper": {"x": "0.9 -/80.5"}}},
    {"label": "A", "variant": "bert", "figures": {"paper": {"x": "0.8 70.1/80.2"}, "mmsa": {"x": "0.7 -/81"}}},
    {"label": "B", "variant": "cmsbert", "note": "a note"},
    {"label": "C", "variant": "tfn"},
]


def make(root, rows, runs, reasons=None, **options):
    """Writes a table of ``rows``, the plan of its ``runs``, and its report."""
    values = {"title": "T", "data": ["x"], "metrics": ["mae", "acc2"], "rows": rows, **options}
    path = root / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    table = read_table(str(path), CONFIGS)
    cells = [(row, Cell(None, (reasons or {}).get(row.label, "")), runs.get(row.label, {})) for row in table.rows]
    report.write_plan(root, str(path), {"x": cells})
    return report.write_report(root, str(path), CONFIGS, resamples=300)["data"]["x"]


@pytest.fixture
def section(tmp_path, scores):
    ids, labels, predict = scores
    runs = {}
    for label, error, seeds in (("A", 1.0, 3), ("B", 0.3, 2)):
        runs[label] = {k: [Path(f"runs/{label}/seed-{k}")] for k in range(3)}
        for k in range(seeds):
            write_run(tmp_path / runs[label][k][0], ids, labels, predict(error))
    broken = tmp_path / runs["B"][2][0]
    broken.mkdir()
    (broken / "failure.json").write_text(json.dumps({"sentence": "the loss is not finite"}))
    reasons = {"old & cited": "cited", "C": "not run: no data"}
    return make(tmp_path, ROWS, runs, reasons, reference="B")


@pytest.mark.parametrize("content", ["{", "[]", "{}", "null"])
def test_a_run_that_failed_counts_as_failed_whatever_its_file_says(tmp_path, content):
    folders = {0: [Path("seed-0")]}
    (tmp_path / "seed-0").mkdir()
    assert (results.find(tmp_path, folders).failed, results.find(tmp_path, folders).missing) == (0, 1)
    (tmp_path / "seed-0" / "failure.json").write_text(content)
    found = results.find(tmp_path, folders)
    assert (found.failed, found.missing) == (1, 0)
    assert found.sentence == "failure.json of the run, which says why, cannot be read"


def test_numbers_are_those_of_the_runs(section, tmp_path):
    row = section["rows"][1]
    tested = [json.loads((tmp_path / f"runs/A/seed-{k}/results.json").read_text())["test"] for k in range(3)]
    for name in ("mae", "corr", "acc2_positive", "f1_non_negative", "acc7"):
        values = [metrics[name] for metrics in tested]
        found = row["metrics"][name]
        assert found["values"] == pytest.approx(values)
        assert found["mean"] == pytest.approx(np.mean(values))
        assert found["std"] == pytest.approx(np.std(values, ddof=1))
        assert found["interval"][0] <= found["mean"] <= found["interval"][1]
    assert row["seeds"] == [0, 1, 2]
    assert row["runs"][1]["folder"] == "runs/A/seed-1"
    assert row["runs"][1]["test"] == tested[1]


def test_the_cost_of_a_run_is_a_mean_over_runs(tmp_path, scores):
    ids, labels, predict = scores
    folders = {k: [Path(f"runs/A/seed-{k}")] for k in range(3)}
    for k, seconds, epochs in ((0, 30.0, 10), (1, 10.0, 2)):
        write_run(
            tmp_path / folders[k][0], ids, labels, predict(1.0), seconds=seconds, epochs=epochs, parameters=12_345
        )
    section = make(tmp_path, ROWS, {"A": folders}, {"old & cited": "cited", "B": "not run", "C": "not run"})
    assert render.cost_lines(section)[1][1:] == [["A", "12,345", "6.0", "20", "4.0"]]
    assert "| A      | 12,345     | 6.0    | 20      | 4.0" in (tmp_path / "tables" / "mine.md").read_text()
    assert not render.cost_lines({"rows": [{"label": "A", "runs": []}]})[1]


def test_the_worse_system_is_found_worse(section):
    compared = section["rows"][1]["comparison"]["mae"]
    assert compared["difference"] > 0
    assert compared["p_holm"] < 0.05
    assert compared["cluster_interval"][0] > 0
    assert compared["superiority"] == 0
    assert "comparison" not in section["rows"][2]
    assert section["videos"] == 12
    marks = [row["metrics"]["mae"]["best"] for row in section["rows"][1:3]]
    assert marks == [False, True]
    assert not section["rows"][1]["metrics"]["mae"]["like_best"]


def test_what_is_missing_is_said(section, tmp_path):
    assert [row["status"] for row in section["rows"]] == ["cited", "", "failed (1 of 3)", "not run: no data"]
    assert section["rows"][2]["notes"] == ["a note", "the loss is not finite"]
    text = (tmp_path / "tables" / "mine.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert any(line.startswith("| old & cited (cited)") and "-/80.50" in line for line in lines)
    assert any(line.startswith("| B ") and "2, failed (1 of 3)" in line and "**" in line for line in lines)
    assert any(line.startswith("| C ") and "not run: no data" in line for line in lines)
    figures = next(line for line in lines if line.startswith("| A ") and "0.800" in line)
    assert [cell.strip() for cell in figures.split("|")][4:6] == ["0.800", "0.700"]


def test_all_files(section, tmp_path):
    folder = tmp_path / "tables"
    assert {path.name for path in folder.iterdir()} == {
        f"mine.{end}" for end in ("json", "md", "tex", "csv", "png", "svg")
    }
    tex = (folder / "mine.tex").read_text()
    assert r"old \& cited\textsuperscript{c} & 0.900 & -/80.50 \\" in tex
    assert r"\multicolumn{2}{c}{not run: no data}" in tex
    assert tex.count(r"\textbf{") >= 3
    columns = tex.split(r"\begin{tabular}{")[1].split("}")[0]
    for line in tex.splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert line.count(" & ") + 1 == len(columns), line
    rows = list(csv.DictReader((folder / "mine.csv").read_text().splitlines()))
    assert {row["source"] for row in rows} == {"ours", "paper", "MMSA"}
    (mae,) = (row for row in rows if (row["method"], row["source"], row["metric"]) == ("A", "ours", "mae"))
    assert float(mae["value"]) == section["rows"][1]["metrics"]["mae"]["mean"]
    assert float(mae["p_holm"]) == section["rows"][1]["comparison"]["mae"]["p_holm"]


def test_folds_are_averaged_and_pooled(tmp_path, scores):
    classes, generator = ("angry", "sad"), np.random.default_rng(1)
    runs, accuracies = {"A": {}}, []
    for seed in range(2):
        runs["A"][seed] = [Path(f"runs/A/fold-{f}-seed-{seed}") for f in (1, 2)]
        right = []
        for fold, count in ((0, 4), (1, 12)):
            labels = np.arange(count) % 2
            predictions = np.where(generator.random(count) < 0.7, labels, 1 - labels)
            ids = [f"fold{fold}v{i // 2}_{i}" for i in range(count)]
            write_run(tmp_path / runs["A"][seed][fold], ids, labels, predictions, classes)
            right.append(predictions == labels)
        accuracies.append((np.mean([r.mean() for r in right]), np.concatenate(right).mean()))
    row = make(tmp_path, [{"label": "A", "variant": "bert"}], runs, metrics=["wa", "ua"], folds=2)["rows"][0]
    assert row["metrics"]["wa"]["values"] == pytest.approx([100 * mean for mean, _ in accuracies])
    assert row["pooled"]["wa"]["values"] == pytest.approx([100 * pooled for _, pooled in accuracies])
    assert "A, folds pooled" in (tmp_path / "tables" / "mine.md").read_text()


def test_a_seed_counts_once_all_folds_have_finished(tmp_path, scores):
    ids, labels, predict = scores
    folders = [Path("runs/fold-1"), Path("runs/fold-2")]
    write_run(tmp_path / folders[0], ids, labels, predict(1.0))
    write_run(tmp_path / folders[1], ids, labels, None)  # not tested
    found = results.find(tmp_path, {0: folders})
    assert (found.seeds, found.missing, found.failed) == ([], 1, 0)


def test_embeddings_of_the_checkpoint_are_not_called_glove(tmp_path):
    def label(vectors):
        path = tmp_path / "vectors.yaml"
        path.write_text(
            yaml.safe_dump({"title": "T", "data": ["x"], "metrics": ["mae"], "rows": [{"label": "MFN (G)"}]})
        )
        (row,) = read_table(str(path), CONFIGS).rows
        cell = Cell(TrainingSettings(data="d", word_vectors=vectors))
        report.write_plan(tmp_path, str(path), {"x": [(row, cell, {0: [Path("a")]})]})
        return report.write_report(tmp_path, str(path), CONFIGS)["data"]["x"]["rows"][0]["label"]

    assert label("bert") == "MFN (E)"
    assert label("glove.txt") == "MFN (G)"


def test_no_run_yet(tmp_path):
    section = make(tmp_path, ROWS, {"A": {0: [Path("runs/a")]}}, {"C": "not run: no data"}, reference="B")
    assert section["examples"] is None
    assert [row["status"] for row in section["rows"]][1] == "not run"
    assert "No run has finished" in (tmp_path / "tables" / "mine.md").read_text()


def test_other_test_sets_are_not_compared(tmp_path, scores):
    ids, labels, predict = scores
    write_run(tmp_path / "a", ids, labels, predict(1.0))
    write_run(tmp_path / "b", ids[1:], labels[1:], predict(1.0)[1:])
    with pytest.raises(UsageError, match="different test sets"):
        results.find(tmp_path, {0: [Path("a")], 1: [Path("b")]})
    with pytest.raises(UsageError, match="another test set"):
        make(tmp_path, ROWS, {"A": {0: [Path("a")]}, "B": {0: [Path("b")]}}, reference="B")


def test_damaged_predictions_end_in_a_sentence(tmp_path, scores):
    ids, labels, predict = scores
    write_run(tmp_path / "a", ids, labels, predict(1.0))
    (tmp_path / "a" / "predictions.csv").write_text("id,label\n")
    with pytest.raises(UsageError, match="cannot be read"):
        results.find(tmp_path, {0: [Path("a")]})


def test_one_seed_has_no_spread(tmp_path, scores):
    ids, labels, predict = scores
    write_run(tmp_path / "a", ids, labels, predict(1.0))
    row = make(tmp_path, ROWS, {"A": {0: [Path("a")]}}, reference="B")["rows"][1]
    assert row["metrics"]["mae"]["std"] is None
    assert "comparison" not in row  # the reference has no run
    assert math.isfinite(row["metrics"]["mae"]["interval"][0])


def test_videos():
    assert results.videos(["a_1", "a_2", "b_1"]).tolist() == [0, 0, 1]
    assert results.videos(["a", "b"]) is None
    assert results.videos(["a_1", "a_2"]) is None


def test_plans_of_several_commands_are_kept(tmp_path):
    report.write_plan(tmp_path, "1", {})
    report.write_plan(tmp_path, "2", {})
    assert list(report.planned_tables(tmp_path)) == ["1", "2"]
    with pytest.raises(UsageError, match="no plan"):
        report.planned_tables(tmp_path / "elsewhere")


def test_scores_of_sims_get_no_accuracy_of_mosi(tmp_path, scores):
    ids, labels, predict = scores
    small = np.clip(labels / 3, -1, 1)
    runs = {}
    for label in ("A", "B"):
        runs[label] = {0: [Path(f"runs/{label}/seed-0")]}
        folder = tmp_path / runs[label][0][0]
        written = write_run(folder, ids, small, predict(0.5) / 3)
        tested = sims_metrics(predict(0.5) / 3, small)
        (folder / "results.json").write_text(json.dumps({**written, "test": tested}))
    section = make(tmp_path, ROWS[1:3], runs, reference="B")
    for row in section["rows"]:
        assert row["metrics"].keys() == {"mae", "corr"}
    assert section["rows"][0]["comparison"].keys() == {"mae", "corr"}
    text = (tmp_path / "tables" / "mine.md").read_text()
    assert next(line.split("|")[4].strip() for line in text.splitlines() if line.startswith("| A  ")) == "- / -"


def test_a_damaged_plan_is_not_begun_anew(tmp_path):
    """The plans of other commands would be lost in silence."""
    for text in ('{"tables"', "[]"):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(UsageError, match=r"plan\.json is damaged; remove it"):
            report.write_plan(tmp_path, "2", {})
        assert (tmp_path / "plan.json").read_text() == text
    (tmp_path / "plan.json").unlink()
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(UsageError, match=r"plan\.json cannot be read"):  # nothing to remove
        report.write_plan(tmp_path, "2", {})
