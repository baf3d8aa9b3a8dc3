"""The page of all tables: what it shows, that it needs nothing else, and that texts of data stay texts."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from cmsbert_fast.experiments import curves, page, render, report
from cmsbert_fast.experiments.plan import Cell
from cmsbert_fast.experiments.tables import read_table
from cmsbert_fast.training.errors import UsageError
from tests.experiments.conftest import CONFIGS, write_run

SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'
NUMBERS = {
    "examples": 60,
    "recall_by_chance": {"at_1": 1.7, "at_5": 8.3},
    "recall_at_5": {"linguistic_to_visual": 31.0, "visual_to_linguistic": 27.0},
    "neighbour_correlation": {"linguistic_to_linguistic": 0.5, "visual_to_visual": 0.25},
}


@pytest.fixture
def written(tmp_path, scores):
    """A folder with runs of two systems, and the table of it, called "mine"."""
    ids, labels, predict = scores
    runs = {label: {k: [Path(f"runs/{label}/seed-{k}")] for k in range(2)} for label in "AB"}
    for label, error in (("A", 1.0), ("B", 0.3)):
        for k in range(2):
            folder = tmp_path / runs[label][k][0]
            facts = {
                "alignment": {**NUMBERS, "recall_at_5": {**NUMBERS["recall_at_5"], "linguistic_to_visual": 31 + 2 * k}}
            }
            write_run(folder, ids, labels, predict(error), **(facts if label == "B" else {}))
            lines = [{"event": "valid", "epoch": e + 1, "mae": 1 / (e + k + 1), "nu": 0.5} for e in range(3)]
            (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = tmp_path / "runs" / "B" / "seed-0" / "figures"
    figures.mkdir()
    for name in ("shift_maps", "embeddings", "scatter"):
        (figures / f"{name}.svg").write_bytes(SVG)
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / "x-bert.svg").write_bytes(SVG)
    told = {
        "id": "v<1>",
        "words": ["<script>", "&", "good"],
        "label": "1.20",
        "prediction": "0.90",
        "rule": "by length",
    }
    (figures / "captions.json").write_text(json.dumps({"shift_maps": told}))
    rows = [
        {"label": "A", "variant": "bert", "figures": {"paper": {"x": "0.8 -/80"}}},
        {"label": "B", "variant": "cmsbert"},
    ]
    values = {"title": "Mine: <b>", "data": ["x"], "metrics": ["mae", "acc2"], "rows": rows, "reference": "A"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    cells = [(row, Cell(None), runs[row.label]) for row in read_table(str(path), CONFIGS).rows]
    report.write_plan(tmp_path, str(path), {"x": cells})
    report.write_report(tmp_path, str(path), CONFIGS, resamples=200)
    return tmp_path, str(path)


class Reader(HTMLParser):
    """Collects the text of a page, and its tags with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.tags, " ".join(" ".join(reader.words).split())


def test_everything_is_on_the_page(written):
    root, name = written
    tags, text = read(page.write_page(root, [name], CONFIGS))
    value = json.loads((root / "tables" / "mine.json").read_text())["data"]["x"]
    assert f"{value['rows'][1]['metrics']['mae']['mean']:.3f} ±" in text
    assert "60 test examples of 12 videos. B has the best MAE" in text
    assert "distinct from all others" in text
    assert "Difference from A" in text
    assert "Ours beside printed figures" in text
    # The transcript as text, beside the map.
    assert "“<script> & good”" in text
    assert "label 1.20; prediction 0.90" in text
    assert "v<1>, by length" in text
    # The mean of two runs.
    row = text[text.index("recall at 5, %") :]
    assert row.startswith("recall at 5, % L→V V→L chance L→L V→V B 32.0 27.0 8.3 0.50 0.25")
    shown = {attributes["alt"] for tag, attributes in tags if tag == "img"}
    assert shown == {
        "Every row with its interval.",
        "Learning curves on x.",
        "Gates of Eq. 1 and 2.",
        "The common space of the modalities.",
        "Predictions.",
        "x-bert: validation score by pairs of settings.",
    }


def test_the_page_needs_no_other_file_and_runs_nothing(written):
    root, name = written
    path = page.write_page(root, [name], CONFIGS)
    tags, _ = read(path)
    assert "script" not in {tag for tag, _ in tags}
    for _, attributes in tags:
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("data:image/svg+xml;base64,", "#"))
        assert not any(key.startswith("on") for key in attributes)
    assert not re.findall(r"url\(|@import", path.read_text())
    before = path.read_bytes()
    page.write_page(root, [name], CONFIGS)
    assert path.read_bytes() == before


def test_what_is_missing_or_damaged(written):
    root, name = written
    assert page.write_page(root, [], CONFIGS) is None
    assert "There is no table" in page.write_page(root, [name, "77"], CONFIGS).read_text()
    captions = root / "runs" / "B" / "seed-0" / "figures" / "captions.json"
    captions.unlink()
    assert "Gates of Eq" not in page.write_page(root, [name], CONFIGS).read_text()
    captions.write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        page.write_page(root, [name], CONFIGS)
    captions.write_text(json.dumps({"shift_maps": []}))
    page.write_page(root, [name], CONFIGS)
    (root / "tables" / "mine.json").write_text("[]")
    with pytest.raises(UsageError, match="damaged"):
        page.write_page(root, [name], CONFIGS)


def test_data_without_the_metrics_of_the_table(written):
    """Classes in a table of scores: "--data NAME=DIR" adds any data set to any table."""
    root, name = written
    table = read_table(name, CONFIGS)
    section = json.loads((root / "tables" / "mine.json").read_text())["data"]["x"]
    assert page._finding(table, section).startswith("60 test examples of 12 videos. B has the best MAE, ")
    for row in section["rows"]:
        row["metrics"] = {"wa": row["metrics"]["mae"]}
        if row.get("comparison"):
            row["comparison"] = {"wa": row["comparison"]["mae"]}
    assert render.comparison_lines(table, section)[1] == []
    assert page._finding(table, section) == (
        "60 test examples of 12 videos. The labels have none of this table's metrics."
    )


def test_curves_come_from_the_logs(written, monkeypatch):
    root, _ = written
    section = json.loads((root / "tables" / "mine.json").read_text())["data"]["x"]
    drawn = []
    monkeypatch.setattr(curves, "plot_curves", lambda *arguments: drawn.append(arguments))
    monkeypatch.setattr(curves.style, "save", lambda figure, stem: None)
    (root / "runs" / "A" / "seed-1" / "log.jsonl").write_text('{"event": "valid", "epoch"')
    curves.draw(root / "c", root, "T", section)
    systems, label, lower, title, nu = drawn[0]
    assert {key: len(runs) for key, runs in systems.items()} == {"A": 1, "B": 2}
    assert systems["B"][1].epochs.tolist() == [1, 2, 3]
    assert systems["B"][1].values.tolist() == [1 / 2, 1 / 3, 1 / 4]
    assert (label, lower) == ("validation MAE", True)
    assert title == "T (not drawn, their log is missing or damaged: 1 of 4 runs)"
    assert nu["B"][0].values.tolist() == [0.5, 0.5, 0.5]
    for log in root.glob("runs/*/*/log.jsonl"):
        log.unlink()
    curves.draw(root / "c", root, "T", section)
    assert len(drawn) == 1
