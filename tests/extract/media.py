"""Makes media whose truth is known: speech with phone times, vowels of known pitch and phonation, a turned face."""

import itertools
import shutil
import struct
import subprocess
import tempfile
import wave
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from scipy.signal import lfilter

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
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:  # standard output has the phones
        command = ["flite", "-voice", voice, "-t", text, "-psdur", "-o", file.name]
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

    return (resize(data.astronaut()[20:240, 115:335], (size, size), anti_aliasing=True) * 255).astype(np.uint8)


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


def vowel(f0: np.ndarray, open_quotient: float = 0.6, rate: int = RATE) -> np.ndarray:
    """A vowel (a) of known pitch: glottal pulses of Rosenberg's form through four formants; int16.

    Args:
        f0: Hertz at each sample.
        open_quotient: Part of a period in which the glottis is open: 0.35 pressed, 0.6 modal, 0.9 breathy.
    """
    phase = np.cumsum(f0 / rate) % 1.0
    rise = open_quotient * 0.66
    opening = 0.5 * (1 - np.cos(np.pi * phase / rise))
    closing = np.cos(np.pi / 2 * (phase - rise) / (open_quotient - rise))
    flow = np.where(phase < rise, opening, np.where(phase < open_quotient, closing, 0.0))
    sound = np.diff(flow, prepend=flow[0])
    for hertz, width in ((730, 90), (1090, 110), (2440, 160), (3500, 250)):
        radius, angle = np.exp(-np.pi * width / rate), 2 * np.pi * hertz / rate
        sound = lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], sound)
    return np.round(sound / np.abs(sound).max() * 16_000).astype(np.int16)


def turn_phone(path: Path, degrees: int) -> None:
    """Tells players of an .mp4 to turn its picture clockwise, as phones do: the matrix of its first track."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    turn = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    a, b, c, d = (value << 16 for value in turn)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


# How many phones flite gives to each word of `SENTENCES`; pauses are not counted.
_PHONES = ((2, 4, 3, 4, 3, 3, 1, 3, 3, 2, 4), (6, 4, 4, 2, 5, 2, 2, 5), (7, 1, 3, 4, 3, 2, 4, 4, 2, 2))


def true_starts(sentence: int, voice: str = "slt") -> np.ndarray:
    """When each word of one of `SENTENCES` starts, in seconds."""
    starts, begin = [], 0.0
    for name, end in speak(SENTENCES[sentence], voice).phones:
        if name != "pau":
            starts.append(begin)
        begin = end
    counts = _PHONES[sentence]
    assert sum(counts) == len(starts)
    return np.array(starts)[np.cumsum([0, *counts[:-1]])]
