"""Hostile files for every reader, each generated from a seed."""

import contextlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from cmsbert_fast.data import DataError, convert, open_source, read_corpus
from cmsbert_fast.data.folds import read_folds
from cmsbert_fast.data.word_vectors import WordVectors, read_vectors
from tests.data.conftest import Files
from tests.data.untrusted.hostile import BOMBS, CALLS, FORMS
from tests.hostile.altering import NASTY, altered, altered_json, special


class Case(NamedTuple):
    """A folder with hostile files, what reads it, and their size."""

    kind: str
    read: Callable[[], Any]


def pickled(folder: Path, dice: random.Random) -> Case:
    path = folder / "data.pkl"
    how = dice.random()
    if how < 0.3:
        found = [make(str(folder / "trapped")) for make in CALLS.values()] + [*FORMS.values(), *BOMBS.values()]
        path.write_bytes(dice.choice(found))
    else:
        files = Files(folder)
        choices = [files.mmsa(True), files.mmsa(False), files.mag(), files.mult(), files.funny()]
        content = dice.choice([*choices, files.clip(), files.dialogues()])
        files.pickle("data.pkl", content, dice.choice((0, 2, 4, 5)))
        path.write_bytes(altered(path.read_bytes(), dice))
    words = str(Files(folder).table([["a", "train", 0, 1, 1, "b"]]).rename(folder / "words.tsv"))
    return Case("pickle", lambda: read_corpus(path, words=words if dice.random() < 0.3 else None))


def streams(folder: Path, dice: random.Random) -> Case:
    files, options = Files(folder), dice.choice(({}, {"compression": "gzip"}, {"compression": "lzf", "chunks": True}))
    times = [[k, k + 1] for k in range(40)]
    files.csd("TimestampedWords", "words", {"v": (np.array([[b"a"]] * 40), times)})
    files.csd("Labels", "All Labels", {"v": (np.ones((40, 1)), times)})
    path = files.csd("COVAREP", "COVAREP", {"v": (files.random.normal(size=(40, 5)), times)}, **options)
    how = dice.randrange(8)
    if how < 5:
        path.write_bytes(altered(path.read_bytes(), dice))
    elif how == 5:
        special(path, dice)
    else:
        shape = dice.choice(((1, 1), (10, 5), (40, 5), (4000, 500)))
        with h5py.File(path, "a") as file:
            group = file.create_group("COVAREP/data/w")
            zeros = np.zeros((dice.choice((40, 400_000)), 5), dtype="f4")
            chunks = tuple(min(a, b) for a, b in zip(shape, zeros.shape, strict=True)) if len(zeros) > 40 else shape
            chunks = (max(chunks[0], 50), chunks[1]) if len(zeros) > 40 else chunks
            group.create_dataset("features", data=zeros, chunks=chunks, maxshape=(None, None), compression="gzip")
            group.create_dataset("intervals", data=np.zeros((len(zeros), 2)))
            for k in range(dice.choice((0, 20_000))):
                file["COVAREP/data"][f"x{k}"] = group
    return Case("csd", lambda: read_corpus(folder))


def converted(folder: Path, dice: random.Random) -> Case:
    files, target = Files(folder), folder / "c"
    convert.convert(open_source(files.pickle("mag.pkl", files.mag())), target)
    name = dice.choice(("manifest.json", "manifest.json", "examples.jsonl", "examples.jsonl", "visual.safetensors"))
    path = target / name
    if dice.random() < 0.05:
        special(path, dice)
    elif name == "visual.safetensors":
        path.write_bytes(altered(path.read_bytes(), dice))
    elif name == "manifest.json":
        path.write_text(altered_json(path.read_text(), dice))
    else:
        lines = path.read_text().splitlines()
        place = dice.randrange(len(lines))
        lines[place] = altered_json(lines[place], dice)
        path.write_text("\n".join(lines) + "\n")

    def read() -> None:
        for examples in read_corpus(target).splits.values():
            list(examples)

    return Case("converted", read)


