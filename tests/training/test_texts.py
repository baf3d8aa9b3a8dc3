"""Texts that are cut, and tokenizers without a vocabulary."""

import dataclasses
import json

import numpy as np
import pytest
from transformers import BertTokenizerFast

from cmsbert_fast.data.example import Corpus
from cmsbert_fast.data.inspection import summary
from cmsbert_fast.evaluate import main as evaluate
from cmsbert_fast.predict import main as predict
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.texts import check_texts
from tests.training.helpers import tiny_corpus

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "un", "##good", "bad"]


def tokenizer(pieces: list[str]) -> BertTokenizerFast:
    return BertTokenizerFast(vocab={piece: k for k, piece in enumerate(pieces)})


def corpus(**words: list[str]) -> Corpus:
    whole = tiny_corpus(max(map(len, words.values())))
    splits = {
        split: [
            dataclasses.replace(e, words=tuple(t.split())) for e, t in zip(whole.splits[split], texts, strict=False)
        ]
        for split, texts in words.items()
    }
    return dataclasses.replace(whole, splits=splits)


def test_texts_that_are_cut_are_counted_by_split():
    found = corpus(train=["good", "good ungood", "ungood ungood"], test=["good " * 9], valid=["bad"])
    known = tokenizer(PIECES)  # "ungood" has two pieces
    assert check_texts(found, known, 6) == ["cut to 6 word pieces (--max-length): 1 of 1 test examples"]
    assert check_texts(found, known, 5) == ["cut to 5 word pieces (--max-length): 1 of 3 train, 1 of 1 test examples"]
    assert check_texts(found, known, 5, ["valid"]) == check_texts(found, known, 11) == []


def test_words_that_no_vocabulary_knows():
    found = corpus(train=["good", "bad", "fine"])
    assert check_texts(found, tokenizer(PIECES), 50) == ["1 of 3 word pieces are unknown to the tokenizer ([UNK])"]
    with pytest.raises(UsageError, match="knows no word of tiny: its vocabulary is missing"):
        check_texts(found, tokenizer(PIECES[:5]), 50)


def test_words_without_word_pieces_are_counted():
    silent = "\u200b"  # a zero-width space, which BERT's tokenizer removes
    found = corpus(train=["good", f"{silent} bad", f"ungood {silent}"])
    (sentence,) = check_texts(found, tokenizer(PIECES), 50)
    assert sentence.startswith("2 words have no word piece")
    assert check_texts(corpus(train=["ungood bad"]), tokenizer(PIECES), 50) == []


def test_a_run_and_a_prediction_say_it(train, short, tmp_path, capsys):
    sentence = "cut to 5 word pieces (--max-length): "
    assert train(*short, "--epochs", 1, "--max-length", 5, "--output", tmp_path)[0] == 0
    results = json.loads(next(tmp_path.glob("*/*/results.json")).read_text())
    (line,) = (line for line in results["data"]["report"].splitlines() if sentence in line)
    assert " of 25 train" in line
    assert predict([str(next(tmp_path.glob("*/*"))), str(short[1]), "--split", "test"]) == 0
    assert sentence in capsys.readouterr().err
    assert evaluate([str(next(tmp_path.glob("*/*"))), "--data", str(short[1])]) == 0
    assert f"  {sentence}" in (errors := capsys.readouterr().err)
    assert " of 9 test" in errors
    assert " train" not in errors.partition(sentence)[2]


def test_a_checkpoint_without_vocabulary_is_refused(train, short, tmp_path, bert_without_dropout, capsys):
    assert train(*short, "--epochs", 1, "--output", tmp_path / "out")[0] == 0
    (best,) = (tmp_path / "out").glob("*/*/best")
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in bert_without_dropout.iterdir():
        (bare / path.name).write_bytes(path.read_bytes())
    tokenizer(PIECES[:5]).save_pretrained(bare)
    status, errors = train(*short[:2], "--model", bare, *short[4:], "--output", tmp_path / "other")
    assert status == 2
    assert errors.count("\n") == 1
    assert "The tokenizer knows no word of reviews" in errors
    assert not (tmp_path / "other").exists()
    tokenizer(PIECES[:5]).save_pretrained(best)
    capsys.readouterr()
    assert predict([str(best), str(short[1])]) == 2
    assert "The tokenizer knows no word of reviews" in capsys.readouterr().err


def test_inspect_counts_what_is_surely_cut():
    found = corpus(train=["good " * 9, "good"], test=["bad"])
    assert "1 or more longer than 10 word pieces" in summary(found, max_length=10)
    assert "longer" not in summary(found, max_length=11)
    assert np.isfinite(found.splits["train"][0].label)
