"""What the decoding process runs: `probe`, `audio` or `video` of one file, written to standard output.

All times are seconds on the clock of the container, which starts with its first stream, as in a player. Only the file
itself is read: formats that name other files are not among `_FORMATS`, and nothing nested can be opened.

A message is one byte that names its kind, its length as a little-endian uint32, and that many bytes:

    A   int16 samples, mono, at the rate asked for
    F   a picture: time (float64), height and width (uint16), RGB (height, width, 3)
    E   the end: JSON
"""

import json
import math
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import av
import numpy as np

from cmsbert_fast.data.untrusted.child import limit_memory
from cmsbert_fast.data.untrusted.files import open_regular

MEMORY = 1 << 30  # bytes that decoding may take: pictures of 8K fit
LONGEST = 24 * 3600.0  # seconds of a file
_SECONDS, _BYTES_A_SECOND = 600, 10_000  # processor time: this, and a second for each so many bytes
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,mpegvideo,asf,ogg,wav,w64,aiff,flac,mp3,aac,amr,caf,au,"
    "mxf,nut,rm,h264,hevc,ac3,eac3"
)
_PICTURE, _STILL = av.stream.Disposition.attached_pic, av.stream.Disposition.still_image
_GAP = 0.05  # seconds: what is missing between two pieces of sound becomes silence from here on
_HEADER = struct.Struct("<cI")
_FRAME = struct.Struct("<dHH")


def probe(path: str) -> None:
    """Writes one E: what the file holds."""
    with _opened(path) as container:
        _send(b"E", json.dumps(_described(container)).encode())


def audio(path: str, rate: str) -> None:
    """Writes the sound as A, from its first sample, without gaps; E tells where it starts and what was lost."""
    with _opened(path) as container:
        stream = container.streams.best("audio")
        sound = _Sound(int(rate))
        for frame, _ in _frames(container, stream, sound.lost):
            sound.add(frame, _time(frame, container))
        sound.finish()
        _send(b"E", json.dumps(sound.summary()).encode())


def video(path: str, side: str, rate: str) -> None:
    """Writes the pictures as F: upright, of square pixels, at most ``side`` long and ``rate`` a second."""
    with _opened(path) as container:
        stream = _moving(container)
        lost, due, count, untimed = [0], -math.inf, 0, 0
        for frame, rotation in _frames(container, stream, lost):
            time = _time(frame, container)
            if time is None:
                untimed += 1
                continue
            count += 1
            if time < due:
                continue
            due = max(due + 1 / float(rate), time + 0.5 / float(rate))
            _send_picture(frame, stream, rotation, int(side), time)
        end = {"seen": count, "lost": lost[0], "untimed": untimed}
        _send(b"E", json.dumps(end).encode())


def _opened(path: str) -> Any:
    """The container, read in a process that can take little and write nothing."""
    _limit(Path(path))
    av.logging.set_level(None)
    file = open_regular(path)
    return av.open(
        file,
        container_options={"format_whitelist": _FORMATS},
        io_open=_closed,
        metadata_errors="replace",
    )


def _closed(url: str, *_: object) -> NoReturn:
    raise PermissionError(f"the file names another one: {url}")


def _limit(path: Path) -> None:
    limit_memory(MEMORY)
    try:
        import resource
    except ImportError:
        return
    seconds = _SECONDS + path.stat().st_size // _BYTES_A_SECOND
    for kind, limit in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds)):
        with suppress(OSError, ValueError):  # a lower limit that the process was given stays
            resource.setrlimit(kind, (limit, limit))


def _moving(container: Any) -> Any:
    """The stream of pictures, which a cover of a song is not."""
    moving = [s for s in container.streams.video if not s.disposition & (_PICTURE | _STILL)]
    best = container.streams.best("video")
    return best if best in moving else next(iter(moving), None)