def table(folder: Path, dice: random.Random) -> Case:
    rows = [
        ["v_0", "train", "0", "1", "1.5", "so good"],
        ["v_1", "dev", "1", "2", "-1", "so bad"],
        ["w", "test", "0", "1", "0", "x"],
    ]
    for _ in range(dice.choice((1, 2, 4))):
        rows[dice.randrange(3)][dice.randrange(6)] = str(dice.choice(NASTY)).encode("utf-8", "replace").decode()
    mark = dice.choice(("\t", ",", ";"))
    head = mark.join(("id", "split", "start", "stop", "label", "text"))
    if dice.random() < 0.2:
        head += mark + mark.join(f"c{k}" for k in range(dice.choice((5, 5000, 100_000))))
    if dice.random() < 0.5:
        head = head.replace(mark + "text", "")
        (folder / "text").mkdir()
        transcript = folder / "text" / "v_0.txt"
        transcript.write_text("words " * dice.choice((1, 100, 1_000_000)))
        if dice.random() < 0.3:
            special(transcript, dice)
        rows = [row[:-1] for row in rows]
    body = "\n".join([head, *(mark.join(row) for row in rows)]) + "\n" + mark * dice.choice((0, 0, 300_000))
    path = folder / f"segments{'.tsv' if mark == chr(9) else '.csv'}"
    data = body.encode(dice.choice(("utf-8", "utf-8", "utf-16", "utf-8-sig")))
    path.write_bytes(altered(data, dice) if dice.random() < 0.4 else data)
    (folder / "visual").mkdir()
    np.save(folder / "visual" / "v_0.npy", np.ones((3, 2)))
    return Case("table", lambda: read_corpus(folder if dice.random() < 0.5 else path))


def frames(folder: Path, dice: random.Random) -> Case:
    Files(folder).table([["v", "train", 0, 1, 1, "b"]])
    (folder / "visual").mkdir()
    values, suffix = np.random.default_rng(0).normal(size=(30, 4)), dice.choice((".npy", ".npz", ".csv", ".h5"))
    path = folder / "visual" / f"v{suffix}"
    if suffix == ".npy":
        np.save(path, values)
    elif suffix == ".npz":
        dice.choice((np.savez, np.savez_compressed))(path, **{dice.choice(("features", "a")): values})
        if dice.random() < 0.3:
            np.savez_compressed(path, features=np.zeros((dice.choice((1000, 4_000_000)), 4)))
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            options = dice.choice(({}, {"compression": "gzip"}, {"chunks": (1, 1)}, {"compression": "lzf"}))
            file.create_dataset(dice.choice(("features", "a", "a/b")), data=values, **options)
            if dice.random() < 0.3:
                file["times"] = dice.choice((h5py.ExternalLink("/etc/passwd", "/"), h5py.SoftLink("/features"), 5))
    else:
        heads = ("a,b,c,d", "timestamp,b,c,d", "start,stop,c,d", "1,2,3,4", ",b,c,d", "file,start,end,d")
        head = dice.choice((*heads, "face_id, timestamp, success, AU01_r", "x" * 2000 + ",AU" + "*" * 2000 + ",c,d"))
        cells = [[str(x) for x in row] for row in values.tolist()]
        cells[dice.randrange(30)][dice.randrange(4)] = str(dice.choice(NASTY)).encode("utf-8", "replace").decode()
        path.write_text("\n".join([head, *map(",".join, cells)]))
    if dice.random() < 0.6:
        path.write_bytes(altered(path.read_bytes(), dice))
    elif dice.random() < 0.2:
        special(path, dice)
    columns = dice.choice((None, None, "a,b*", "AU*", "*" * 100 + "z", "[" * 150, "*?*?*?*?*?*?*?*?*?*?*?z"))
    return Case("frames", lambda: read_corpus(folder, columns=columns))


