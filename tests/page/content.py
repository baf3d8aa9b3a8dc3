"""A page of two segments with known gates, and its recording."""

from pathlib import Path

import numpy as np

from cmsbert_fast.page.build import write_page
from cmsbert_fast.page.content import Features, Frames, Media, Page, Segment
from tests.page.made import RATE, face, tone, write_video

WORDS = (("so", "good", "</script><b>film"), ("not", "\u202ebad\u202c"))
SPANS = ((0.5, 2.0), (2.5, 3.5))
SECONDS = 4.0
LAYERS = (0, 2)


def gates(layers: int, words: int, frames: int, first: float) -> np.ndarray:
    """g of layer l, word i: (l + 1) * (i + 1) * first at every frame, but for the first frame, which has 0."""
    found = np.ones((layers, words, frames)) * first
    found *= np.arange(1, layers + 1)[:, None, None] * np.arange(1, words + 1)[:, None]
    found[:, :, 0] = 0
    return found.astype(np.float32)


def segment(k: int, timed: bool = True, layers: int = len(LAYERS)) -> Segment:
    words, (start, stop) = WORDS[k], SPANS[k]
    marks = np.linspace(start, stop, len(words) + 1)
    frames = {}
    for modality, count, first in (("visual", 10, 0.5), ("acoustic", 600, 0.25)):
        times = start + (np.arange(count) + 0.5) * (stop - start) / count
        values = np.stack([np.sin(times), times * 100], axis=1).astype(np.float32)
        own = gates(layers, len(words), count, first) if layers else None
        frames[modality] = Frames(values, times if timed else None, own)
    times_of_words = np.stack([marks[:-1], marks[1:]], axis=1)
    return Segment(
        id=f"clip_{k}",
        media=0,
        words=words,
        scores=[1.25 - 2 * k],
        span=(start, stop) if timed else None,
        word_times=times_of_words if timed else None,
        frames=frames,
        read=len(words),
    )


def page(url: str | None = "./clip.webm", timed: bool = True, layers: tuple[int, ...] = LAYERS) -> Page:
    return Page(
        title="clip <i>one</i>",
        model="CMSBertCLR from runs/a",
        media=[Media("clip.webm", url)],
        segments=[segment(k, timed, len(layers)) for k in range(len(WORDS))],
        features={
            "visual": Features(("roll", "smile"), ("degrees", "")),
            "acoustic": Features(("f0", "<energy>"), ("Hz", "")),
        },
        layers=layers,
        depth=3,
        notes=["A note & more."],
    )


def write_clip(path: Path) -> None:
    samples = int(SECONDS * RATE)
    picture = face({"gaze_x": 1.0})
    write_video(path, SECONDS, lambda t: picture, tone(np.full(samples, 150.0), np.ones(samples)))


def write_all(folder: Path) -> Path:
    """The recording and its page."""
    write_clip(folder / "clip.webm")
    write_page(folder / "clip.html", page())
    return folder / "clip.html"
