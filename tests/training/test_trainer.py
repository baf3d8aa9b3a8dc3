"""What a run computes and leaves behind."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoProcessor

from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.data import read_corpus
from cmsbert_fast.training import checkpoint, evaluate, figures
from cmsbert_fast.training.batches import Batches
from cmsbert_fast.training.build import build
from cmsbert_fast.training.settings import TrainingSettings
from tests.models.small import OURS
from tests.training.helpers import CPU, records


def test_ema_follows_the_validation_losses(train, short, tmp_path):
    assert train(*short, "--output", tmp_path, "--momentum", 0.8)[0] == 0
    # It starts from a validation pass of the untrained model (Eq. 22) ...
    settings = TrainingSettings(data=str(short[1]), model=str(short[3]), batch_size=9)
    corpus = read_corpus(short[1])
    checkpoint.seed_everything(0)
    model, processor = build(settings, corpus)
    predictions = evaluate.predict(model, Batches(corpus.splits["valid"], processor, model, CPU.device), CPU, 9)
    losses = evaluate.losses(model, predictions, 9)
    (start,) = records(tmp_path, "start")
    assert start["nu"] == pytest.approx(losses["task"] / losses["contrastive"], rel=1e-6)
    # ... and moves after every epoch (Eq. 21); in between it weights the contrastive loss (Eq. 20).
    nu = start["nu"]
    for valid in records(tmp_path, "valid"):
        steps = [r for r in records(tmp_path, "train") if r["epoch"] == valid["epoch"]]
        assert len(steps) == 3
        for step in steps:
            assert step["nu"] == pytest.approx(nu, rel=1e-6)
            assert step["loss"] == pytest.approx(step["task_loss"] + nu * step["contrastive_loss"], rel=1e-6)
        nu = 0.8 * nu + 0.2 * valid["task_loss"] / valid["contrastive_loss"]
        assert valid["nu"] == pytest.approx(nu, rel=1e-6)
    best = CMSBertCLRForSequenceClassification.from_pretrained(next(tmp_path.glob("*/*/best")))
    best_epoch = json.loads(next(tmp_path.glob("*/*/results.json")).read_text())["best_epoch"]
    assert float(best.nu) == pytest.approx(records(tmp_path, "valid")[best_epoch - 1]["nu"], rel=1e-6)


def test_clipping_limits_every_entry(train, short, tmp_path, monkeypatch):
    largest = []

    def spy(self, *args, **kwargs):
        gradients = [p.grad.abs().max() for group in self.param_groups for p in group["params"]]
        largest.append(float(torch.stack(gradients).max()))

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    assert train(*short, "--max-grad-value", 1e-3, "--output", tmp_path)[0] == 0
    assert largest == pytest.approx([1e-3] * 6)
    assert all(record["gradient_norm"] > 1e-2 for record in records(tmp_path, "train"))


def test_clipping_limits_the_norm(train, short, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def measured(self, *arguments):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    assert train(*short, "--max-grad-norm", 0.5, "--output", tmp_path)[0] == 0
    assert min(r["gradient_norm"] for r in records(tmp_path, "train")) > 0.5
    assert norms == pytest.approx([0.5] * 6, rel=1e-4)


def test_early_stopping_and_selection(train, short, tmp_path):
    # Steps too small to change a weight: no epoch is better than the first.
    status, _ = train(*short, "--epochs", 9, "--early-stopping", 2, "--learning-rate", 1e-30, "--output", tmp_path)
    assert status == 0
    assert len(records(tmp_path, "valid")) == 3
    results = json.loads(next(tmp_path.glob("*/*/results.json")).read_text())
    assert (results["best_epoch"], results["epochs"]) == (1, 3)


def test_bf16_is_near_fp32(train, short, tmp_path):
    for precision in ("fp32", "bf16"):
        assert train(*short, "--precision", precision, "--output", tmp_path / precision)[0] == 0
    full, half = (np.array([r["loss"] for r in records(tmp_path / p, "train")]) for p in ("fp32", "bf16"))
    assert (full != half).all()
    assert half == pytest.approx(full, rel=0.03)


def test_every_variant(train, short, tmp_path, capsys):
    status, _ = train(*short, "--epochs", 1, "--variant", *OURS, "--output", tmp_path, figures=True)
    assert status == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [row["variant"] for row in rows] == list(OURS)
    assert (tmp_path / "summary.md").read_text().count("\n") == 2 + len(OURS)
    saved = {v: AutoConfig.from_pretrained(tmp_path / v.replace("/", "-") / "seed-0" / "best") for v in OURS}
    assert {v: c.cms_layers for v, c in saved.items() if c.cms_layers != [0, 1]} == {"bert": [], "cmsbert/1": [0]}
    assert [v for v, c in saved.items() if c.smoothing is None] == ["cmsbert-clr-no-ls", "cmsbert-clr-no-ema-no-ls"]
    assert [v for v, c in saved.items() if "CLR" in c.architectures[0]] == list(OURS)[3:]
    for variant in OURS:
        run = tmp_path / variant.replace("/", "-")
        log = [json.loads(line) for line in (run / "seed-0" / "log.jsonl").read_text().splitlines()]
        weights = {r.get("nu") for r in log if r["event"] == "train"}
        expected = "no-ema" in variant or "clr" not in variant
        assert (weights in ({1.0}, {None})) == expected
        figures = {path.name for path in (run / "seed-0" / "figures").iterdir()}
        names = {"scatter"} | ({"shift_maps"} if variant != "bert" else set())
        names |= {"embeddings"} if "clr" in variant else set()
        assert figures == {"captions.json", *(f"{name}.{end}" for name in names for end in ("png", "svg"))}
        captions = json.loads((run / "seed-0" / "figures" / "captions.json").read_text())
        assert captions.keys() == names


def test_what_a_run_leaves_behind(train, short, tmp_path, corpus_folder):
    assert train(*short, "--seeds", 0, 1, "--output", tmp_path, figures=True)[0] == 0
    corpus = read_corpus(corpus_folder)
    results = []
    for seed in (0, 1):
        folder = tmp_path / "cmsbert-clr" / f"seed-{seed}"
        result = json.loads((folder / "results.json").read_text())
        results.append(result)
        assert result["settings"]["seed"] == seed
        assert {"python", "torch", "transformers", "numpy", "cmsbert_fast"} <= set(result["versions"])
        assert result["seconds"] > 0
        assert {"mae", "corr", "acc2_non_negative", "acc2_positive", "f1_positive", "acc7", "acc5"} <= set(
            result["test"]
        )
        with open(folder / "predictions.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["id"] for row in rows] == [example.id for example in corpus.splits["test"]]
        error = np.mean([abs(float(row["prediction"]) - float(row["label"])) for row in rows])
        assert error == pytest.approx(result["test"]["mae"], rel=1e-5)
        assert torch.load(folder / "checkpoint.pt", weights_only=True)["progress"]["epoch"] == 2
        captions = json.loads((folder / "figures" / "captions.json").read_text())
        assert captions["embeddings"]["alignment"] == result["alignment"]
        assert result["alignment"]["examples"] == len(corpus.splits["test"])
        assert set(result["alignment"]["recall_at_1"]) == {
            f"{a}_to_{b}" for a, b in itertools.permutations(("linguistic", "visual", "acoustic"), 2)
        }
        assert not (folder / "tensorboard").exists()
        valid = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines() if '"valid"' in line]
        assert result["valid"]["mae"] == pytest.approx(min(record["mae"] for record in valid), rel=1e-6)
        assert AutoProcessor.from_pretrained(folder / "best").visual_mean is not None
    (row,) = json.loads((tmp_path / "summary.json").read_text())
    values = [result["test"]["mae"] for result in results]
    assert row["mean"]["mae"] == pytest.approx(np.mean(values))
    assert row["std"]["mae"] == pytest.approx(np.std(values, ddof=1))
    assert f"{row['mean']['mae']:.3f} ± {row['std']['mae']:.3f}" in (tmp_path / "summary.md").read_text()

    # Resuming what is finished repeats nothing.
    before = (tmp_path / "cmsbert-clr" / "seed-0" / "results.json").stat().st_mtime_ns
    assert train(*short, "--seeds", 0, 1, "--output", tmp_path, "--resume")[0] == 0
    assert (tmp_path / "cmsbert-clr" / "seed-0" / "results.json").stat().st_mtime_ns == before


def test_classes(train, short, tmp_path, make_corpus):
    folder = make_corpus(tmp_path / "emotions", label=lambda i: ("sad", "angry", "happy")[i % 3])
    out = tmp_path / "out"
    assert train("--data", folder, *short[2:], "--output", out)[0] == 0
    result = json.loads(next(out.glob("*/*/results.json")).read_text())
    assert set(result["test"]) == {"wa", "ua", "f1"}
    with open(next(out.glob("*/*/predictions.csv")), newline="") as file:
        rows = list(csv.DictReader(file))
    names = [key.removeprefix("probability_") for key in rows[0] if key.startswith("probability_")]
    assert sorted(names) == ["angry", "happy", "sad"]
    right = [row["label"] == row["prediction"] for row in rows]
    assert result["test"]["wa"] == pytest.approx(100 * np.mean(right))
    for row in rows:
        chances = {name: float(row[f"probability_{name}"]) for name in names}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert max(chances, key=chances.get) == row["prediction"]
    best = max(records(out, "valid"), key=lambda record: record["wa"])
    assert result["best_epoch"] == best["epoch"]


def test_continuing_from_a_trained_checkpoint(train, short, tmp_path):
    assert train(*short, "--output", tmp_path / "a")[0] == 0
    trained = next((tmp_path / "a").glob("*/*/best"))
    assert train(*short[:2], "--model", trained, *short[4:], "--output", tmp_path / "b")[0] == 0
    first = records(tmp_path / "b", "start")[0]["nu"]
    assert math.isfinite(first)
    # The trained weights are where it starts, not new ones.
    settings = TrainingSettings(data=str(short[1]), model=str(trained))
    model, _ = build(settings, read_corpus(short[1]))
    saved = CMSBertCLRForSequenceClassification.from_pretrained(trained).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
    assert any(model.parameter_group(name) == "new" for name in saved)


def test_embeddings_that_are_not_finite_stop_the_run(train, short, tmp_path, monkeypatch):
    predict, count = evaluate.predict, []

    def broken(*arguments):
        predictions = predict(*arguments)
        count.append(1)
        if len(count) == 2:  # after the first epoch
            predictions.embeddings["visual"][3, 0] = math.inf
        return predictions

    monkeypatch.setattr(evaluate, "predict", broken)
    status, errors = train(*short, "--output", tmp_path)
    assert status == 3
    assert errors.splitlines()[-1].endswith(": valid28")
    assert not list(tmp_path.glob("*/*/checkpoint.pt"))


def test_results_survive_a_failing_figure(train, short, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("cannot draw")

    monkeypatch.setattr(figures, "write_figures", fail)
    with pytest.raises(ValueError, match="cannot draw"):
        train(*short, "--epochs", 1, "--output", tmp_path, figures=True)
    assert {"results.json", "predictions.csv"} <= {path.name for path in tmp_path.glob("*/*/*")}


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(train, short, tmp_path, precision):
    for device in ("cpu", "cuda", "cuda again"):
        arguments = [*short, "--device", device.split()[0], "--precision", precision, "--output", tmp_path / device]
        assert train(*arguments)[0] == 0
    cpu, cuda, again = (records(tmp_path / device, "train") for device in ("cpu", "cuda", "cuda again"))
    assert cuda == again
    losses = [[record["loss"] for record in log] for log in (cpu, cuda)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if precision == "fp32" else 3e-2)


def test_the_last_progress_line_names_the_metric_and_its_best_epoch(train, short, tmp_path):
    status, errors = train(*short, "--output", tmp_path)
    assert status == 0
    best = min(records(tmp_path, "valid"), key=lambda record: record["mae"])
    loss = records(tmp_path, "train")[-1]["loss"]
    last = errors.replace("\r", "\n").strip().splitlines()[-1]
    assert f"loss {loss:.3f}, best valid mae {best['mae']:.3f} in epoch {best['epoch']}" in last
