"""What stops a command before its first run starts."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertConfig
from cmsbert_fast.data import read_corpus
from cmsbert_fast.data.example import Alignment
from cmsbert_fast.models.registry import NEEDS, VARIANTS, Variant
from cmsbert_fast.training import build, preflight, resume
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.preflight import Given
from cmsbert_fast.training.settings import TrainingSettings
from tests.training.helpers import CPU, tiny_corpus


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
        (["--model", "{tmp}/roberta"], "is a 'roberta' checkpoint"),
        (["--model", "{tmp}/wide"], "visual stream of reviews has 3 features a frame but"),
        (["--model", "{tmp}/classes"], "predicts 4 values but reviews needs 1"),
        (["--model", "{tmp}/weightless"], "weightless"),
        (["--architecture", "hidden_size=8"], "do not have the sizes of the requested model"),
        (["--data", "{tmp}/single"], "1 examples in its train split"),
        (["--data", "{tmp}/unlabelled"], "has no label"),
        (["--max-length", "65"], "64 positions"),
        (["--architecture", "hidden_sice=3"], "'hidden_sice'"),
        (
            ["--architecture", "hidden_size=abc"],
            "must be a whole number of at least 1; correct the option --architecture",
        ),
        (["--architecture", "hidden_act=abc"], "architecture is not possible: 'abc' is unknown; correct the option"),
        (
            ["--architecture", "num_attention_heads=0"],
            "num_attention_heads is 0 but must be a whole number of at least",
        ),
        (
            ["--architecture", "num_attention_heads=3"],
            "num_attention_heads 3 does not divide hidden_size",
        ),
        (["--architecture", "num_hidden_layers=0", "--variant", "cmsbert/1"], "num_hidden_layers is 0"),
        (["--architecture", "attention_probs_dropout_prob=1.0"], "must be at least 0 and less than 1"),
        (["--architecture", "hidden_dropout_prob=1.5"], "must be at least 0 and less than 1"),
        (["--architecture", "initializer_range=-1"], "initializer_range is -1"),
        (["--model", "{tmp}/five", "--variant", "bert"], "predicts 5 values but reviews needs 1"),
        (["--data", "{tmp}/huge"], "has the label 1e+30"),
        (["--backend", "triton", "--device", "cpu"], 'backend="triton" cannot run here'),
        (["--resume", "--output", "{tmp}/nosuch"], "nosuch to resume"),
        (["--output", "{tmp}/taken"], "taken/cmsbert-clr/seed-0 cannot be created"),
        (["--output", "x" * 300], "cannot be created"),
        (["--resume", "--output", "x" * 300], "cannot be created"),
        (["--output", "a\0b"], "cannot be created (embedded null byte)"),
        (
            ["--model", "{tmp}/clr", "--variant", "bert", "cmsbert-clr", "--projection-size", "8"],
            "do not have the sizes",
        ),
        (["--model", "{tmp}/no-tokenizer"], "has no tokenizer"),
        (["--visual", "none", "--acoustic", "none"], "no visual or acoustic frames"),
        (["--device", "cuda"], "no CUDA device"),
        (["--output", "{tmp}/finished"], "already holds a run"),
        (["--output", "{tmp}/empty/config.txt"], "cannot be created"),
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
    corpus = read_corpus(TrainingSettings(visual=("none",)).request())
    assert corpus.visual_size == 0
    assert corpus.acoustic_size > 0
    assert "left out: visual" in str(corpus.report)
    for examples in corpus.splits.values():
        assert not any(example.visual.size for example in examples)
        assert all(example.acoustic.size for example in examples)


def test_batches_smaller_than_the_ranks(bert):
    settings = TrainingSettings(data="tiny", model=str(bert), batch_size=4)
    preflight.check(settings, tiny_corpus(6), Ranks(0, 3, CPU.device))  # batches of 3 and 3
    with pytest.raises(UsageError, match="smallest batch has 3 examples for 4 ranks"):
        preflight.check(settings, tiny_corpus(6), Ranks(0, 4, CPU.device))


def test_every_need_is_checked():
    assert preflight._NEEDS.keys() == NEEDS.keys()


@pytest.mark.parametrize(
    ("need", "change", "message"),
    [
        ("frames", dict(visual_size=0, acoustic_size=0), "no visual or acoustic frames, which new needs; name its"),
        ("word_frames", {}, "no frames aligned to words, which new needs; name a stream of words with --words"),
        ("frames_of_words", {}, "no frames of each word, which new needs; name a stream of words with --words"),
        ("word_vectors", {}, "no word vectors, which new needs; train another --variant"),
        ("regression", dict(classes=("sad", "glad")), "no scores, which new needs; choose another --label"),
    ],
)
def test_data_that_a_variant_cannot_do_without(monkeypatch, need, change, message):
    monkeypatch.setitem(VARIANTS, "new", Variant("a:B", frozenset({need})))
    lacking = dataclasses.replace(tiny_corpus(2), **change)
    with pytest.raises(UsageError, match=f"^tiny has {message}.*[.]$"):
        preflight.check_needs("new", Given(lacking))
    with pytest.raises(UsageError, match=message):
        preflight.check(TrainingSettings(data="tiny", variant="new"), lacking, CPU)
    splits = {
        split: [dataclasses.replace(example, alignment=Alignment.WORDS) for example in examples]
        for split, examples in tiny_corpus(2).splits.items()
    }
    if need != "word_vectors":
        preflight.check_needs("new", Given(dataclasses.replace(tiny_corpus(2), splits=splits)))
    monkeypatch.setitem(VARIANTS, "new", Variant("a:B"))
    preflight.check_needs("new", Given(lacking))


def test_examples_of_other_splits_are_told(make_corpus, tmp_path):
    folder = make_corpus(tmp_path / "data", sizes={"train": 4, "valid": 3, "test": 2, "tset": 5})
    told = []
    preflight.read_data(TrainingSettings(data=str(folder)), lambda text, **_: told.append(str(text)))
    assert told[1:] == ["warning: the 5 examples of the split 'tset' are not used: training reads train, valid, test."]


def test_folds_are_read_once(train, short, tmp_path, monkeypatch):
    folds = [{split: [f"{split}{i}" for i in range(41)] for split in ("train", "valid", "test")}] * 2
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    reads = []
    monkeypatch.setattr(preflight, "read_corpus", lambda request: (reads.append(request.fold), read_corpus(request))[1])
    arguments = [*short, "--variant", "bert", "--epochs", 1, "--folds", tmp_path / "folds.json", "--fold", 1, 2]
    assert train(*arguments, "--output", tmp_path / "out")[0] == 0
    assert reads == [1, 2]


def test_what_the_check_has_loaded_is_trained(train, short, tmp_path, monkeypatch):
    """Nothing is done twice on the way to the first step, and the result is that of a run that loads for itself."""
    calls = []

    def counted(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (calls.append(name), original(*a, **k))[1])

    counted(build, "_load_weights")
    counted(resume, "fingerprint")
    for seeds in ((0, 1), (1, 0)):
        assert train(*short, "--seeds", *seeds, "--output", tmp_path / str(seeds[0]))[0] == 0
        assert sorted(calls) == ["_load_weights", "_load_weights", "fingerprint"]
        calls.clear()
    for seed in (0, 1):
        first, second = (
            (tmp_path / name / "cmsbert-clr" / f"seed-{seed}" / "log.jsonl").read_text() for name in ("0", "1")
        )
        assert first == second
