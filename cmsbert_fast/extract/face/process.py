"""The tracker's process, seen from outside: pictures of a video go in, meshes come out."""

import contextlib
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.text import sentence
from cmsbert_fast.data.untrusted.child import environment
from cmsbert_fast.extract.face.measures import POINTS
from cmsbert_fast.extract.media.process import HEADER, PICTURES, SIDE, Decoder, read_messages

_SCRIPT = Path(__file__).with_name("tracker.py")
_MESH = struct.Struct("<dHf")
_EXIT = 5.0  # seconds that a process may take to end
_INSTALL = (
    'install it with pip install "cmsbert-fast[extract-face]" (Python 3.12 or older), give --face-python the Python of '
    "an environment that has it, or give --no-face"
)


class TrackerFailed(Exception):
    """The process ended in the middle of a video."""


class Seen(NamedTuple):
    """A picture: its time in seconds, how many faces it shows, and of the one that is followed the confidence of the
    detector (0 where it does not see it) and the points (478, 3) in pixels (None: not seen)."""

    time: float
    faces: int
    confidence: float
    points: np.ndarray | None


class Tracker:
    """The process, started once for all videos; a context manager that ends it.

    Args:
        python: The Python that has MediaPipe.
        model: A ``face_landmarker.task``; None: the models of MediaPipe 0.10's wheel.

    Raises:
        DataError: There is no MediaPipe, or it has no such models.
    """

    def __init__(self, python: Path | None, model: Path | None) -> None:
        self._command = [str(python or sys.executable), "-I", str(_SCRIPT), *([str(model.absolute())] if model else [])]
        self._start()

    def _start(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, env=environment()
            )
        except OSError as error:
            raise DataError(f"Give --face-python a Python: {self._command[0]} cannot be run ({error}).") from error
        assert self._process.stdout is not None
        self._answers = read_messages(self._process.stdout, self._process.kill)
        kind, payload = next(self._answers, (b"", b""))
        if kind != b"V":
            reason = self._reason()
            self._end()
            raise DataError(f"There is no face mesh ({reason}): {_INSTALL}.")
        told = json.loads(payload)
        self.version, self.detector = str(told["version"]), bool(told["detector"])

    def _reason(self) -> str:
        try:
            self._process.wait(_EXIT)
        except subprocess.TimeoutExpired:  # it said something else than a message, and runs on
            self._process.kill()
            self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return sentence(lines[-1] if lines else f"status {self._process.returncode}")

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def track(self, video: Path) -> Iterator[Seen | dict[str, Any]]:
        """What each picture of a video shows, in order; last the decoder's account of it.

        Raises:
            Unreadable: The video cannot be decoded.
            TrackerFailed: The process ended; another has taken its place.
        """
        finished = False
        try:
            with Decoder("video", video.absolute(), SIDE, PICTURES) as decoder:
                waiting = 0
                for kind, payload in decoder.messages():
                    self._send(kind, payload)
                    waiting += 1
                    while waiting > (kind != b"E"):  # one picture is on its way while the next is decoded
                        yield self._answer()
                        waiting -= 1
            finished = True
        except (OSError, StopIteration):
            raise TrackerFailed(self._reason()) from None
        finally:
            if not finished:  # it may wait for the rest of a message
                self._end()
                self._start()

    def _send(self, kind: bytes, payload: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(HEADER.pack(kind, len(payload)))
        self._process.stdin.write(payload)
        self._process.stdin.flush()

    def _answer(self) -> Seen | dict[str, Any]:
        kind, payload = next(self._answers, (b"", b""))
        if kind == b"E":
            return json.loads(payload)
        if kind != b"M":
            raise BrokenPipeError
        time, faces, confidence = _MESH.unpack_from(payload)
        points = np.frombuffer(payload, "<f4", offset=_MESH.size)
        return Seen(time, faces, confidence, points.reshape(POINTS, 3) if len(points) else None)
