"""Folders of runs that nobody trained, and a small table on small data."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from cmsbert_fast.training.metrics import emotion_metrics, sentiment_metrics
from tests.training.conftest import write_bert, write_corpus

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def write_run(folder, ids, labels, predictions, classes=(), seconds=10.0, **facts):
    """A finished run; ``predictions`` None: one that was not tested."""
    folder.mkdir(parents=True)
    metrics = {"mae": 1.0, **facts.pop("valid", {})}
    settings = {"variant": "bert", "seed": 0, "fold": None}
    content = {"settings": settings, "data": {"fingerprint": "f"}, "valid": metrics, "seconds": seconds, **facts}
    if predictions is not None:
        content["test"] = (emotion_metrics if classes else sentiment_metrics)(predictions, labels)
        with open(folder / "predictions.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["id", "label", "prediction", *(f"probability_{name}" for name in classes)])
            for name, label, prediction in zip(ids, labels, predictions, strict=True):
                values = [classes[label], classes[prediction]] if classes else [label, prediction]
                rows.writerow([name, *values, *(0.5 for _ in classes)])
    (folder / "results.json").write_text(json.dumps(content))
    return content


@pytest.fixture
def scores():
    """A test set of 60 segments of 12 videos: ids, labels, and a maker of predictions."""
    generator = np.random.default_rng(0)
    labels = np.round(generator.normal(0, 1.5, 60), 1)
    labels[:4] = 0.0
    ids = [f"video{i // 5}_{i % 5}" for i in range(60)]

    def predict(error):
        return np.round(labels + generator.normal(0, error, 60), 4)

    return ids, labels, predict


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Arguments of a command that trains for seconds: a table of two rows, its data and its settings."""
    folder = tmp_path_factory.mktemp("small")
    data = write_corpus(folder / "reviews")
    config = folder / "reviews.yaml"
    settings = {"model": str(write_bert(folder / "bert", 0.1)), "epochs": 2, "batch_size": 8, "device": "cpu"}
    config.write_text(yaml.safe_dump({**settings, "checkpoint_every_steps": 1, "threads": 1}))
    space = {"temperature": [0.1, 0.5]}
    rows = {
        "small": [{"label": "BERT", "variant": "bert"}, {"label": "CMSBERT", "variant": "cmsbert"}],
        "broken": [
            {"label": "BERT", "variant": "bert"},
            {"label": "CMSBERT", "variant": "cmsbert", "settings": {"learning_rate": 1e30}},
        ],
        "tuned": [{"label": "CLR", "variant": "cmsbert-clr", "space": space}],
    }
    for name, of_table in rows.items():
        table = {"title": name, "data": ["reviews"], "metrics": ["mae", "corr", "acc2", "f1"], "rows": of_table}
        if len(of_table) > 1:
            table["reference"] = "CMSBERT"
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(table))

    def arguments(table, output, *more):
        return [
            *("tables", str(folder / f"{table}.yaml"), "--data", f"reviews={data}", "--config", f"reviews={config}"),
            *("--output", str(output), "--resamples", "200", *map(str, more)),
        ]

    return arguments
