"""The page of a made recording: ``python -m tests.page.demo RUN FOLDER``.

RUN is ``train.py``'s ``cmsbert-clr`` on the embedded corpus. A drawn face speaks utterances of its test set one after
the other; its features are the frames that the model reads. FOLDER gets the recording, the page and pictures of it.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cmsbert_fast.data.embedded import ACOUSTIC_FEATURES, VISUAL_FEATURES, embedded_corpus
from cmsbert_fast.data.example import Clock, Corpus, Example
from cmsbert_fast.predict import predict_corpus
from cmsbert_fast.predict_page import Scores, write_scores_page
from cmsbert_fast.training.build import load_trained
from tests.page.browser import browser
from tests.page.made import RATE, face, tone, write_video

UTTERANCES = (89, 55, 86, 75, 66, 26)  # some share their words, not their scores
_WORD, _PAUSE = 0.36, 0.7  # seconds


def spoken(examples: Sequence[Example], recording: str) -> list[Example]:
    """Examples with times: one after the other, every word as long as any."""
    found, begin = [], 0.4
    for example in examples:
        stop = begin + _WORD * len(example.words)
        marks = np.linspace(begin, stop, len(example.words) + 1)
        frames = [np.linspace(begin, stop, len(part) + 1) for part in (example.visual, example.acoustic)]
        intervals = [np.stack([edges[:-1], edges[1:]], axis=1) for edges in (marks, *frames)]
        found.append(replace(example, clock=Clock(recording, (begin, stop), *intervals)))
        begin = stop + _PAUSE
    return found


def record(path: Path, examples: Sequence[Example]) -> None:
    """The recording of :func:`spoken` examples: the face has their visual frames, the tone their acoustic ones."""
    seconds = examples[-1].clock.span[1] + _PAUSE
    times = np.arange(int(seconds * RATE)) / RATE

    def features(name: str, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Curves over all samples; 0 between utterances."""
        middles = np.concatenate([getattr(e.clock, name).mean(axis=1) for e in examples])
        values = np.concatenate([getattr(e, name) for e in examples])
        ends = np.array([t for e in examples for t in e.clock.span])
        order = np.argsort(np.concatenate([middles, ends]))
        middles = np.concatenate([middles, ends])[order]
        values = np.concatenate([values, np.zeros((len(ends), values.shape[1]))])[order]
        return {column: np.interp(times, middles, values[:, k]) for k, column in enumerate(columns)}

    seen, heard = features("visual", VISUAL_FEATURES), features("acoustic", ACOUSTIC_FEATURES)
    speaking, syllable = np.zeros(len(times)), np.zeros(len(times))
    for example in examples:
        start, stop = example.clock.span
        inside = (times >= start) & (times < stop)
        speaking[inside] = 1
        syllable[inside] = np.abs(np.sin(np.pi * (times[inside] - start) / _WORD))
    pitch = 150 * 2 ** (np.clip(heard["pitch"], -3, 3) / 6)
    write_video(
        path,
        seconds,
        lambda t: face(
            {name: curve[min(len(times) - 1, int(t * RATE))] for name, curve in seen.items()}
            | {"jaw": 2 * syllable[min(len(times) - 1, int(t * RATE))] - 1}
        ),
        tone(pitch, speaking * syllable),
    )


def make(run: Path, folder: Path) -> Path:
    """The recording and its page; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    model, processor = load_trained(run)
    every = embedded_corpus()
    examples = spoken([every.splits["test"][k] for k in UTTERANCES], "film review")
    record(folder / "film review.webm", examples)
    corpus = Corpus("embedded", {"test": examples}, every.visual_size, every.acoustic_size, every.report)
    predictions, classes = predict_corpus(model, processor, corpus, torch.device("cpu"))
    page = folder / "film review.html"
    page.unlink(missing_ok=True)
    scores = Scores(model, processor, predictions.logits, classes or [], "runs/embedded/cmsbert-clr")
    write_scores_page(page, corpus, None, scores, {"film review": folder / "film review.webm"})
    return page


def picture(page: Path, target: Path, scheme: str = "light") -> None:
    """A picture of the page, with a word chosen and the recording at it."""
    with browser() as chromium:
        view = chromium.new_page(viewport={"width": 1180, "height": 800}, color_scheme=scheme)
        view.goto(page.as_uri())
        while view.evaluate("document.querySelector('video').readyState") < 2:
            view.wait_for_timeout(50)
        view.locator("article").nth(0).locator(".word").nth(4).click()
        for name, feature in (("visual", "gaze_y"), ("acoustic", "pitch_slope")):
            view.locator(f"#feature-0-{name}").select_option(label=feature)
        view.mouse.move(0, 0)
        view.wait_for_timeout(2000)  # the player takes its sign of waiting away
        view.screenshot(path=target)
    with Image.open(target) as taken:  # few colours: a third of the bytes
        small = taken.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(target, optimize=True)


if __name__ == "__main__":
    _run, _folder = map(Path, sys.argv[1:])
    _page = make(_run, _folder)
    for _scheme in ("light", "dark"):
        picture(_page, _folder / f"page-{_scheme}.png", _scheme)
