"""Trained models as commit 2931ebd writes them, rebuilt without their weights, and what they predict.

The text files lie in ``checkpoint/``. Weights are random numbers under the names and shapes of the golden file
``state_dicts``. They are multiples of a power of two, the same bits everywhere.
"""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.frozen.programs import call

TEXTS = Path(__file__).with_name("checkpoint")
CLASSES = ("happy", "sad", "angry", "neutral")
# Name of the case, which is that in state_dicts too: the model class, the classes.
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "trained CMSBERT": ("CMSBertForSequenceClassification", ()),
    "trained CMSBERT-CLR": ("CMSBertCLRForSequenceClassification", ()),
    "trained CMSBERT-CLR, 4 classes": ("CMSBertCLRForSequenceClassification", CLASSES),
}
_UTTERANCES = (
    "um i think the acting was really normal at all",
    "the plot is not bad",
    "great",
    "its music felt crazy to be honest but the villain is fine",
    "that costume looked strange to me",
    "it has a boring ending",
    "you know the sequel was really sick",
    "zzz the camera is unusual",  # a word that the vocabulary does not hold
    "and then i found the director interesting for a film like this while the cast is lovely",
    "the humor is serious today",
)


def write_checkpoint(folder: Path, case: str, shapes: dict[str, str]) -> Path:
    """Writes the folder of a trained model.

    Args:
        folder: Where; it is made.
        case: A name of ``CASES``.
        shapes: What the golden file ``state_dicts`` holds for it.
    """
    shutil.copytree(TEXTS, folder)
    kind, classes = CASES[case]
    config = json.loads((TEXTS / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = [kind]
    if classes:
        config["id2label"] = {str(k): name for k, name in enumerate(classes)}
        config["label2id"] = {name: k for k, name in enumerate(classes)}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    weights = {key: _weight(key, text) for key, text in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _weight(key: str, text: str) -> np.ndarray:
    dtype, _, shape = text.partition(" ")
    sizes = [int(size) for size in shape.split("x") if size]
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    values = rng.integers(-(2**20), 2**20, size=sizes) / 2**22  # in [-1/4, 1/4)
    if key == "nu" or key.endswith("LayerNorm.weight"):
        values = values + 1
    return np.asarray(values, dtype=dtype)


def write_corpus(folder: Path) -> Path:
    """A table of segments without labels, with frames as wide as those of the embedded corpus."""
    rng = np.random.default_rng(20)
    lines = ["id\ttext", *(f"u{k}\t{text}" for k, text in enumerate(_UTTERANCES))]
    for modality, features in (("visual", 8), ("acoustic", 6)):
        (folder / modality).mkdir(parents=True)
        for k in range(len(_UTTERANCES)):
            frames = rng.integers(-64, 65, size=(int(rng.integers(1, 14)), features)) / 32
            np.save(folder / modality / f"u{k}.npy", frames.astype(np.float32))
    (folder / "segments.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def predict(*arguments: object, backend: str = "auto") -> dict[str, list]:
    """What ``python -m cmsbert_fast.predict ARGUMENTS`` prints, by column; numbers where they are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        status, out, err = call("cmsbert_fast.predict", "--device", "cpu", *arguments, backend=backend)
    finally:
        torch.set_num_threads(threads)
    assert status == 0, err
    header, *rows = (line.split(",") for line in out.splitlines())
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    return {name: values if name == "id" else [_number(v) for v in values] for name, values in columns.items()}


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def predictions(folder: Path, state_dicts: dict[str, dict[str, str]]) -> dict[str, Any]:
    """What every rebuilt checkpoint predicts."""
    corpus = write_corpus(folder / "corpus")
    found = {}
    for case in CASES:
        checkpoint = write_checkpoint(folder / case.replace(" ", "-"), case, state_dicts[case])
        found[case] = predict(checkpoint, corpus)
    return found
