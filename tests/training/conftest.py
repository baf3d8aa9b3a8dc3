"""A small corpus and a small BERT on disk, and training runs in processes of their own."""

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = ("the", "film", "was", "good", "bad", "not", "plot", "and", "very", "dull")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZES = {"train": 25, "valid": 7, "test": 9}


def write_corpus(
    folder: Path,
    label: Callable[[int], str] = lambda i: f"{(7 * i % 31 - 15) / 5:.1f}",
    sizes: Mapping[str, int] = SIZES,
) -> Path:
    """A table of segments with a visual (3 features) and an acoustic (2 features) stream."""
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
                frames = rng.normal(size=(int(rng.integers(1, 6)), features)).astype(np.float32)
                np.save(folder / stream / f"{split}{number}.npy", frames)
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


@pytest.fixture
def short(corpus_folder: Path, bert_without_dropout: Path) -> list:
    """Arguments of two epochs of three steps."""
    return ["--data", corpus_folder, "--model", bert_without_dropout, "--epochs", 2, "--batch-size", 9]


@dataclass
class Run:
    """A training run in other processes."""

    processes: list[BaseProcess]
    folder: Path

    def wait(self, seconds: float = 90) -> list[int | None]:
        """The exit status of every rank."""
        for process in self.processes:
            process.join(seconds)
        return [process.exitcode for process in self.processes]

    def kill_after(self, lines: int) -> None:
        """Kills every rank with SIGKILL once the log has so many lines."""
        self.wait_for(lines)
        for process in self.processes:
            process.kill()
        self.wait()

    def wait_for(self, lines: int) -> None:
        """Returns when the log has so many lines, while the run goes on."""
        deadline = time.monotonic() + 90
        while len(self._log()) < lines:
            assert time.monotonic() < deadline, self.errors()
            assert all(p.is_alive() for p in self.processes), self.errors()
            time.sleep(0.002)

    def output(self, rank: int = 0) -> str:
        """What a rank printed on stdout."""
        return (self.folder / f"out{rank}").read_text()

    def errors(self, rank: int = 0) -> str:
        """What a rank printed on stderr."""
        return (self.folder / f"err{rank}").read_text()

    def records(self, event: str = "train") -> list[dict]:
        """The lines of one kind in the only log below the folder."""
        return [record for line in self._log() if (record := json.loads(line)).pop("event") == event]

    def _log(self) -> list[str]:
        logs = list(self.folder.glob("out/*/*/log.jsonl"))
        return logs[0].read_text().splitlines() if logs else []


_CODE = """
import os, sys
os.environ.update({environment})
os.dup2(os.open({out!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
os.dup2(os.open({err!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
{code}
"""
_MAIN = """
{before}
from cmsbert_fast.training import figures
from cmsbert_fast.training.runs import main
figures.write_figures = lambda *arguments: None  # slow; other tests look at them
sys.exit(main({arguments!r}, embedded_config="none"))
"""


@pytest.fixture(scope="session")
def start_code() -> Callable[..., Run]:
    """Runs code on so many ranks, in processes forked from a server that has imported everything once."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    context = multiprocessing.get_context("forkserver")
    modules = ["cmsbert_fast.training.runs", "cmsbert_fast.training.metrics"]
    if find_spec("tensorboard"):
        modules.append("torch.utils.tensorboard")
    context.set_forkserver_preload(modules)

    def start(folder: Path, code: str, ranks: int = 1) -> Run:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes: list[BaseProcess] = []
        for rank in range(ranks):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            whole = _CODE.format(
                environment=environment if ranks > 1 else {},
                out=str(folder / f"out{rank}"),
                err=str(folder / f"err{rank}"),
                code=code,
            )
            process = context.Process(target=exec, args=(whole, {"__name__": "run"}))
            process.start()
            processes.append(process)
        return Run(processes, folder)

    return start


@pytest.fixture(scope="session")
def start_run(start_code: Callable[..., Run]) -> Callable[..., Run]:
    """Starts ``train.py ARGUMENTS --output FOLDER/out`` on so many ranks; ``before`` is code that they run first."""

    def start(folder: Path, arguments: Sequence[object], ranks: int = 1, before: str = "") -> Run:
        given = [*map(str, arguments), "--output", str(folder / "out")]
        return start_code(folder, _MAIN.format(before=before, arguments=given), ranks)

    return start


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
