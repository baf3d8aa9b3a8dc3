"""Runs of systems that read words as vectors, and frames word by word."""

import json

import numpy as np
import pytest
import torch
from transformers import BertModel, BertTokenizerFast

from cmsbert_fast import CMSBertForSequenceClassification, CMSBertProcessor
from cmsbert_fast.data import read_corpus
from cmsbert_fast.data.example import Alignment, Corpus, Example
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.word_vectors import WordVectors
from cmsbert_fast.models.processing import WORD_VECTORS
from cmsbert_fast.predict import predict_corpus, say_of_words
from cmsbert_fast.training import preflight
from cmsbert_fast.training.build import load_trained
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TrainingSettings
from cmsbert_fast.training.word_vectors import word_vectors
from tests.training import word_level
from tests.training.conftest import WORDS, write_corpus
from tests.training.helpers import tiny_corpus


@pytest.fixture(autouse=True)
def _variant():
    word_level.register()
    yield
    word_level.unregister()


@pytest.fixture
def vectors(tmp_path):
    """Vectors of 3 numbers for all words but two."""
    path = tmp_path / "vectors.txt"
    path.write_text("".join(f"{word} {k} {k / 3:.3f} -1\n" for k, word in enumerate(WORDS[:-2])))
    return path


@pytest.fixture
def one_frame(tmp_path):
    """A corpus with one frame an utterance."""
    folder = write_corpus(tmp_path / "one")
    for file in folder.rglob("*.npy"):
        np.save(file, np.load(file)[:1])
    return folder


def test_a_run_with_vectors_and_a_repeated_frame(train, short, tmp_path, one_frame, vectors, capsys):
    given = ["--data", one_frame, "--variant", "word-level", "--repeat-frames", "true", "--word-vectors", vectors]
    assert train(*short, *given, "--output", tmp_path / "out")[0] == 0
    run = tmp_path / "out" / "word-level" / "seed-0"
    assert json.loads((run / "best" / "processor_config.json").read_text())["repeat_frames"] is True
    model, processor = load_trained(run)
    assert processor.word_vectors.words == tuple(w for w in processor.word_vectors.words if w in WORDS[:-2])
    assert model.config.word_size == 3
    corpus = read_corpus(one_frame)
    found, _ = predict_corpus(model, processor, corpus, torch.device("cpu"), "test")
    saved = [line.split(",") for line in (run / "predictions.csv").read_text().splitlines()]
    column = next(k for k, name in enumerate(saved[0]) if name in ("prediction", "predicted", "score"))
    np.testing.assert_allclose(found.logits[:, 0].numpy(), [float(line[column]) for line in saved[1:]], atol=1e-5)
    # New words get the unknown vector; frames without words are refused.
    other = Example(
        "x", ("unheard", "of"), None, *(e for e in (np.ones((1, 3), np.float32), np.ones((1, 2), np.float32)))
    )
    again = Corpus("new", {"all": [other]}, 3, 2, ReadReport("new"))
    assert predict_corpus(model, processor, again, torch.device("cpu"))[0].logits.isfinite().all()
    with pytest.raises(UsageError, match="does not tell which frames belong to which word"):
        predict_corpus(model, processor, read_corpus(short[1]), torch.device("cpu"), "test")


def test_vectors_of_the_checkpoint(bert, corpus_folder):
    """The mean of the input embeddings of a word's pieces."""
    corpus = read_corpus(corpus_folder)
    settings = TrainingSettings(data=str(corpus_folder), model=str(bert), word_vectors="bert", variant="word-level")
    found = word_vectors(settings, corpus)
    table = BertModel.from_pretrained(bert).get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(found.rows(["the", "FILM"]), table[[5, 6]], rtol=1e-6)
    assert found.size == 16
    assert "input embeddings of" in str(corpus.report)
    new = word_vectors(TrainingSettings(word_vectors="bert", variant="word-level"), read_corpus("embedded"))
    assert new.table.shape == (1 + len(new.words), new.size)
    assert "are random" in new.source


