"""From your own transcripts and features to a page: writes a folder of data, trains on it, shows what the model makes.

    python examples/own_features.py

The utterances are those of the embedded corpus, as if you had made them: for each, an id, a text, a score, and one
array per modality, (frames, features), of any length. docs/data.md lists the other forms that can be read.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

from cmsbert_fast.cli import main as cmsbert
from cmsbert_fast.data import read_corpus
from cmsbert_fast.data.embedded import embedded_tokenizer


def write_data(folder: Path, limit: int | None) -> None:
    """A table of segments, and below ``visual`` and ``acoustic`` one file of frames each."""
    for modality in ("visual", "acoustic"):
        (folder / modality).mkdir(parents=True, exist_ok=True)
    with open(folder / "segments.tsv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["id", "split", "label", "text"])
        for split, examples in read_corpus("embedded").splits.items():
            for example in examples[:limit]:
                table.writerow([example.id, split, example.label, " ".join(example.words)])
                np.save(folder / "visual" / f"{example.id}.npy", example.visual)
                np.save(folder / "acoustic" / f"{example.id}.npy", example.acoustic)


def write_bert(folder: Path) -> None:
    """A small BERT without pretraining, in the place of "bert-base-uncased", which would have to be downloaded."""
    tokenizer = embedded_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(*arguments: object) -> None:
    """``cmsbert ARGUMENTS``, as on the command line."""
    print("$ cmsbert", *arguments, flush=True)
    if status := cmsbert([str(argument) for argument in arguments]):
        raise SystemExit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("own"), help="new folder for everything (default: own)")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the training set (default: 5)")
    parser.add_argument("--examples", type=int, help="so many of each split only (default: all)")
    given = parser.parse_args()
    data, bert, runs = given.output / "data", given.output / "bert", given.output / "runs"

    write_data(data, given.examples)
    write_bert(bert)
    run("inspect", data)
    settings = ["--epochs", given.epochs, "--batch-size", 32, "--learning-rate", 2e-3, "--max-grad-norm", 1]
    run("train", "--data", data, "--model", bert, "--variant", "cmsbert-clr", *settings, "--output", runs)

    # What the model makes of data: words, the score of each utterance, and bars for its gates.
    page = given.output / "page.html"
    run("predict", runs / "cmsbert-clr" / "seed-0", data, "--split", "test", "--page", page)
    print(f"open {page}")


if __name__ == "__main__":
    main()
