"""The decoding process, seen from outside: its messages, and what its end means."""

import json
import re
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from cmsbert_fast.data.text import sentence
from cmsbert_fast.data.untrusted.child import environment, isolated

RATE = 16_000  # samples a second of all sound
SIDE, PICTURES = 640, 30  # pixels of the longer side of a picture; pictures a second, at most
HEADER = struct.Struct("<cI")
_LARGEST = 64 << 20  # bytes of a message
_CODES = re.compile(r"\[Errno \d+\] |: '\d+'$")  # of FFmpeg's errors, and the file's number
_STALL = 120.0  # seconds without a message


class Unreadable(Exception):
    """A file cannot be decoded. The message completes "FILE: "."""


class Decoder:
    """A running decoder: a context manager that ends the process.

    Args:
        function: `decode.probe`, `decode.audio` or `decode.video`, by name.
        arguments: Its arguments: the file first.
    """

    def __init__(self, function: str, *arguments: object) -> None:
        from cmsbert_fast.extract.media import decode  # needs av, an extra

        command = isolated(getattr(decode, function), *map(str, arguments))
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        )
        self._said = b""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said = line.strip() or self._said

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._listener.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def messages(self) -> Iterator[tuple[bytes, bytes]]:
        """Its messages up to the end.

        Raises:
            Unreadable: The process ended before it said so, or stopped sending.
        """
        assert self.process.stdout is not None
        for kind, payload in read_messages(self.process.stdout, self.process.kill):
            yield kind, payload
            if kind == b"E":
                return
        raise Unreadable(self.reason())

    def reason(self) -> str:
        """Why the process ended early."""
        status = self.process.wait()
        self._listener.join()
        said = _CODES.sub("", self._said.decode("utf-8", "replace").removeprefix("av.error."))
        if status < 0:
            return f"decoding it takes too much time or memory, or crashes the decoder (signal {-status})"
        return sentence(f"it cannot be decoded ({said or f'status {status}'})")


def read_messages(stream: IO[bytes], kill: Callable[[], None]) -> Iterator[tuple[bytes, bytes]]:
    """Messages until the stream ends; calls ``kill`` where none comes for `_STALL` seconds, or one is no message."""
    while True:
        timer = threading.Timer(_STALL, kill)
        timer.daemon = True
        timer.start()
        try:
            head = stream.read(HEADER.size)
            if len(head) < HEADER.size:
                return
            kind, length = HEADER.unpack(head)
            if length > _LARGEST:
                kill()
                return
            payload = stream.read(length)
        finally:
            timer.cancel()
        if len(payload) < length:
            return
        yield kind, payload


def probe(path: Path) -> dict[str, Any]:
    """What a file holds: format, duration, and of each stream its codec, rate and size.

    Raises:
        Unreadable: It cannot be opened.
    """
    with Decoder("probe", path.absolute()) as decoder:
        for _, payload in decoder.messages():
            return json.loads(payload)
    raise Unreadable("it cannot be decoded")
