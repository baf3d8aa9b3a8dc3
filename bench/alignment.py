"""How long alignment and conversion take on streams of CMU-MOSEI's size, and how much memory.

The streams are generated: words, COVAREP at 100 Hz x 74, FACET at 30 Hz x 35, labels of about 23,000 segments in 3,227
videos of 65 hours together, 8.5 GB on disk. ``--scale 0.1`` makes a tenth of it.

    python bench/alignment.py FOLDER            generates FOLDER/streams, converts it, opens the result, prints a table
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

VIDEOS, HOURS, SEGMENTS = 3227, 65.0, 23_000
WORDS_PER_SECOND = 2.7


def generate(folder: Path, scale: float) -> None:
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

    for name, seconds in tqdm(list(zip(names, lengths, strict=True)), desc="generating", disable=None):
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


def run(script: str, *arguments: str) -> tuple[float, str]:
    """Seconds and output of a Python script in a process of its own."""
    begin = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - begin, result.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    streams = options.folder / "streams"
    if not streams.exists():
        generate(streams, options.scale)
    size = sum(file.stat().st_size for file in streams.glob("*.csd"))
    print(f"streams: {size / 1e9:.2f} GB")
    target = options.folder / "converted"
    folds = str(streams / "folds.json")
    seconds, output = run(_CONVERT, "convert", str(streams), str(target), "--folds", folds)
    print(output)
    print(f"align and convert: {seconds:.1f} s")
    print(run(_OPEN, str(target))[1])


if __name__ == "__main__":
    main()
