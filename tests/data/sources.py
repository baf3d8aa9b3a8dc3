"""Sources of every format for tests of conversion, and comparison of what was read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data import Corpus

ROWS = [
    ["v1_0", "train", 0.0, 2.0, 1.5, "so good"],
    ["v1_1", "dev", 2.0, 4.0, -1.0, "so bad"],
    ["v2_0", "test", 0.5, 1.5, 0.0, "fine"],
]


def assert_same(found: Corpus, meant: Corpus) -> None:
    assert found.classes == meant.classes
    assert (found.visual_size, found.acoustic_size) == (meant.visual_size, meant.acoustic_size)
    assert found.standardise == meant.standardise
    assert str(found.report) == str(meant.report)
    assert list(found.splits) == list(meant.splits)
    for split, examples in meant.splits.items():
        assert len(found.splits[split]) == len(examples)
        for a, b in zip(found.splits[split], examples, strict=True):
            assert (a.id, a.words, a.label, a.alignment) == (b.id, b.words, b.label, b.alignment)
            assert type(a.label) is type(b.label)
            assert (a.frame_words is None) == (b.frame_words is None)
            for x, y in zip(a.frame_words or (), b.frame_words or (), strict=True):
                assert x.dtype == y.dtype == np.int32
                np.testing.assert_array_equal(x, y)
            for modality in ("visual", "acoustic"):
                x, y = getattr(a, modality), getattr(b, modality)
                assert x.dtype == y.dtype == np.float32
                assert x.shape == y.shape
                assert x.tobytes() == y.tobytes()


def write(kind: str, files: Any) -> Path:
    """A source of some format."""
    edges = np.arange(41) / 10
    times = np.stack([edges[:-1], edges[1:]], axis=1)
    if kind == "segments":
        files.table(
            [[f"v_{k}", s, k, k + 1, k / 3, "some words"] for k, s in enumerate(["train", "valid", "test", "train"])]
        )
        files.csd("COVAREP", "COVAREP", {"v": (files.random.normal(size=(40, 5)), times)})
        return files.folder
    if kind == "iemocap":
        emotions = ["ang", "hap", "exc", "sad", "neu", "fru"]
        rows = [[f"Ses0{1 + k % 5}F_impro01_{'FM'[k // 5 % 2]}{k:03d}", emotions[k % 6], "so ☃"] for k in range(30)]
        files.table(rows, "id\temotion\ttext")
        (files.folder / "audio").mkdir()
        for name, _, _ in rows[1:]:  # one has no frames
            np.save(files.folder / "audio" / f"{name}.npy", files.random.normal(size=(files.random.integers(1, 9), 3)))
        return files.folder
    if kind.startswith("csd"):
        spoken = np.array([[f"w{k}".encode()] for k in range(4)]), [[0, 1], [1, 2], [2, 3], [3, 4]]
        videos = ("a", "b", "c")
        files.csd("TimestampedWords", "words", dict.fromkeys(videos, spoken))
        files.csd("Labels", "All Labels", {v: (files.random.normal(size=(2, 1)), [[0, 2], [2, 4]]) for v in videos})
        files.csd("FACET", "FACET 4.2", {v: (files.random.normal(size=(40, 4)), times) for v in videos})
        sound = {v: (np.where(np.arange(80).reshape(40, 2) == 7, -np.inf, 0.1), times) for v in videos[:2]}
        files.csd("COVAREP", "COVAREP", sound)  # with values that are not finite, and one video less
        return files.folder
    if kind in ("misa", "mmim"):
        for split, content in files.misa(kind == "mmim").items():
            files.pickle(f"{split}.pkl", content)
        return files.folder
    content = {
        "mmsa": lambda: files.mmsa(False),
        "mmsa aligned": lambda: files.mmsa(True),
        "mag": files.mag,
        "mult": files.mult,
        "mult unaligned": lambda: files.mult(False),
        "funny": files.funny,
    }[kind]()
    return files.pickle(f"{kind}.pkl", content)


def choices(kind: str, files: Any) -> dict[str, Any]:
    """With what a source is opened beside its path: words for MulT, folds for a .csd set, the fold of IEMOCAP."""
    if kind.startswith("mult"):
        table = files.folder.parent / "words.tsv"
        rows = [f"vid{v}_{k}\t{2.0 * k}\t{2.0 * k + 1.5}\thello there" for v in range(3) for k in range(2)]
        table.write_text("\n".join(["id\tstart\tstop\ttext", *rows]), encoding="utf-8")
        return {"words": str(table)}
    if kind.startswith("csd"):
        folds = files.folder.parent / "folds.json"
        folds.write_text('{"train": ["a"], "valid": ["b"], "test": ["c"]}')
        return {"folds": folds, "average_words": kind == "csd"}
    return {"folds": "speaker", "fold": 3} if kind == "iemocap" else {}


# What every reader says that it reads, so that none is left out below.
FORMATS = {
    "segments": "table of segments",
    "iemocap": "IEMOCAP table",
    "csd": "CMU-MultimodalSDK streams",
    "csd of words": "CMU-MultimodalSDK streams",
    "mmsa": "MMSA, unaligned",
    "mmsa aligned": "MMSA, aligned",
    "mag": "MAG-BERT",
    "misa": "MISA",
    "mmim": "MISA",
    "mult": "MulT",
    "mult unaligned": "MulT",
    "funny": "UR-FUNNY",
}


def altered(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change the manifest, or all lines, of converted data."""
    path = folder / name
    lines = [path.read_text()] if name == "manifest.json" else path.read_text().splitlines()
    entries = [json.loads(text) for text in lines]
    for entry in entries:
        change(entry)
    path.write_text("\n".join(map(json.dumps, entries)) + "\n")