def test_processors_without_vectors_have_no_file_of_them(train, short, tmp_path):
    assert train(*short, "--output", tmp_path / "out")[0] == 0
    assert not list((tmp_path / "out").rglob(WORD_VECTORS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "reviews has no frames of each word, which word-level needs; name a stream of words with --words"),
        (["--repeat-frames", "true"], "Leave out --repeat-frames: reviews has up to 5 visual frames an utterance"),
        (["--data", "one", "--repeat-frames", "true"], "one has no word vectors, which word-level needs"),
        (["--variant", "cmsbert", "--word-vectors", "vectors"], "Leave out --word-vectors: no --variant"),
        (["--word-vectors", "missing"], "Give a text file of word vectors"),
        (["--data", "one", "--repeat-frames", "true", "--word-vectors", "damaged"], "line 1 of damaged.txt"),
    ],
)
def test_what_a_word_level_run_lacks(train, short, tmp_path, one_frame, vectors, options, message):
    (tmp_path / "damaged.txt").write_text("this is no file of vectors\n")
    files = {"one": one_frame, "vectors": vectors, "damaged": tmp_path / "damaged.txt"}
    options = [files.get(option, option) for option in options]
    status, errors = train(*short, "--variant", "word-level", *options, "--output", tmp_path / "out")
    assert (status, errors.count("\n")) == (2, 1)
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_frames_of_other_pieces_are_counted(bert, monkeypatch):
    """Most utterances must fit the tokenizer; the others have no frame for a word-level system, which is said."""
    settings = TrainingSettings(data="tiny", model=str(bert), variant="word-level")
    fitting, other = (
        [Example(e.id, ("good", "film"), 0.5, frames, frames, Alignment.PIECES) for e in tiny_corpus(3).splits["train"]]
        for frames in (np.ones((2, 3), np.float32), np.ones((3, 3), np.float32))
    )
    from cmsbert_fast.training.build import load_tokenizer

    said: list[str] = []
    for wrong in (0, 1):
        corpus = Corpus("tiny", {"train": fitting, "valid": other[:wrong]}, 3, 3, ReadReport("tiny"))
        preflight.check_pieces(settings, corpus, load_tokenizer(str(bert)), said.append)
    assert [line.strip().split(" utterances")[0] for line in said] == ["1 of 4"]
    corpus = Corpus("tiny", {"train": other}, 3, 3, ReadReport("tiny"))
    with pytest.raises(UsageError, match="3 of 3 utterances of tiny have frames of other word pieces"):
        preflight.check_pieces(settings, corpus, load_tokenizer(str(bert)), said.append)


def test_prediction_says_what_it_does_not_read(bert, capsys):
    """Words without a vector, and frames of other word pieces."""
    fits, other = np.ones((2, 3), np.float32), np.ones((3, 3), np.float32)
    texts = [(("good", "film"), fits), (("bad", "film"), fits), (("good", "xyz"), other)]
    examples = [Example(str(k), text, None, f, f, Alignment.PIECES) for k, (text, f) in enumerate(texts)]
    corpus = Corpus("tiny", {"test": examples, "more": examples[:1]}, 3, 3, ReadReport("tiny"))
    processor = CMSBertProcessor(BertTokenizerFast.from_pretrained(bert))
    processor.word_vectors = WordVectors(np.ones((3, 2), np.float32), ("good", "film"), "here")
    say_of_words(corpus, word_level.WordLevel, processor, "test")
    printed = capsys.readouterr().err
    assert "for 2 of 4 words and 66.7% of the text; the others get the mean vector" in printed
    assert "1 of 4 utterances have frames of other word pieces than this model's; none of theirs are read" in printed
    processor.word_vectors = None
    say_of_words(corpus, CMSBertForSequenceClassification, processor, "more")
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="2 of 2 utterances of tiny have frames of other word pieces"):
        say_of_words(
            Corpus("tiny", {"test": examples[2:] * 2}, 3, 3, ReadReport("tiny")), word_level.WordLevel, processor, None
        )


@pytest.mark.parametrize("source", ["file", "bert"])
def test_a_baseline_reads_vectors_instead_of_pieces(train, short, tmp_path, vectors, source):
    given = ["--variant", "tfn", "--text", "vectors", "--epochs", 1]
    status, errors = train(*short, *given, "--output", tmp_path / "none")
    assert status == 2
    assert "reviews has no word vectors, which tfn needs" in errors
    given += ["--word-vectors", vectors if source == "file" else "bert"]
    assert train(*short, *given, "--output", tmp_path / "out")[0] == 0
    model, processor = load_trained(tmp_path / "out" / "tfn" / "seed-0")
    assert model.config.word_size == processor.word_vectors.size == {"file": 3, "bert": 16}[source]
    assert model.bert is None


def test_utterances_without_frames_have_none_to_align():
    frames, none = np.ones((3, 2), np.float32), np.zeros((0, 2), np.float32)
    aligned = Example("a", ("x", "y", "z"), 1.0, frames, none, Alignment.WORDS)
    bare = Example("b", ("x",), 1.0, none, none)
    loose = Example("c", ("x",), 1.0, none, frames[:1])

    def has_words(*examples, repeat=False):
        return preflight.frames_have_words(Corpus("c", {"train": examples}, 2, 2, ReadReport("c")), repeat)

    assert has_words(aligned, bare)
    assert not has_words(aligned, bare, loose)
    assert has_words(bare, loose, repeat=True)