def folders(folder: Path, dice: random.Random) -> Case:
    """Sets of several files: UR-FUNNY's own pickles, the raw folders of CMU-MOSI and CMU-MOSEI."""
    files, data = Files(folder), folder / "data"
    data.mkdir()
    if dice.random() < 0.5:
        for name, content in files.funny_sdk().items():
            Files(data).pickle(f"{name}.pkl", content, dice.choice((2, 4)))
    else:
        (data / "Labels").mkdir()
        (data / "Transcript" / "Segmented").mkdir(parents=True)
        rows = [["0.5", "2.5", "v1", "1", "-1.2"], ["2.5", "4", "v1", "2", "3"], ["1", "2", "../v", "1", "0"]]
        rows[dice.randrange(3)][dice.randrange(5)] = str(dice.choice(NASTY)).encode("utf-8", "replace").decode()
        (data / "Labels" / "OpinionLevelSentiment.csv").write_text("\n".join(map(",".join, rows)))
        lines = ["1_DELIM_so good", "2_DELIM_so bad", "v1___1___0___1___so", "v1___2___x___1"]
        for name in ("v1.annotprocessed", "v2.txt"):
            text = "\n".join(dice.sample(lines, 2)) * dice.choice((1, 1, 1000, 500_000))
            (data / "Transcript" / "Segmented" / name).write_text(text)
    path = dice.choice(sorted(path for path in data.rglob("*") if path.is_file()))
    if dice.random() < 0.15:
        special(path, dice)
    elif dice.random() < 0.8:
        path.write_bytes(altered(path.read_bytes(), dice))
    labels = dice.random() < 0.7
    return Case("folders", lambda: read_corpus(data, labels=labels))


def small(folder: Path, dice: random.Random) -> Case:
    how, path = dice.randrange(3), folder / "file"
    if how == 0:
        path.write_text(altered_json(json.dumps([{"train": ["a"], "valid": ["b"], "test": ["c"]}] * 3), dice))
        read: Callable[[], Any] = lambda: read_folds(path, 2)  # noqa: E731
    elif how == 1:
        path.write_bytes(altered(b"\n".join(f"w{k} 1 2 3".encode() for k in range(50)) + b"\n", dice))
        read = lambda: read_vectors(path, ["w1", "w2"])  # noqa: E731
    else:
        WordVectors(np.ones((3, 4), np.float32), ("a", "b"), "here").save(path)
        path.write_bytes(altered(path.read_bytes(), dice))

        def read() -> None:
            with contextlib.suppress(ValueError):
                try:
                    WordVectors.load(path)
                except Exception as error:  # as the processor's callers take it
                    raise DataError(type(error).__name__) from error

    if dice.random() < 0.1:
        special(path, dice)
    return Case("folds and vectors", read)


def settings(folder: Path, dice: random.Random) -> Case:
    from cmsbert_fast.training.command import parse_command

    keys = ["seed", "variant", "fold", "architecture", "temperature", "data", "model", "epochs", "standardise", "x"]
    lines = [
        "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]",
        *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)),
    ]
    values = [
        "*a11",
        "*a2",
        "{a: *a11}",
        "2024-01-31",
        "!!set {a}",
        "!!binary aGk=",
        "1e-12",
        "9" * 500,
        "1" + ":59" * 20_000,
    ]
    values += [
        "[" * 5000,
        "{",
        "!!python/object/apply:os.system [true]",
        "&a [*a]",
        "0x" + "f" * 10_000,
        ".inf",
        "~",
        "- - -",
    ]
    text = "\n".join(
        lines[: dice.choice((0, 3, 12))] + [f"{dice.choice(keys)}: {dice.choice(values)}" for _ in range(3)]
    )
    path = folder / "c.yaml"
    path.write_bytes(altered(text.encode(), dice) if dice.random() < 0.3 else text.encode())
    if dice.random() < 0.05:
        special(path, dice)
    embedded = Path(__file__).resolve().parents[2] / "configs" / "embedded.yaml"
    return Case("settings", lambda: parse_command(["--config", str(path)], embedded))


