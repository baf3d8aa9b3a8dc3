"""What a run computes and leaves behind, and what stops it before it starts."""

import csv
import json
import math
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoProcessor, BertConfig, BertForSequenceClassification, BertTokenizerFast

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertConfig, reference
from cmsbert_fast.data import read_corpus
from cmsbert_fast.data.example import Corpus, Example
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.ops.dispatch import has_fast_bfloat16
from cmsbert_fast.training import build as models
from cmsbert_fast.training import checkpoint
from cmsbert_fast.training import evaluate as evaluation
from cmsbert_fast.training import report as results
from cmsbert_fast.training import trainer as loop
from cmsbert_fast.training.build import build, build_config, is_new, parameter_groups
from cmsbert_fast.training.distributed import Ranks, share
from cmsbert_fast.training.evaluate import Batches, Predictions
from cmsbert_fast.training.report import RunLog
from cmsbert_fast.training.settings import VARIANTS, Command, TrainingSettings, UsageError
from cmsbert_fast.training.trainer import check, epoch_batches, schedule

CPU = Ranks(0, 1, torch.device("cpu"))


def records(out: Path, event: str) -> list[dict]:
    lines = [json.loads(line) for line in next(out.glob("*/*/log.jsonl")).read_text().splitlines()]
    return [line for line in lines if line.pop("event") == event]


@pytest.fixture
def short(corpus_folder, bert_without_dropout) -> list:
    return ["--data", corpus_folder, "--model", bert_without_dropout, "--epochs", 2, "--batch-size", 9]


