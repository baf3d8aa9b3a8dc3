"""How long alignment and conversion take on streams of CMU-MOSEI's size, and how much memory.

The streams are generated: words, COVAREP at 100 Hz x 74, FACET at 30 Hz x 35, labels of about 23,000 segments in 3,227
videos of 65 hours together, 8.5 GB on disk. ``--scale 0.1`` makes a tenth of it.

    python bench/alignment.py FOLDER            generates FOLDER/streams, converts it, opens the result, prints a table
"""

import argparse
import json
import resource
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


_OPEN = """
import resource, sys, time
begin = time.perf_counter()
from cmsbert_fast.data import read_corpus
corpus = read_corpus(sys.argv[1])
seconds = time.perf_counter() - begin
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
total = sum(example.visual.sum() + example.acoustic.sum() for example in corpus.splits["train"])
both = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{seconds:.2f} s to open, {memory:.0f} MiB; {both:.0f} MiB after every training frame was read")
"""


def measured(command: list[str]) -> tuple[float, float, str]:
    """Seconds, largest resident memory of any child so far in MiB, and output of a command."""
    begin = time.perf_counter()
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, result.stdout


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
    command = [sys.executable, "-m", "cmsbert_fast.data", "convert", str(streams), str(target)]
    seconds, memory, output = measured([*command, "--folds", str(streams / "folds.json")])
    print(output.strip())
    print(f"align and convert: {seconds:.1f} s, {memory:.0f} MiB")
    print(measured([sys.executable, "-c", _OPEN, str(target)])[2].strip())


if __name__ == "__main__":
    main()