def _described(container: Any) -> dict[str, Any]:
    sound, pictures = container.streams.best("audio"), _moving(container)
    length = container.duration / av.time_base if container.duration else None
    found: dict[str, Any] = {"format": container.format.name, "duration": length, "audio": None, "video": None}
    if sound is not None:
        context = sound.codec_context
        found["audio"] = {"codec": context.name, "rate": context.sample_rate, "channels": context.channels}
    if pictures is not None:
        context = pictures.codec_context
        rate = pictures.average_rate
        found["video"] = {
            "codec": context.name,
            "width": context.width,
            "height": context.height,
            "rate": float(rate) if rate else None,
        }
    return found


def _frames(container: Any, stream: Any, lost: list[int]) -> Iterator[tuple[Any, int]]:
    """The frames of a stream with their rotation; packets that cannot be decoded are counted in ``lost``."""
    stream.thread_type, stream.codec_context.thread_count = "AUTO", 2
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.error.FFmpegError, PermissionError):  # the rest of the file is damaged
            lost[0] += 1
            return
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            lost[0] += 1
            continue
        for frame in frames:
            yield frame, getattr(frame, "rotation", 0)


def _time(frame: Any, container: Any) -> float | None:
    if frame.time is None:
        return None
    time = frame.time - (container.start_time or 0) / av.time_base
    return time if abs(time) < LONGEST else None


class _Sound:
    """Resamples pieces of sound and puts each where its time says: gaps become silence, and a piece whose whole time
    had sound already is left out."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._resampler: Any = None
        self._form: tuple[Any, ...] = ()
        self._start: float | None = None
        self._read = self._sent = 0.0  # seconds of sound read; samples sent
        self._filled = self._cut = 0.0
        self.lost = [0]

    def add(self, frame: Any, time: float | None) -> None:
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form:  # some streams change on the way
            self._flush()
            self._form = form
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=self._rate)
        if self._start is None:
            self._start = time or 0.0
        seconds = frame.samples / frame.sample_rate
        missing = 0.0 if time is None else time - (self._start + self._read)
        if missing > _GAP:
            self._flush()
            self._fill(missing)
        elif missing < -_GAP and -missing >= seconds:
            self._cut += seconds
            return
        frame.pts = None
        self._read += seconds
        for piece in self._resampler.resample(frame):
            self._send(piece.to_ndarray().reshape(-1))

    def _fill(self, seconds: float) -> None:
        if self._read + seconds > LONGEST:
            raise ValueError("the sound jumps beyond the longest time")
        self._filled += seconds
        self._read += seconds
        left = round(self._read * self._rate) - int(self._sent)
        while left > 0:
            count = min(left, self._rate)
            self._send(np.zeros(count, dtype=np.int16))
            left -= count

    def _flush(self) -> None:
        if self._resampler is not None and self._sent:
            for piece in self._resampler.resample(None):
                self._send(piece.to_ndarray().reshape(-1))
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=self._rate)

    def _send(self, samples: np.ndarray) -> None:
        self._sent += len(samples)
        if self._sent > LONGEST * self._rate:
            raise ValueError("the sound is longer than a day")
        _send(b"A", samples.astype("<i2").tobytes())

    def finish(self) -> None:
        self._flush()

    def summary(self) -> dict[str, Any]:
        return {
            "start": self._start or 0.0,
            "samples": int(self._sent),
            "lost": self.lost[0],
            "filled": self._filled,
            "cut": self._cut,
        }


def _send_picture(frame: Any, stream: Any, rotation: int, side: int, time: float) -> None:
    aspect = frame_aspect(stream)
    width, height = max(frame.width * float(aspect), 1.0), float(frame.height)
    scale = min(1.0, side / max(width, height))
    width, height = max(round(width * scale), 2), max(round(height * scale), 2)
    picture = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    upright = np.ascontiguousarray(np.rot90(picture, round(rotation / 90) % 4))
    _send(b"F", _FRAME.pack(time, *upright.shape[:2]) + upright.tobytes())


def frame_aspect(stream: Any) -> Fraction:
    """Width over height of a pixel; 1 where it is unknown or absurd."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return aspect if Fraction(1, 10) < aspect < 10 else Fraction(1)


def _send(kind: bytes, payload: bytes) -> None:
    sys.stdout.buffer.write(_HEADER.pack(kind, len(payload)) + payload)
    sys.stdout.buffer.flush()
