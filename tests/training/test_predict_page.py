"""``predict --page``: what is in the page is what the model made of the data."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from cmsbert_fast.data import read_corpus
from cmsbert_fast.predict import main
from cmsbert_fast.training.build import load_trained
from cmsbert_fast.training.gates import word_gates
from cmsbert_fast.training.runs import main as train
from tests.data.extracted import write_extracted

TEXTS = ("the film was good", "dull and bad") * 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory, bert) -> Path:
    """A CMSBERT-CLR of extracted features."""
    out = tmp_path_factory.mktemp("trained")
    folder = write_extracted(out / "data", TEXTS, ("train", "valid", "test"), labels=True)
    arguments = ["--data", folder, "--model", bert, "--epochs", 1, "--batch-size", 4, "--output", out / "run"]
    assert train([str(a) for a in arguments], embedded_config=Path("none")) == 0
    return next((out / "run").glob("*/seed-0"))


def content(page: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)[1])


def test_the_page_shows_scores_words_times_gates_and_features(capsys, trained, tmp_path) -> None:
    (tmp_path / "my clip.mp4").write_bytes(b"whatever")
    folder = write_extracted(tmp_path / "data", recording=tmp_path / "my clip.mp4")
    (tmp_path / "out").mkdir()
    page = tmp_path / "out" / "p.html"
    assert main([str(trained), str(folder), "--page", str(page)]) == 0
    out, err = capsys.readouterr()
    assert f"the page is {page}" in err
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["id", "prediction"]  # of features as ever
    found = content(page)
    assert found["media"] == [{"name": "my clip.mp4", "url": "./../my%20clip.mp4"}]
    assert found["features"]["visual"] == {"columns": ["roll", "smile", "brow"], "units": ["degrees", "", ""]}
    assert (found["layers"], found["depth"], found["signed"], found["classes"]) == ([0, 1], 2, False, [])
    model, processor = load_trained(trained)
    examples = read_corpus(folder, labels=False, clocks=True).splits["all"]
    for row, segment, example in zip(rows, found["segments"], examples, strict=True):
        assert segment["scores"] == [pytest.approx(float(row["prediction"]), rel=1e-3)]
        assert (segment["id"], tuple(segment["words"]), segment["read"]) == (
            row["id"],
            example.words,
            len(example.words),
        )
        assert segment["span"] == list(example.clock.span)
        np.testing.assert_allclose(segment["times"], example.clock.words, atol=1e-3)
        for modality, gates in word_gates(model, processor, example).gates.items():
            np.testing.assert_allclose(segment["frames"][modality]["gates"], gates.mean(axis=2), rtol=1e-3)
            assert segment["frames"][modality]["count"] == len(getattr(example, modality))
        middle = example.clock.visual.mean(axis=1)
        np.testing.assert_allclose(segment["frames"]["visual"]["times"], middle, atol=1e-3)


def test_data_without_times_names_or_recordings(capsys, trained, corpus_folder, tmp_path, bert) -> None:
    arguments = ["--data", corpus_folder, "--model", bert, "--epochs", 1, "--batch-size", 9]
    arguments += ["--variant", "bert", "--output", tmp_path / "run"]
    assert train([str(a) for a in arguments], embedded_config=Path("none")) == 0
    text_only = next((tmp_path / "run").glob("*/seed-0"))
    page = tmp_path / "p.html"
    assert main([str(text_only), str(corpus_folder), "--split", "test", "--page", str(page)]) == 0
    found = content(page)
    assert len(found["segments"]) == 9
    assert found["layers"] == []
    assert found["segments"][0]["span"] is found["segments"][0]["times"] is None
    assert found["features"]["acoustic"]["columns"] == ["feature 1", "feature 2"]
    assert {media["url"] for media in found["media"]} == {None}
    assert "This model has no gates" in page.read_text(encoding="utf-8")


def test_users_errors_come_before_the_work(capsys, trained, tmp_path, monkeypatch) -> None:
    folder = write_extracted(tmp_path / "data")
    (tmp_path / "there.html").write_text("mine")
    monkeypatch.setattr("cmsbert_fast.predict_page.MOST", 1)
    monkeypatch.setattr("cmsbert_fast.predict.predict_corpus", lambda *_: pytest.fail("it was computed"))
    for page, message in (
        ("there.html", "exists; remove it or choose another --page"),
        ("no/p.html", "There is no folder"),
        ("p.html", "A page shows at most 1 segments, but there are 2"),
    ):
        assert main([str(trained), str(folder), "--page", str(tmp_path / page)]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr("cmsbert_fast.predict_page.MOST", 9)
    monkeypatch.setattr("cmsbert_fast.predict_page.LARGEST", 100)
    assert main([str(trained), str(folder), "--page", str(tmp_path / "p.html")]) == 2
    assert "more than 0: its 2 segments have" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "there.html").read_text() == "mine"
