"""How long reading CMU-MOSEI takes, and how much memory, on generated files of its size.

    python bench/reading.py csd FOLDER   streams: words, COVAREP at 100 Hz x 74, FACET at 30 Hz x 35, labels of about
                                         23,000 segments in 3,227 videos of 65 hours, 8.4 GB: align, convert, open
    python bench/reading.py mmsa FOLDER  MMSA's unaligned pickle, 500 x 35 and 500 x 74 float64, 10 GB: convert, open

``--scale 0.1`` makes a tenth of it. What is generated stays in FOLDER and is used again.
"""

import argparse
import json
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np

from cmsbert_fast.progress import tracked

VIDEOS, HOURS, SEGMENTS = 3227, 65.0, 23_000
WORDS_PER_SECOND = 2.7


def generate_streams(folder: Path, scale: float) -> None:
    """Write the four streams and the folds."""
    random = np.random.default_rng(0)
    videos = max(3, round(VIDEOS * scale))
    lengths = random.gamma(4.0, 1.0, videos)
    lengths *= HOURS * 3600 * scale / lengths.sum()
    names = [f"vid{k:05d}" for k in range(videos)]
    sound = random.normal(size=(200_000, 74)).astype(np.float32)
    face = random.normal(size=(60_000, 35)).astype(np.float32)
    vocabulary = np.array([f"word{k}".encode() for k in range(5000)], dtype="S12")
    folder.mkdir(parents=True)
    roots = {
        "CMU_MOSEI_COVAREP": "COVAREP",
        "CMU_MOSEI_VisualFacet42": "FACET 4.2",
        "CMU_MOSEI_TimestampedWords": "words",
        "CMU_MOSEI_Labels": "All Labels",
    }
    groups = {name: h5py.File(folder / f"{name}.csd", "w").create_group(f"{root}/data") for name, root in roots.items()}

    def put(stream: str, video: str, features: np.ndarray, edges: np.ndarray) -> None:
        group = groups[stream].create_group(video)
        group["features"] = features
        group["intervals"] = np.stack([edges[:-1], edges[1:]], axis=1)

    for name, seconds in tracked(list(zip(names, lengths, strict=True)), "generating", "videos", plain=False):
        for stream, block, rate in (("CMU_MOSEI_COVAREP", sound, 100), ("CMU_MOSEI_VisualFacet42", face, 30)):
            count = int(seconds * rate)
            begin = int(random.integers(0, len(block)))
            put(
                stream,
                name,
                np.take(block, range(begin, begin + count), axis=0, mode="wrap"),
                np.arange(count + 1) / rate,
            )
        spoken = max(2, int(seconds * WORDS_PER_SECOND))
        edges = np.sort(np.append(random.uniform(0, seconds, spoken - 1), [0, seconds]))
        put("CMU_MOSEI_TimestampedWords", name, random.choice(vocabulary, (spoken, 1)), edges)
        parts = max(1, round(SEGMENTS * scale * seconds / lengths.sum()))
        scores = np.round(random.uniform(-3, 3, (parts, 7)), 2).astype(np.float32)
        put("CMU_MOSEI_Labels", name, scores, np.linspace(0, seconds, parts + 1))
    for group in groups.values():
        group.file.close()
    train, valid = round(videos * 0.7), round(videos * 0.8)
    folds = {"train": names[:train], "valid": names[train:valid], "test": names[valid:]}
    (folder / "folds.json").write_text(json.dumps(folds))


def generate_pickle(folder: Path, scale: float) -> None:
    """Write MMSA's unaligned MOSEI, without the BERT vectors that no reader needs."""
    random = np.random.default_rng(0)
    root = {}
    for split, full in (("train", 16326), ("valid", 1871), ("test", 4659)):
        count = max(2, round(full * scale))
        root[split] = {
            "raw_text": np.array([" ".join(["word"] * n) for n in random.integers(3, 60, count)]),
            "id": np.array([f"vid{split}$_${k}" for k in range(count)]),
            "vision": np.tile(random.normal(size=(1, 500, 35)), (count, 1, 1)),
            "audio": np.tile(random.normal(size=(1, 500, 74)), (count, 1, 1)),
            "vision_lengths": random.integers(20, 501, count).tolist(),
            "audio_lengths": random.integers(20, 501, count).tolist(),
            "regression_labels": random.uniform(-3, 3, count),
        }
    folder.mkdir(parents=True)
    with (folder / "unaligned_50.pkl").open("wb") as file:
        pickle.dump(root, file, protocol=4)


