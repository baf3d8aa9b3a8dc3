"""A folder as `cmsbert_fast.extract` leaves it, made by hand: a table, word times, frames with times, a manifest."""

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

FINGERPRINT = "5eed" * 8
COLUMNS = {"visual": ["roll", "smile", "brow"], "acoustic": ["f0", "voicing"]}
UNITS = {"visual": {"roll": "degrees", "smile": "", "brow": ""}, "acoustic": {"f0": "Hz", "voicing": ""}}
TEXTS = ("the film was good", "the plot was very dull and bad")
RATES = {"face": 10, "voice": 20}  # frames a second


def write_extracted(
    folder: Path,
    texts: Sequence[str] = TEXTS,
    splits: Sequence[str] = ("all",),
    fingerprint: str | None = FINGERPRINT,
    video: str = "clip",
    labels: bool = False,
    recording: Path | None = None,
) -> Path:
    """Segments of one video, one after the other; a word takes 0.4 s, a pause between segments 0.6 s.

    Args:
        folder: To make.
        texts: Of the segments.
        splits: Of the segments, in turn.
        fingerprint: None: there is no manifest.
        video: Its id.
        labels: Whether the table has scores.
        recording: Its file, where there is one.
    """
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    lines = ["id\tvideo\tsplit\tstart\tstop\ttext" + "\tlabel" * labels]
    words, times, begin = [], [], 0.0
    for k, text in enumerate(texts):
        start = begin
        for word in text.split():
            words.append([word.encode()])
            times.append([begin, begin + 0.4])
            begin += 0.4
        label = f"\t{(k % 7 - 3) / 2}" * labels
        lines.append(f"{video}_{k}\t{video}\t{splits[k % len(splits)]}\t{start:.3f}\t{begin:.3f}\t{text}{label}")
        begin += 0.6
    (folder / "segments.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with h5py.File(folder / "words.csd", "w") as file:
        group = file.create_group(f"words/data/{video}")
        group["features"], group["intervals"] = np.array(words), np.array(times)
    for (stream, rate), names in zip(RATES.items(), COLUMNS.values(), strict=True):
        (folder / stream).mkdir()
        count = int(begin * rate)
        starts = np.arange(count) / rate
        table = np.column_stack([starts, starts + 1 / rate, random.normal(size=(count, len(names)))])
        header = ",".join(["start", "stop", *names])
        np.savetxt(folder / stream / f"{video}.csv", table, "%.6g", ",", header=header, comments="")
    if fingerprint is not None:
        manifest = {"fingerprint": fingerprint, "columns": COLUMNS, "units": UNITS}
        manifest["videos"] = {} if recording is None else {video: {"file": str(recording), "outcome": "extracted"}}
        (folder / "extraction.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder
