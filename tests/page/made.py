"""A made recording: a drawn face and a tone that follow the frames of utterances, as WebM (VP8, Opus)."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

RATE, PICTURES = 48_000, 12  # samples and pictures a second
_SIZE = (360, 270)
_DRAWN = 2  # drawn larger, then made smaller: smooth edges


def write_video(path: Path, seconds: float, picture: Callable[[float], Image.Image], sound: np.ndarray) -> None:
    """Writes a video.

    Args:
        path: The file, .webm.
        seconds: Its length.
        picture: The picture at a time.
        sound: Samples in [-1, 1] at ``RATE``, mono.
    """
    import av

    with av.open(str(path), "w", format="webm") as container:
        video = container.add_stream("libvpx", rate=PICTURES, options={"deadline": "realtime", "cpu-used": "8"})
        video.width, video.height, video.pix_fmt = *_SIZE, "yuv420p"
        audio = container.add_stream("libopus", rate=RATE, layout="mono")
        each = RATE // PICTURES
        samples = np.zeros((math.ceil(seconds * PICTURES), each), np.float32)
        samples.flat[: len(sound)] = sound[: samples.size]
        for k, block in enumerate(samples):
            shown = av.VideoFrame.from_image(picture(k / PICTURES))
            shown.pts, shown.time_base = k, Fraction(1, PICTURES)
            container.mux(video.encode(shown))
            heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(block[None]), "flt", "mono")
            heard.sample_rate, heard.pts, heard.time_base = RATE, k * each, Fraction(1, RATE)
            container.mux(audio.encode(heard))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def tone(pitch: np.ndarray, loudness: np.ndarray) -> np.ndarray:
    """A voice-like tone: ten harmonics of a pitch in Hz, with a loudness in [0, 1], both at ``RATE``."""
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    sound = sum(np.sin(k * phase) / k**1.5 for k in range(1, 11))
    return 0.2 * loudness * sound


def face(features: dict[str, float]) -> Image.Image:
    """A drawn face; features of the embedded corpus in standard deviations."""
    scale = _DRAWN
    width, height = (scale * side for side in _SIZE)
    image = Image.new("RGB", (width, height), (203, 213, 219))
    draw = ImageDraw.Draw(image)
    turn = 5 * scale * float(np.clip(features.get("head_yaw", 0), -3, 3))
    nod = 3 * scale * float(np.clip(features.get("head_pitch", 0), -3, 3))
    x, y = width / 2 + turn, height / 2 + 4 * scale - nod

    def ellipse(cx: float, cy: float, rx: float, ry: float, fill: tuple[int, int, int]) -> None:
        draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=fill)

    ellipse(width / 2, height + 40 * scale, 110 * scale, 78 * scale, (72, 92, 110))  # shoulders
    draw.rounded_rectangle(
        (x - 22 * scale, y + 60 * scale, x + 22 * scale, y + 120 * scale), 14 * scale, (214, 168, 140)
    )
    ellipse(x, y - 18 * scale, 80 * scale, 96 * scale, (62, 47, 40))  # hair
    ellipse(x, y, 70 * scale, 88 * scale, (232, 190, 162))
    up = float(np.clip(features.get("gaze_y", 0), -4, 4))
    side = float(np.clip(features.get("gaze_x", 0), -4, 4))
    lid = float(np.clip(1 + 0.12 * features.get("eyelid", 0), 0.45, 1.5))
    brow = 2.2 * scale * float(np.clip(features.get("brow", 0), -3, 3))
    for eye in (-1, 1):
        cx, cy = x + eye * 28 * scale + 0.3 * turn, y - 14 * scale
        ellipse(cx, cy, 15 * scale, 10 * scale * lid, (252, 252, 250))
        ellipse(cx + 1.8 * scale * side, cy - 1.6 * scale * up, 5.5 * scale, 5.5 * scale, (52, 66, 74))
        line = [
            (cx - 16 * scale, cy - 20 * scale - brow),
            (cx, cy - 24 * scale - brow),
            (cx + 16 * scale, cy - 20 * scale - brow),
        ]
        draw.line(line, fill=(62, 47, 40), width=4 * scale, joint="curve")
    nose = [(x + turn, y - 4 * scale), (x + turn + 4 * scale, y + 18 * scale), (x + turn - 3 * scale, y + 19 * scale)]
    draw.line(nose, fill=(196, 146, 120), width=3 * scale, joint="curve")
    smile = 4 * scale * float(np.clip(features.get("lip_corner", 0), -3, 3))
    open_ = scale * float(np.clip(5 + 4 * features.get("jaw", 0), 2, 18))
    mouth = y + 44 * scale
    ellipse(x + 0.4 * turn, mouth, 20 * scale, open_, (128, 44, 48))
    corners = [(x + 0.4 * turn + part * 26 * scale, mouth - abs(part) ** 2 * smile) for part in np.linspace(-1, 1, 13)]
    draw.line(corners, fill=(150, 66, 64), width=3 * scale, joint="curve")
    return image.resize(_SIZE, Image.Resampling.LANCZOS)