def test_schedule():
    factors = [schedule(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert factors[10] == 1
    assert np.diff(factors[10:]) == pytest.approx(-1 / 90)
    assert factors[-1] == pytest.approx(1 / 90)
    assert [schedule(step, 3, 0.0) for step in range(3)] == pytest.approx([1, 2 / 3, 1 / 3])


def test_global_batches():
    batches = epoch_batches(25, 8, seed=1, epoch=2)
    assert [len(b) for b in batches] == [7, 6, 6, 6]  # never a tiny last one
    assert sorted(np.concatenate(batches)) == list(range(25))
    again, other = epoch_batches(25, 8, 1, 2), epoch_batches(25, 8, 1, 3)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    assert any((a != b).any() for a, b in zip(batches, other, strict=True))


@pytest.mark.parametrize(("count", "world_size"), [(8, 3), (2, 4), (12, 4), (0, 2)])
def test_shares(count, world_size):
    shares = [range(count)[share(count, Ranks(rank, world_size, CPU.device))] for rank in range(world_size)]
    assert [i for s in shares for i in s] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_parameter_groups(corpus_folder, bert):
    settings = TrainingSettings(data=str(corpus_folder), model=str(bert), weight_decay=0.1, bert_weight_decay=1e-3)
    model, _ = build(settings, read_corpus(corpus_folder))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        g["name"]: ({names[id(p)] for p in g["params"]}, g["weight_decay"]) for g in parameter_groups(model, settings)
    }
    assert [decay for _, decay in groups.values()] == [0.1, 1e-3, 0]
    new, bert_names, undecayed = (members for members, _ in groups.values())
    assert len(new) + len(bert_names) + len(undecayed) == len(names)
    attention = "bert.encoder.layer.1.attention"
    assert {f"{attention}.self.gate_visual.weight", f"{attention}.self.shift_acoustic.weight"} <= new
    assert {"visual_lstm.weight_hh_l0", "fusion.out_proj.weight", "linguistic_projector.dense.weight"} <= new
    assert {f"{attention}.self.query.weight", "bert.embeddings.word_embeddings.weight"} <= bert_names
    assert {
        f"{attention}.output.LayerNorm.weight",
        "visual_lstm.bias_ih_l0",
        f"{attention}.self.gate_visual.bias",
    } <= undecayed
    assert "fusion.transformer.norm1.weight" in undecayed
    assert not any(name.endswith("bias") for name in new | bert_names)


def test_ema_follows_the_validation_losses(train, short, tmp_path):
    assert train(*short, "--output", tmp_path, "--momentum", 0.8)[0] == 0
    # It starts from a validation pass of the untrained model (Eq. 22) ...
    settings = TrainingSettings(data=str(short[1]), model=str(short[3]), batch_size=9)
    corpus = read_corpus(short[1])
    checkpoint.seed_everything(0)
    model, processor = build(settings, corpus)
    predictions = evaluation.predict(
        model, Batches(corpus.splits["valid"], processor, model.config, CPU.device), CPU, 9
    )
    task, contrastive = evaluation.losses(predictions, model.config, 9)
    (start,) = records(tmp_path, "start")
    assert start["nu"] == pytest.approx(task / contrastive, rel=1e-6)
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


def test_validation_losses_are_means_over_samples(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    z = {m: torch.randn(10, 4, generator=generator, dtype=torch.float64) for m in evaluation.SUBNETWORKS}
    labels = torch.arange(10).float() / 5
    logits = torch.randn(10, 1, generator=generator)
    predictions = Predictions([str(i) for i in range(10)], logits, labels, z)
    config = CMSBertConfig(visual_size=1, acoustic_size=1, threshold=0.3)
    monkeypatch.setenv("CMSBERT_BACKEND", "triton")  # which has no kernels for the CPU
    task, contrastive = evaluation.losses(predictions, config, batch_size=4)
    assert task == pytest.approx(float(((logits[:, 0] - labels) ** 2).mean()), rel=1e-6)
    parts = [
        len(rows)
        * float(reference.pairwise_contrastive_loss(*(e[rows] for e in z.values()), labels[rows], 0.1, 0.9, 0.3))
        for rows in (torch.arange(0, 4), torch.arange(4, 8), torch.arange(8, 10))
    ]
    assert contrastive == pytest.approx(sum(parts) / 10, rel=1e-9)


@pytest.mark.parametrize("variant", ["cmsbert", "cmsbert-clr"])
def test_accumulation_changes_rounding_only(train, short, tmp_path, variant):
    for parts in (1, 3):
        out = tmp_path / str(parts)
        assert (
            train(*short, "--variant", variant, "--accumulation", parts, "--max-grad-norm", 1, "--output", out)[0] == 0
        )
    for event in ("train", "valid", "test"):
        for whole, split in zip(records(tmp_path / "1", event), records(tmp_path / "3", event), strict=True):
            assert split == pytest.approx(whole, rel=1e-5, abs=1e-5)


def test_accumulation_over_ranks(start_run, short, train, tmp_path):
    assert train(*short, "--output", tmp_path / "one")[0] == 0
    run = start_run(tmp_path, [*short, "--accumulation", 3], ranks=2)  # 9 examples: 5 in 3 parts, 4 in 3 parts
    assert run.wait() == [0, 0], run.errors()
    for one, two in zip(records(tmp_path / "one", "train"), run.records("train"), strict=True):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-5)


def test_bf16_is_near_fp32(train, short, tmp_path):
    for precision in ("fp32", "bf16"):
        assert train(*short, "--precision", precision, "--output", tmp_path / precision)[0] == 0
    full, half = (np.array([r["loss"] for r in records(tmp_path / p, "train")]) for p in ("fp32", "bf16"))
    assert (full != half).all()
    assert half == pytest.approx(full, rel=0.03)


def test_bf16_on_a_cpu_without_its_instructions_warns_once(train, short, tmp_path, monkeypatch):
    arguments = [*short, "--device", "cpu", "--variant", "bert", "--epochs", 1, "--seeds", 0, 1]
    for fast, precision, expected in ((False, "bf16", 1), (False, "fp32", 0), (True, "bf16", 0)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda fast=fast: fast, raising=False)
        status, errors = train(*arguments, "--precision", precision, "--output", tmp_path / f"{precision}-{fast}")
        assert status == 0
        told = [line for line in errors.splitlines() if line.startswith("warning")]
        assert len(told) == expected
        assert all("--precision fp32" in line for line in told)


def test_rank_0_alone_warns_of_bf16(monkeypatch, capsys):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(loop, "read", lambda settings: 1 / 0)
    command = Command(runs=(TrainingSettings(data="x", precision="bf16"),))
    for rank in (0, 1):
        with pytest.raises(ZeroDivisionError):  # reading began; it is told before
            loop.run_all(command, Ranks(rank, 2, torch.device("cpu")), loop.StopRequest())
        assert ("warning" in capsys.readouterr().err) == (rank == 0)


def test_what_computes_fast_in_bfloat16(monkeypatch):
    for answer in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda a=answer: a, raising=False)
        assert has_fast_bfloat16(torch.device("cpu")) is answer
        assert has_fast_bfloat16(torch.device("cuda"))

    def missing() -> bool:
        raise AttributeError

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", missing)
    assert has_fast_bfloat16(torch.device("cpu"))  # nobody is warned on a guess


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


