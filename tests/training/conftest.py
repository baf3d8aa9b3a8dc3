"""A small corpus and a small BERT on disk, and training runs."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from tests.training import processes
from tests.training.processes import Run

WORDS = ("the", "film", "was", "good", "bad", "not", "plot", "and", "very", "dull")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZES = {"train": 25, "valid": 7, "test": 9}


def write_corpus(
    folder: Path,
    label: Callable[[int], str] = lambda i: f"{(7 * i % 31 - 15) / 5:.1f}",
    sizes: Mapping[str, int] = SIZES,
    frames: int | None = None,
) -> Path:
    """A table of segments with a visual (3 features) and an acoustic (2 features) stream.

    ``frames``: as many an utterance; None: 1 to 5.
    """
    rng = np.random.default_rng(0)
    for stream in ("visual", "acoustic"):
        (folder / stream).mkdir(parents=True)
    lines = ["id\tsplit\tlabel\ttext"]
    number = 0
    for split, size in sizes.items():
        for _ in range(size):
            text = " ".join(WORDS[k] for k in rng.integers(len(WORDS), size=int(rng.integers(2, 7))))
            lines.append(f"{split}{number}\t{split}\t{label(number)}\t{text}")
            for stream, features in (("visual", 3), ("acoustic", 2)):
                count = int(rng.integers(1, 6)) if frames is None else frames
                np.save(folder / stream / f"{split}{number}.npy", rng.normal(size=(count, features)).astype(np.float32))
            number += 1
    (folder / "segments.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_bert(folder: Path, dropout: float) -> Path:
    """A tiny BertModel checkpoint with its tokenizer."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_corpus() -> Callable[..., Path]:
    """:func:`write_corpus`"""
    return write_corpus


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 / 7 / 9 examples with scores."""
    return write_corpus(tmp_path_factory.mktemp("data") / "reviews")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with dropout."""
    return write_bert(tmp_path_factory.mktemp("bert"), dropout=0.1)


@pytest.fixture(scope="session")
def bert_without_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT whose training does not depend on random numbers."""
    return write_bert(tmp_path_factory.mktemp("bert"), dropout=0.0)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path, bert: Path) -> Path:
    """A trained CMSBERT-CLR with what its run left behind. Tests only read it."""
    from cmsbert_fast.training.runs import main as train

    out = tmp_path_factory.mktemp("run")
    arguments = ["--data", corpus_folder, "--model", bert, "--epochs", 2, "--batch-size", 9, "--output", out]
    assert train([str(a) for a in arguments], embedded_config=Path("none")) == 0
    return out / "cmsbert-clr" / "seed-0"


@pytest.fixture
def short(corpus_folder: Path, bert_without_dropout: Path) -> list:
    """Arguments of two epochs of three steps."""
    return ["--data", corpus_folder, "--model", bert_without_dropout, "--epochs", 2, "--batch-size", 9]


@pytest.fixture(scope="session")
def start_code() -> Callable[..., Run]:
    """:func:`~tests.training.processes.start_code`"""
    processes.prepare()
    return processes.start_code


@pytest.fixture(scope="session")
def start_run(start_code: Callable[..., Run]) -> Callable[..., Run]:
    """:func:`~tests.training.processes.start_run`"""
    return processes.start_run


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """As the processes of a run have: sums must not depend on the number of threads."""
    torch.set_num_threads(1)


@pytest.fixture
def train(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Runs ``train.py ARGUMENTS`` in this process; returns exit status and what it printed on stderr.

    Figures are slow and left out unless ``figures`` is set.
    """
    from cmsbert_fast.training import figures as drawing
    from cmsbert_fast.training.runs import main

    def run(*arguments: object, figures: bool = False) -> tuple[int, str]:
        if not figures:
            monkeypatch.setattr(drawing, "write_figures", lambda *arguments: None)
        capsys.readouterr()
        status = main([str(a) for a in arguments], embedded_config=CONFIGS / "embedded.yaml")
        return status, capsys.readouterr().err

    return run
