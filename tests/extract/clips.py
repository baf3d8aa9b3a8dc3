"""Short videos with speech, their transcripts, and tables that come of them."""

import csv
from pathlib import Path

import numpy as np

from tests.extract.media import RATE, SENTENCES, write_media

GREY, BLACK, WHITE = (np.full((64, 64, 3), level, dtype=np.uint8) for level in (128, 0, 255))
TEXT = " ".join(SENTENCES[:2])


def clip(path: Path, sound: np.ndarray | None, level: np.ndarray | None = GREY, **how: object) -> Path:
    """A video of one brightness, as long as its sound (or two seconds)."""
    seconds = 2.0 if sound is None else len(sound) / RATE
    pictures = None if level is None else [level] * int(seconds * 25)
    return write_media(path, pictures, sound, **how)  # type: ignore[arg-type]


def texts(folder: Path, **by_name: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in by_name.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def table(path: Path, delimiter: str = "\t") -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE))
