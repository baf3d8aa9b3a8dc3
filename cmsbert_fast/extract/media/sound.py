"""The sound of a file, kept on disk: an hour of it is 115 MB."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmsbert_fast.extract.media.process import RATE, Decoder


@dataclass(frozen=True, slots=True)
class Sound:
    """Decoded sound.

    Attributes:
        samples: int16, mono, `RATE` a second; a memory map.
        start: Seconds from the start of the file's clock to the first sample.
        lost: Packets that could not be decoded.
        filled: Seconds of silence put into gaps.
        cut: Seconds of sound left out, whose time had sound already.
    """

    samples: np.ndarray
    start: float
    lost: int
    filled: float
    cut: float = 0.0

    @property
    def stop(self) -> float:
        """Where it ends on the file's clock, in seconds."""
        return self.start + len(self.samples) / RATE


def decode_sound(path: Path, draft: Path, progress: Callable[[float], None]) -> Sound:
    """Decodes the sound of a file into ``draft``.

    Args:
        progress: Is told the seconds decoded so far.

    Raises:
        Unreadable: It cannot be decoded.
    """
    end, count = {}, 0
    with Decoder("audio", path.absolute(), RATE) as decoder, open(draft, "wb") as file:
        for kind, payload in decoder.messages():
            if kind == b"E":
                end = json.loads(payload)
            else:
                file.write(payload)
                count += len(payload) // 2
                progress(count / RATE)
    samples = np.memmap(draft, dtype="<i2", mode="r") if count else np.zeros(0, dtype=np.int16)
    return Sound(samples, float(end["start"]), int(end["lost"]), float(end["filled"]), float(end["cut"]))