def test_every_variant(train, short, tmp_path, capsys):
    status, _ = train(*short, "--epochs", 1, "--variant", *VARIANTS, "--output", tmp_path, figures=True)
    assert status == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [row["variant"] for row in rows] == list(VARIANTS)
    assert (tmp_path / "summary.md").read_text().count("\n") == 2 + len(VARIANTS)
    saved = {v: AutoConfig.from_pretrained(tmp_path / v.replace("/", "-") / "seed-0" / "best") for v in VARIANTS}
    assert {v: c.cms_layers for v, c in saved.items() if c.cms_layers != [0, 1]} == {"bert": [], "cmsbert/1": [0]}
    assert [v for v, c in saved.items() if c.smoothing is None] == ["cmsbert-clr-no-ls", "cmsbert-clr-no-ema-no-ls"]
    assert [v for v, c in saved.items() if "CLR" in c.architectures[0]] == list(VARIANTS)[3:]
    for variant in VARIANTS:
        run = tmp_path / variant.replace("/", "-")
        log = [json.loads(line) for line in (run / "seed-0" / "log.jsonl").read_text().splitlines()]
        weights = {r.get("nu") for r in log if r["event"] == "train"}
        expected = "no-ema" in variant or not VARIANTS[variant].contrastive
        assert (weights in ({1.0}, {None})) == expected
        figures = {path.name for path in (run / "seed-0" / "figures").iterdir()}
        assert ("shift_maps.png" in figures) == (variant != "bert")
        assert ("embeddings.png" in figures) == VARIANTS[variant].contrastive


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
        assert (folder / "figures" / "shift_maps.png").stat().st_size > 10_000
        assert (folder / "figures" / "embeddings.png").stat().st_size > 10_000
        if find_spec("tensorboard"):
            assert list((folder / "tensorboard").iterdir())
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
    assert set(result["test"]) == {"wa", "ua"}
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


def test_folds(train, short, tmp_path):
    folds = [
        {split: [f"{old}{i}" for old in olds for i in range(41)] for split, olds in fold.items()}
        for fold in (
            {"train": ["train"], "valid": ["valid"], "test": ["test"]},
            {"train": ["train"], "valid": ["test"], "test": ["valid"]},
        )
    ]
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    assert train(*short, "--folds", tmp_path / "folds.json", "--fold", 1, 2, "--output", tmp_path / "out")[0] == 0
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert row["runs"] == [{"seed": 0, "fold": 1}, {"seed": 0, "fold": 2}]
    lines = [(tmp_path / "out" / "cmsbert-clr" / f"fold-{k}-seed-0" / "predictions.csv").read_text() for k in (1, 2)]
    assert all(text.splitlines()[1].startswith(split) for text, split in zip(lines, ("test", "valid"), strict=True))
    assert [text.count("\n") for text in lines] == [1 + 9, 1 + 7]