def model(folder: Path, dice: random.Random) -> Case:
    from cmsbert_fast.training.build import load_trained

    target = folder / "best"
    shutil.copytree(trained_model(), target)
    names = ["config.json", "config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"]
    path = target / dice.choice([*names, "model.safetensors"])
    if dice.random() < 0.05:
        special(path, dice)
    elif path.suffix == ".json":
        fields: dict[str, Any] = {"attn_implementation": "a/b", "auto_map": {"AutoConfig": "modeling.A"}, "to_dict": 1}
        fields |= {"num_hidden_layers": 10**9, "vocab_size": 10**10, "num_labels": 10**9, "quantization_config": {}}
        values = json.loads(path.read_text())
        if path.name == "config.json" and dice.random() < 0.3:
            key = dice.choice(list(fields))
            path.write_text(json.dumps({**values, key: fields[key]}))
        else:
            path.write_text(altered_json(path.read_text(), dice))
    else:
        path.write_bytes(altered(path.read_bytes(), dice))
    return Case("model", lambda: load_trained(target))


def state(folder: Path, dice: random.Random) -> Case:
    import torch

    from cmsbert_fast.training import checkpoint, report

    whole = {
        "settings": {"seed": 0}, "fingerprint": "x", "state": {"initial": False}, "reported": {"nu": 1.0},
        "log_length": 5,
        "progress": dict(epoch=1, batch=0, step=3, best=0.5, best_epoch=1, stalled=0, seconds=1.0),
        "model": {"a": torch.zeros(3)}, "optimizer": {"state": {}, "param_groups": [{"params": [0]}]},
        "random": [checkpoint.random_state(torch.device("cpu"))],
    }  # fmt: skip
    path = folder / checkpoint.FILE_NAME
    if dice.random() < 0.3:
        path = folder / report.RESULTS
        values = {
            "settings": {"variant": "a", "seed": 0, "fold": None},
            "data": {"fingerprint": "x"},
            "test": {"mae": 1.0},
        }
        path.write_text(altered_json(json.dumps(values), dice))
        return Case("run", lambda: report.read_results(folder))
    if dice.random() < 0.5:
        where: Any = whole
        for _ in range(dice.randrange(3)):
            inner = [value for value in where.values() if isinstance(value, dict) and value]
            where = dice.choice(inner) if inner else where
        where[dice.choice(list(where))] = dice.choice([value for value in NASTY if value != "\ud800"])
        checkpoint.save(folder, whole)
    else:
        checkpoint.save(folder, whole)
        data = altered(path.read_bytes(), dice)
        path.write_bytes(data[:-71] if dice.random() < 0.5 else data)
    if dice.random() < 0.05:
        special(path, dice)
    return Case("run", lambda: checkpoint.load_whole(folder))


KINDS = (pickled, streams, converted, table, frames, folders, small, settings, state, model)
_trained: list[Path] = []


def trained_model() -> Path:
    """A small trained model, made once."""
    if not _trained:
        from cmsbert_fast import CMSBertConfig, CMSBertForSequenceClassification, CMSBertProcessor
        from cmsbert_fast.data.embedded import embedded_tokenizer

        folder, tokenizer = Path(tempfile.mkdtemp()), embedded_tokenizer()
        sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        config = CMSBertConfig(vocab_size=len(tokenizer), visual_size=3, max_position_embeddings=64, **sizes)
        CMSBertForSequenceClassification(config).save_pretrained(folder)
        CMSBertProcessor(tokenizer, [0.0] * 3, [1.0] * 3, max_length=20).save_pretrained(folder)
        _trained.append(folder)
    return _trained[0]
