"""Makes media whose truth is known: speech with phone times, vowels of known pitch and phonation, a turned face."""

import itertools
import shutil
import subprocess
import wave
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest

RATE = 16_000
SENTENCES = (
    "The movie was really good, and I would watch it again.",
    "Nobody laughed about the ending of the story.",
    "Honestly I was bored for the first part of it.",
)


class Speech(NamedTuple):
    """Spoken text: int16 samples at `RATE`, and the phones with the seconds at which each ends."""

    samples: np.ndarray
    phones: list[tuple[str, float]]


@lru_cache
def speak(text: str, voice: str = "slt") -> Speech:
    """Speech by flite; a test without it fails with the reason."""
    if shutil.which("flite") is None:
        pytest.fail("install flite (apt-get install flite): it speaks the sentences of these tests")
    command = ["flite", "-voice", voice, "-t", text, "-psdur", "-o", "/dev/stdout"]
    # The sound and what -psdur prints would mix on one stream.
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command[-1] = file.name
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        with wave.open(file.name) as sound:
            assert sound.getframerate() == RATE
            samples = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2")
    phones = [(name, float(end)) for name, end in (part.rsplit(":", 1) for part in said.split())]
    return Speech(samples, phones)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), dtype=np.int16)


def face_picture(size: int = 256) -> np.ndarray:
    """The astronaut's face (public domain, NASA), upright."""
    from skimage import data
    from skimage.transform import resize

    return (resize(data.astronaut()[0:320, 64:384], (size, size), anti_aliasing=True) * 255).astype(np.uint8)


def turned(picture: np.ndarray, degrees: float) -> np.ndarray:
    """A picture turned around its middle, counter-clockwise."""
    from skimage.transform import rotate

    return (rotate(picture, degrees, mode="edge") * 255).astype(np.uint8)


def write_media(
    path: Path,
    pictures: Iterable[np.ndarray] | None = None,
    sound: np.ndarray | None = None,
    *,
    times: Iterable[float] | None = None,
    sound_start: float = 0.0,
    rate: int = RATE,
    layout: str = "mono",
    codecs: tuple[str, str] = ("mpeg4", "aac"),
) -> Path:
    """Writes a file.

    Args:
        pictures: RGB uint8 (height, width, 3), at ``times`` in seconds (default: 25 a second).
        sound: int16 at ``rate``: (samples,).
        sound_start: Seconds at which the sound starts.
        layout: mono or stereo.
    """
    with av.open(str(path), "w") as container:
        if pictures is not None:
            pictures = iter(pictures)
            first = next(pictures)
            stream = container.add_stream(codecs[0], rate=25)
            stream.height, stream.width = first.shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            stream.bit_rate = 2_000_000
        if sound is not None:
            voice = container.add_stream(codecs[1], rate=rate, layout=layout)
        if pictures is not None:
            marks = times if times is not None else (k / 25 for k in itertools.count())
            for picture, time in zip(itertools.chain([first], pictures), marks, strict=False):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        if sound is not None:
            for begin in range(0, len(sound), 1024):
                part = np.ascontiguousarray(sound[begin : begin + 1024])
                planes = part[None] if layout == "mono" else np.repeat(part, 2)[None]
                frame = av.AudioFrame.from_ndarray(planes, format="s16", layout=layout)
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = begin + round(sound_start * rate)
                container.mux(voice.encode(frame))
            container.mux(voice.encode())
    return path


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts)