def save_config(folder: Path, config) -> Path:
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{tmp}/missing"], "missing"),
        (["--label", "valence"], "valence"),
        (["--visual", "openface"], "openface"),
        (["--model", "{tmp}/missing"], "There is no checkpoint"),
        (["--model", "{tmp}/empty"], "There is no checkpoint"),
        (["--model", "{tmp}/roberta"], "architecture 'roberta'"),
        (["--model", "{tmp}/wide"], "visual stream of reviews has 3 features a frame but"),
        (["--model", "{tmp}/classes"], "predicts 4 values but reviews asks for 1"),
        (["--model", "{tmp}/weightless"], "weightless"),
        (["--architecture", "hidden_size=8"], "have other sizes than the model asked for"),
        (["--data", "{tmp}/single"], "1 examples in its train split"),
        (["--data", "{tmp}/unlabelled"], "has no label"),
        (["--max-length", "65"], "64 positions"),
        (["--architecture", "hidden_sice=3"], "'hidden_sice'"),
        (["--architecture", "hidden_size=abc"], "architecture is not possible"),
        (["--architecture", "hidden_act=abc"], "architecture is not possible"),
        (
            ["--architecture", "num_attention_heads=0"],
            "num_attention_heads is 0 but must be a whole number of at least",
        ),
        (["--architecture", "num_attention_heads=3"], "choose a num_attention_heads that divides it"),
        (["--architecture", "num_hidden_layers=0", "--variant", "cmsbert/1"], "num_hidden_layers is 0"),
        (["--architecture", "attention_probs_dropout_prob=1.0"], "must be at least 0 and less than 1"),
        (["--architecture", "hidden_dropout_prob=1.5"], "must be at least 0 and less than 1"),
        (["--architecture", "initializer_range=-1"], "initializer_range is -1"),
        (["--model", "{tmp}/five", "--variant", "bert"], "predicts 5 values but reviews asks for 1"),
        (["--data", "{tmp}/huge"], "has the label 1e+30"),
        (["--backend", "triton", "--device", "cpu"], 'backend="triton" cannot run here'),
        (["--resume", "--output", "{tmp}/nosuch"], "nosuch to resume"),
        (["--output", "{tmp}/taken"], "taken/cmsbert-clr/seed-0 cannot be made"),
        (["--output", "x" * 300], "cannot be made"),
        (["--resume", "--output", "x" * 300], "cannot be made"),
        (["--output", "a\0b"], "cannot be made (embedded null byte)"),
        (["--model", "{tmp}/clr", "--variant", "bert", "cmsbert-clr", "--projection-size", "8"], "have other sizes"),
        (["--model", "{tmp}/no-tokenizer"], "holds no tokenizer"),
        (["--visual", "none", "--acoustic", "none"], "no visual or acoustic frames"),
        (["--device", "cuda"], "no CUDA device"),
        (["--output", "{tmp}/finished"], "holds a run already"),
        (["--output", "{tmp}/empty/config.txt"], "cannot be made"),
        (["--config", "{tmp}/missing.yaml"], "cannot be read"),
        (["--variant", "cmsbert-2"], "cmsbert-2"),
    ],
)
def test_users_errors(train, short, tmp_path, corpus_folder, make_corpus, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.txt").touch()
    (tmp_path / "finished" / "bert" / "seed-0").mkdir(parents=True)
    (tmp_path / "finished" / "bert" / "seed-0" / "log.jsonl").touch()
    (tmp_path / "roberta").mkdir()
    (tmp_path / "roberta" / "config.json").write_text('{"model_type": "roberta"}')
    save_config(tmp_path / "wide", CMSBertConfig(visual_size=35, acoustic_size=2, num_labels=1))
    save_config(
        tmp_path / "classes",
        CMSBertConfig(visual_size=3, acoustic_size=2, num_labels=4, architectures=["CMSBertForSequenceClassification"]),
    )
    BertTokenizerFast.from_pretrained(short[3]).save_pretrained(
        save_config(tmp_path / "weightless", CMSBertConfig(num_labels=1))
    )
    own = CMSBertConfig.from_pretrained(short[3], visual_size=3, acoustic_size=2, num_labels=1)
    CMSBertCLRForSequenceClassification(own).save_pretrained(tmp_path / "clr")
    BertTokenizerFast.from_pretrained(short[3]).save_pretrained(tmp_path / "clr")
    CMSBertCLRForSequenceClassification(own).save_pretrained(tmp_path / "no-tokenizer")
    if "{tmp}/five" in arguments:
        five = BertForSequenceClassification(BertConfig.from_pretrained(short[3], num_labels=5))
        five.save_pretrained(tmp_path / "five")
        BertTokenizerFast.from_pretrained(short[3]).save_pretrained(tmp_path / "five")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "cmsbert-clr").touch()
    for name, change in (
        ("huge", lambda lines: [*lines, "extra\ttrain\t1e30\tgood film"]),
        ("single", lambda lines: lines[:2] + [line for line in lines if "\ttrain\t" not in line][1:]),
        ("unlabelled", lambda lines: [*lines, "extra\ttrain\t\tgood film"]),
    ):
        if any(name in argument for argument in arguments):
            table = make_corpus(tmp_path / name) / "segments.tsv"
            table.write_text("\n".join(change(table.read_text().splitlines())) + "\n")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    status, errors = train(*short, "--output", tmp_path / "out", *given)
    assert status == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "out").exists()  # found before the first of all runs