_PEAK = """
def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
"""

_CONVERT = (
    _PEAK
    + """
import sys
from cmsbert_fast.data.__main__ import main
assert main(sys.argv[1:]) == 0
print(f"largest resident memory {peak():.0f} MiB")
"""
)

_OPEN = (
    _PEAK
    + """
import sys, time
begin = time.perf_counter()
from cmsbert_fast.data import read_corpus
imported = time.perf_counter()
corpus = read_corpus(sys.argv[1])
opened = time.perf_counter()
print(f"open: {opened - begin:.2f} s, imports {imported - begin:.2f} s of it; largest resident memory {peak():.0f} MiB")
total = sum(example.visual.sum() + example.acoustic.sum() for example in corpus.splits["train"])
seconds = time.perf_counter() - opened
print(f"reading every training frame once: {seconds:.2f} s, largest resident memory {peak():.0f} MiB")
"""
)

_START = (
    _PEAK
    + """
import os, sys, time
from pathlib import Path
from cmsbert_fast.data import read_corpus
from cmsbert_fast.training.batches import Batches
from cmsbert_fast.training.build import build
from cmsbert_fast.training.preflight import check_data
from cmsbert_fast.training.resume import fingerprint
from cmsbert_fast.training.settings import TrainingSettings
import torch, transformers
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
settings = TrainingSettings(data=sys.argv[1], model=sys.argv[2])
if sys.argv[3] == "cold":  # the data leave the system's cache; what is imported stays
    for path in Path(sys.argv[1]).iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
print(f"imports of train.py: largest resident memory {peak():.0f} MiB")
times = [time.perf_counter()]
corpus = read_corpus(settings.request())
times.append(time.perf_counter())
check_data(corpus)
fingerprint(corpus)
times.append(time.perf_counter())
model, processor = build(settings, corpus)
times.append(time.perf_counter())
Batches(corpus.splits["train"], processor, model, torch.device("cpu")).load(range(128))
times.append(time.perf_counter())
stages = ("open", "check and fingerprint", "vocabulary, statistics and small model", "first batch")
each = ", ".join(f"{name} {b - a:.2f} s" for name, a, b in zip(stages, times, times[1:]))
print(f"start of training, data {sys.argv[3]}: {times[-1] - times[0]:.2f} s: {each}")
print(f"largest resident memory {peak():.0f} MiB")
"""
)


def save_small_bert(folder: Path) -> None:
    """A checkpoint to start from whose own loading hardly counts."""
    from transformers import BertConfig, BertModel

    from cmsbert_fast.data.embedded import embedded_tokenizer

    tokenizer = embedded_tokenizer()
    tokenizer.save_pretrained(folder)
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)


def run(script: str, *arguments: str) -> tuple[float, str]:
    """Seconds and output of a Python script in a process of its own."""
    begin = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - begin, result.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("csd", "mmsa"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    source, target = options.folder / options.kind, options.folder / f"{options.kind}-converted"
    if not source.exists():
        {"csd": generate_streams, "mmsa": generate_pickle}[options.kind](source, options.scale)
    size = sum(file.stat().st_size for file in source.iterdir())
    print(f"source: {size / 1e9:.2f} GB")
    if target.exists():
        shutil.rmtree(target)
    folds = ["--folds", str(source / "folds.json")] if options.kind == "csd" else []
    seconds, output = run(_CONVERT, "convert", str(source), str(target), *folds)
    print(output)
    print(f"read and convert: {seconds:.1f} s")
    print(run(_OPEN, str(target))[1])
    model = options.folder / "small-bert"
    save_small_bert(model)
    for state in ("warm", "cold"):
        print(run(_START, str(target), str(model), state)[1])


if __name__ == "__main__":
    main()
