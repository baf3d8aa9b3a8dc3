"""Files in the layouts of this field, generated small: nothing here is anybody's data."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest


class Files:
    """Writes files of every format, deterministically.

    Each method returns the content it wrote, so that tests compare what was read with what was meant.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.random = np.random.default_rng(7)

    def pickle(self, name: str, content: Any, protocol: int = 4) -> Path:
        path = self.folder / name
        path.write_bytes(pickle.dumps(content, protocol))
        return path

    def csd(self, name: str, root: str, entries: Mapping[str, tuple[Any, Any]], **options: Any) -> Path:
        path = self.folder / f"{name}.csd"
        with h5py.File(path, "w") as file:
            data = file.create_group(f"{root}/data")
            for key, (features, intervals) in entries.items():
                group = data.create_group(key)
                group.create_dataset("features", data=features, **options)
                group.create_dataset("intervals", data=np.asarray(intervals, dtype=np.float64), **options)
            meta = file.create_group(f"{root}/metadata")
            text = h5py.string_dtype()
            meta.create_dataset("root name", data=np.array([f'"{root}"'], dtype=object), dtype=text)
        return path

    def mmsa(self, aligned: bool, count: int = 4, width_v: int = 3, width_a: int = 2) -> dict[str, dict[str, Any]]:
        """The content of an MMSA file; padding holds junk where lengths say so, zeros where there are none."""
        random = self.random
        root: dict[str, dict[str, Any]] = {}
        texts = ["it was good", "bad", "really not bad at all", "fine i guess"]
        for split in ("train", "valid", "test"):
            words = [texts[k % len(texts)].split() for k in range(count)]
            tokens = 10
            mask = np.zeros((count, 3, tokens), dtype=np.int64)
            for k, spoken in enumerate(words):
                mask[k, 1, : len(spoken) + 2] = 1
            steps_v, steps_a = (tokens, tokens) if aligned else (9, 12)
            vision = random.normal(size=(count, steps_v, width_v))
            audio = random.normal(size=(count, steps_a, width_a))
            part: dict[str, Any] = {
                "raw_text": np.array([" ".join(w) for w in words]),
                "id": np.array([f"vid{split}$_${k}" for k in range(count)]),
                "text": random.normal(size=(count, tokens, 8)).astype(np.float32),
                "text_bert": mask,
                "regression_labels": np.round(random.uniform(-3, 3, count), 1),
                "classification_labels": random.integers(0, 3, count).astype(np.float64),
                "annotations": np.array(["Negative", "Neutral", "Positive", "Positive"])[:count],
            }
            if aligned:
                for array in (vision, audio):
                    array[:, 0] = 0
                    for k, spoken in enumerate(words):
                        array[k, len(spoken) + 1 :] = 0
            else:
                part["vision_lengths"] = random.integers(1, steps_v + 1, count).astype(np.int32)
                part["audio_lengths"] = random.integers(1, steps_a + 1, count).tolist()
            audio[0, 1, 0] = -np.inf
            root[split] = part | {"vision": vision, "audio": audio}
        return root

    def mag(self, count: int = 3) -> dict[str, list[Any]]:
        random = self.random
        root: dict[str, list[Any]] = {}
        for split in ("train", "dev", "test"):
            root[split] = []
            for k in range(count):
                words = [f"w{j}" for j in range(2 + k)]
                arrays = random.normal(size=(len(words), 4)), random.normal(size=(len(words), 5))
                label = np.array([[random.uniform(-3, 3)]], dtype=np.float32)
                root[split].append(((words, *arrays), label, f"vid{split}[{k}]"))
        return root

    def misa(self, lengths: bool = False, columns: int = 1, count: int = 3) -> dict[str, list[Any]]:
        random = self.random
        root: dict[str, list[Any]] = {}
        for split in ("train", "dev", "test"):
            root[split] = []
            for k in range(count):
                words = [f"w{j}" for j in range(2 + k)]
                ids = np.arange(len(words))
                n = (len(words) + 6, len(words) + 9) if lengths else (len(words), len(words))
                inner: tuple[Any, ...] = (ids, random.normal(size=(n[0], 4)), random.normal(size=(n[1], 5)), words)
                if lengths:
                    inner = (*inner, len(words) + 1, np.int64(len(words) + 2))
                label = random.uniform(-3, 3, size=(1, columns)).astype(np.float32)
                root[split].append((inner, label, f"{split}vid[{k}]"))
        return root

    def mult(self, aligned: bool = True, count: int = 3) -> dict[str, dict[str, Any]]:
        random = self.random
        root: dict[str, dict[str, Any]] = {}
        for number, split in enumerate(("train", "valid", "test")):
            steps_v, steps_a = (6, 6) if aligned else (7, 9)
            vision, audio = random.normal(size=(count, steps_v, 4)), random.normal(size=(count, steps_a, 5))
            for k in range(count):
                vision[k, : steps_v - 2 - k] = 0
                audio[k, : steps_a - 2 - k] = 0
            root[split] = {
                "vision": vision,
                "audio": audio.astype(np.float32),
                "text": random.normal(size=(count, 6, 300)).astype(np.float32),
                "labels": random.uniform(-3, 3, size=(count, 1, 1)).astype(np.float32),
                "id": np.array([[f"vid{number}", f"{2.0 * k}", f"{2.0 * k + 1.5}"] for k in range(count)], dtype="S16"),
            }
        return root

    def funny(self, count: int = 3) -> dict[str, list[Any]]:
        random = self.random

        def part(words: Any, n: int) -> tuple[Any, ...]:
            return words, random.normal(size=(n, 91)), random.normal(size=(n, 81)), random.normal(size=(n, 4))

        return {
            split: [
                (part("that is the joke", 4), part(["once upon", "a time"], 4), 100 * s + k, (k + s) % 2)
                for k in range(count)
            ]
            for s, split in enumerate(("train", "dev", "test"))
        }

    def clip(self, tokens: int = 6, aligned: bool = False) -> dict[str, np.ndarray]:
        """What MMSA-FET makes of one clip."""
        random, steps = self.random, (tokens, tokens) if aligned else (9, 12)
        return {
            "audio": random.normal(size=(steps[0], 3)),
            "vision": random.normal(size=(steps[1], 2)),
            "text": random.normal(size=(tokens, 8)).astype(np.float32),
            "text_bert": random.normal(size=(3, tokens)),
        }

    def dialogues(self, python2: bool = False) -> tuple[Any, ...]:
        """The nine parts of DialogueRNN's pickle, six dialogues of two speakers; Python 2 wrote its text as bytes."""
        known: Callable[[str], Any] = (lambda text: text.encode("latin-1")) if python2 else str
        parts: list[dict[Any, Any]] = [{} for _ in range(7)]
        videos = [f"Ses0{1 + k % 5}F_impro0{k}" for k in range(6)]
        for video in videos:
            made: list[Any] = [
                [known(f"{video}_{'FM'[k % 2]}{k:03d}") for k in range(6)],
                [known("FM"[k % 2]) for k in range(6)],
                list(range(6)),
                [self.random.normal(size=100) for _ in range(6)],
                [self.random.normal(size=100).astype("f4") for _ in range(6)],
                [self.random.normal(size=512) for _ in range(6)],
                [known(f"Oh, caf\xe9 number {k}") for k in range(6)],
            ]
            for part, value in zip(parts, made, strict=True):
                part[known(video)] = value
        return (*parts, set(map(known, videos[:4])), list(map(known, videos[4:])))

    def funny_sdk(self, first: bool = False, lists: bool = False) -> dict[str, Any]:
        """UR-FUNNY's own files by name, of the first or second version."""
        ids = range(100, 106)

        def rows(width: int) -> dict[int, dict[str, Any]]:
            made = {key: self.random.normal(size=(4, width)) for key in ids}
            return {
                key: {"punchline_features": v.tolist() if lists else v, "context_features": [v]}
                for key, v in made.items()
            }

        root: dict[str, Any] = {
            "data_folds": {"train": [100, 101], "dev": [102, 103], "test": [104, 105, 999]},
            "humor_label_sdk": {key: key % 2 for key in ids},
            "openface_features_sdk": rows(371),
            "covarep_features_sdk": rows(81),
            "word_embedding_list": [np.ones(300)] * 5,
        }
        if first:
            root["word_embedding_indexes_sdk"] = {key: {"punchline_embedding_indexes": [1, 2, 3, 4]} for key in ids}
        else:
            words = ["that", "is", "the", "joke"]
            root["language_sdk"] = {
                key: {"punchline_sentence": "That's the joke", "punchline_features": words} for key in ids
            }
            root["language_sdk"][105] = {"punchline_sentence": "it is the sentence"}
        return root

    def table(self, rows: list[list[Any]], header: str = "id\tsplit\tstart\tstop\tlabel\ttext") -> Path:
        path = self.folder / "segments.tsv"
        path.write_text("\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
        return path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "data"
    folder.mkdir()
    return Files(folder)