@pytest.mark.parametrize(
    "option", ["--words=x", "--label=zz", "--folds=nosuch.json", "--fold=3", "--visual=x", "--acoustic=x"]
)
def test_the_embedded_corpus_has_no_choices(train, tmp_path, option):
    status, errors = train(option, "--output", tmp_path / "out")
    assert status == 2
    assert errors.startswith(f"error: Leave out {option.split('=')[0]}: ")
    assert not (tmp_path / "out").exists()


def test_the_embedded_corpus_without_a_modality():
    corpus = loop.read(TrainingSettings(visual=("none",)))
    assert corpus.visual_size == 0
    assert corpus.acoustic_size > 0
    assert "left out: visual" in str(corpus.report)
    for examples in corpus.splits.values():
        assert not any(example.visual.size for example in examples)
        assert all(example.acoustic.size for example in examples)


def test_another_sequence_classifiers_head_is_no_hindrance(bert, tmp_path):
    BertForSequenceClassification(BertConfig.from_pretrained(bert, num_labels=5)).save_pretrained(tmp_path)
    settings = TrainingSettings(data="tiny", model=str(tmp_path))  # cmsbert-clr has another head
    assert build_config(settings, tiny_corpus(2)).num_labels == 1


def test_which_backend_ran(train, short, tmp_path, monkeypatch, capsys):
    for given, missing, expected in (
        ("reference", None, "CMS attention: reference"),
        ("auto", "there is no C++ compiler", "CMS attention: torch (not cpu: there is no C++ compiler)"),
    ):
        monkeypatch.setattr(loop.attention_cpu.cpu_library, "why_not", lambda missing=missing: missing)
        out = tmp_path / given
        arguments = [*short, "--variant", "cmsbert", "--epochs", 1, "--device", "cpu", "--backend", given]
        assert loop.main([*map(str, arguments), "--seeds", "0", "1", "--output", str(out)], "none") == 0
        told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CMS attention")]
        assert told == [expected]
        for path in out.glob("*/*/results.json"):
            found = json.loads(path.read_text())
            assert (found["backend"], found["settings"]["backend"]) == (expected.split()[2], given)
    status, errors = train(*short, "--device", "cpu", "--backend", "cpu", "--output", tmp_path / "cpu")
    assert status == 2
    assert "there is no C++ compiler" in errors
    assert not (tmp_path / "cpu").exists()


def test_figures_of_a_finished_run_are_drawn_when_it_is_resumed(train, short, tmp_path, monkeypatch):
    write = results.write_figures

    def killed(folder, *arguments):
        write(folder, *arguments)
        (folder / "shift_maps.png").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "write_figures", killed)
    arguments = [*short, "--epochs", 1, "--output", tmp_path]
    assert train(*arguments, figures=True)[0] == 130
    (folder,) = (path.parent for path in tmp_path.glob("*/*/results.json"))
    monkeypatch.setattr(results, "write_figures", write)
    before = (folder / "results.json").read_bytes()
    assert train(*arguments, "--resume", figures=True)[0] == 0
    assert {path.name for path in (folder / "figures").iterdir()} == {"shift_maps.png", "embeddings.png"}
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"settings": {}, "data": {}, "test": {}}'])
def test_damaged_results(train, short, tmp_path, text):
    folder = tmp_path / "cmsbert-clr" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(text)
    status, errors = train(*short, "--output", tmp_path, "--resume")
    assert status == 2
    assert (
        errors
        == f"error: {folder / 'results.json'} is damaged; remove it, and the run is tested again from its "
        + ("checkpoint.\n")
    )


def test_interrupted_before_training(train, short, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.distributed, "start", interrupt)
    status, errors = train(*short, "--output", tmp_path)
    assert status == 130
    assert errors.count("\n") == 1


def test_frames_as_they_are(train, short, tmp_path):
    arguments = [*short, "--epochs", 1, "--standardise", "false", "--output", tmp_path]
    assert train(*arguments)[0] == 0
    (best,) = tmp_path.glob("*/*/best")
    assert AutoProcessor.from_pretrained(best).visual_mean is None
    # A run from before there was this setting is one that standardises.
    path = best.parent / "results.json"
    path.write_text(path.read_text().replace('"standardise": false', '"unknown": false'))
    assert train(*arguments, "--resume")[0] == 2
    assert train(*arguments, "--resume", "--standardise", "true")[0] == 0


def test_resuming_with_other_settings_or_data(train, short, tmp_path, make_corpus):
    assert train(*short, "--output", tmp_path / "out")[0] == 0
    status, errors = train(*short, "--output", tmp_path / "out", "--resume", "--learning-rate", 1)
    assert status == 2
    assert "learning_rate = 0.0001, not 1.0" in errors
    other = make_corpus(tmp_path / "other", label=lambda i: str(i / 20))
    status, errors = train("--data", other, *short[2:], "--output", tmp_path / "out", "--resume")
    assert status == 2
    assert "other examples" in errors
    # All runs are checked before the first continues.
    arguments = [*short, "--output", tmp_path / "out", "--resume", "--seeds", 1, 0, "--learning-rate", 1]
    status, errors = train(*arguments)
    assert status == 2
    assert not (tmp_path / "out" / "cmsbert-clr" / "seed-1").exists()


def changed(corpus: Corpus, split: str, **fields) -> Corpus:
    first, *others = corpus.splits[split]
    return replace(corpus, splits={**corpus.splits, split: [replace(first, **fields), *others]})


@pytest.mark.parametrize("limit", [2**28, 100])
def test_fingerprint_covers_what_is_trained_on(monkeypatch, limit):
    monkeypatch.setattr(loop, "FINGERPRINT_BYTES", limit)  # with 100 bytes: of every fourth example
    corpus = tiny_corpus(5)
    assert loop.fingerprint(corpus) == loop.fingerprint(tiny_corpus(5))
    others = [
        changed(corpus, split, **fields)
        for split in ("train", "test")
        for fields in ({"words": ("bad",)}, {"label": 0.25}, {"id": "x"}, {"visual": np.zeros((0, 3), np.float32)})
    ]
    others += [changed(corpus, "train", acoustic=np.full((1, 3), 2, np.float32)), replace(corpus, visual_size=4)]
    assert len({loop.fingerprint(c) for c in (corpus, *others)}) == 1 + len(others)


def test_gates_are_the_checkpoints_unless_chosen(tmp_path, bert):
    config = CMSBertConfig.from_pretrained(bert, visual_size=3, acoustic_size=3, num_labels=1, gate_activation="tanh")
    config.save_pretrained(tmp_path)
    for model, choice, expected in (
        (bert, None, "relu"),
        (bert, "sigmoid", "sigmoid"),
        (tmp_path, None, "tanh"),
        (tmp_path, "relu", "relu"),
    ):
        settings = TrainingSettings(data="tiny", model=str(model), gate_activation=choice)
        assert build_config(settings, tiny_corpus(2)).gate_activation == expected


def test_a_folder_called_embedded_is_not_the_embedded_corpus(train, short, tmp_path, make_corpus):
    folder = make_corpus(tmp_path / "embedded")
    status, errors = train("--data", folder, "--output", tmp_path / "none", figures=True)
    assert status == 2
    assert "--model" in errors
    arguments = ["--data", folder, *short[2:], "--epochs", 1, "--output", tmp_path / "out"]
    status, errors = train(*arguments, figures=True)
    assert status == 0, errors
    assert list((tmp_path / "out").glob("*/*/figures/shift_maps.png"))


def test_embeddings_that_are_not_finite_stop_the_run(train, short, tmp_path, monkeypatch):
    predict, count = evaluation.predict, []

    def broken(*arguments):
        predictions = predict(*arguments)
        count.append(1)
        if len(count) == 2:  # after the first epoch
            predictions.embeddings["visual"][3, 0] = math.inf
        return predictions

    monkeypatch.setattr(evaluation, "predict", broken)
    status, errors = train(*short, "--output", tmp_path)
    assert status == 3
    assert errors.splitlines()[-1].endswith(": valid28")
    assert not list(tmp_path.glob("*/*/checkpoint.pt"))


def test_results_survive_a_failing_figure(train, short, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("cannot draw")

    monkeypatch.setattr(results, "write_figures", fail)
    with pytest.raises(ValueError, match="cannot draw"):
        train(*short, "--epochs", 1, "--output", tmp_path, figures=True)
    assert {"results.json", "predictions.csv"} <= {path.name for path in tmp_path.glob("*/*/*")}


def test_folds_are_read_once(train, short, tmp_path, monkeypatch):
    folds = [{split: [f"{split}{i}" for i in range(41)] for split in ("train", "valid", "test")}] * 2
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    reads = []
    monkeypatch.setattr(loop, "read_corpus", lambda *a, **k: (reads.append(k["fold"]), read_corpus(*a, **k))[1])
    arguments = [*short, "--variant", "bert", "--epochs", 1, "--folds", tmp_path / "folds.json", "--fold", 1, 2]
    assert train(*arguments, "--output", tmp_path / "out")[0] == 0
    assert reads == [1, 2]


def test_what_the_check_has_loaded_is_trained(train, short, tmp_path, monkeypatch):
    """Nothing is done twice on the way to the first step, and the result is that of a run that loads for itself."""
    calls = []

    def counted(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (calls.append(name), original(*a, **k))[1])

    counted(models, "_load_weights")
    counted(loop, "fingerprint")
    for seeds in ((0, 1), (1, 0)):
        assert train(*short, "--seeds", *seeds, "--output", tmp_path / str(seeds[0]))[0] == 0
        assert sorted(calls) == ["_load_weights", "_load_weights", "fingerprint"]
        calls.clear()
    for seed in (0, 1):
        first, second = (
            (tmp_path / name / "cmsbert-clr" / f"seed-{seed}" / "log.jsonl").read_text() for name in ("0", "1")
        )
        assert first == second


def test_threads_are_a_setting(train, short, tmp_path):
    (tmp_path / "c.yaml").write_text("threads: 1\n")
    torch.set_num_threads(2)
    assert train(*short, "--variant", "bert", "--epochs", 1, "--output", tmp_path / "default")[0] == 0
    assert torch.get_num_threads() == 2
    arguments = [*short, "--config", tmp_path / "c.yaml", "--variant", "bert", "--epochs", 1]
    assert train(*arguments, "--output", tmp_path / "one")[0] == 0
    assert torch.get_num_threads() == 1
    recorded = [
        json.loads((tmp_path / name / "bert" / "seed-0" / "results.json").read_text())["machine"]["threads"]
        for name in ("default", "one")
    ]
    assert recorded == [2, 1]
    # Their number changes rounding, so a run is not continued with another.
    status, errors = train(*arguments, "--output", tmp_path / "one", "--resume", "--threads", 2)
    assert status == 2
    assert "threads = 1, not 2" in errors


def tiny_corpus(count: int) -> Corpus:
    frames = np.ones((1, 3), np.float32)
    splits = {
        split: [Example(f"{split}{i}", ("good",), 0.5, frames, frames) for i in range(count)]
        for split in ("train", "valid", "test")
    }
    return Corpus("tiny", splits, 3, 3, ReadReport("tiny"))


def test_batches_smaller_than_the_ranks(bert):
    settings = TrainingSettings(data="tiny", model=str(bert), batch_size=4)
    check(settings, tiny_corpus(6), Ranks(0, 3, CPU.device))  # batches of 3 and 3
    with pytest.raises(UsageError, match="smallest batch has 3 examples for 4 ranks"):
        check(settings, tiny_corpus(6), Ranks(0, 4, CPU.device))


def test_a_default_output_is_new_each_time_and_resumed_by_name(train, short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = [*short, "--variant", "bert", "--epochs", 1]
    status, errors = train(*short, "--resume")
    assert status == 2
    assert "no run of reviews" in errors
    for _ in range(2):
        assert train(*short)[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["reviews", "reviews-2"]
    (tmp_path / "runs" / "reviews-2" / "summary.md").unlink()
    assert train(*short, "--resume")[0] == 0
    assert (tmp_path / "runs" / "reviews-2" / "summary.md").exists()
    assert len(list((tmp_path / "runs").iterdir())) == 2


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
    assert any(is_new(name) for name in saved)


def test_log_and_what_a_resumed_run_keeps_of_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as where tensorboard is not installed
    log = RunLog(tmp_path)
    log.write("train", {"step": 1, "loss": 0.1 + 0.2})
    kept = log.length()
    log.write("train", {"step": 2, "loss": float("nan")})
    log.close()
    log = RunLog(tmp_path, kept, step=1)
    log.write("train", {"step": 2, "loss": 1.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.1 + 0.2), (2, 1.0)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl"]


def test_tensorboard_shows_no_killed_attempt(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for loss in (1.0, 2.0):  # the second begins anew: no checkpoint was written
        log = RunLog(tmp_path)
        for step in range(3):
            log.write("train", {"step": step, "loss": loss})
        log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(0, 2.0), (1, 2.0), (2, 2.0)]


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
