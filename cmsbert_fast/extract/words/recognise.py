"""Recognised words, by faster-whisper from a model that lies on disk."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data.example import DataError
from cmsbert_fast.extract.media.process import RATE
from cmsbert_fast.extract.words.transcript import Cue

_PIECE, _SLACK = 240.0, 30.0  # seconds that are recognised at a time; where the quietest place to cut is looked for


def check_model(folder: Path) -> str:
    """What names a model: a digest of its files' names and sizes, and of the configuration.

    Raises:
        DataError: It is no folder of a faster-whisper model.
    """
    if not (folder / "model.bin").is_file():
        raise DataError(
            f"Give --asr the folder of a faster-whisper model (model.bin, config.json, tokenizer.json ...): {folder} "
            "has no model.bin."
        )
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    with open(folder / "model.bin", "rb") as file:
        digest.update(file.read(1 << 20))
    return digest.hexdigest()


class Recogniser:
    """A faster-whisper model, loaded once.

    Args:
        folder: Of the model.
        language: Of the speech, as ``en``; None: the model decides for each video.

    Raises:
        DataError: The model cannot be loaded.
    """

    def __init__(self, folder: Path, language: str | None) -> None:
        from faster_whisper import WhisperModel

        try:
            self._model: Any = WhisperModel(str(folder), device="cpu", compute_type="int8", local_files_only=True)
        except Exception as error:  # ctranslate2 raises many kinds
            raise DataError(
                f"Give --asr a complete faster-whisper model: {folder} cannot be loaded ({error})."
            ) from error
        self._language = language

    def recognise(self, samples: np.ndarray, progress: Callable[[float], None]) -> list[Cue]:
        """What is said, in pieces with times in seconds from the first sample; nothing where nobody speaks."""
        cues: list[Cue] = []
        for begin, end in pieces(samples):
            sound = np.asarray(samples[begin:end], dtype=np.float32) / 32768
            found, _ = self._model.transcribe(
                sound, language=self._language, vad_filter=True, beam_size=5, condition_on_previous_text=False
            )
            for part in found:
                text = " ".join(part.text.split())
                if text:
                    cues.append(Cue(text, (begin / RATE + part.start, begin / RATE + part.end)))
                progress(begin / RATE + part.end)
            progress(end / RATE)
        return cues


def pieces(samples: np.ndarray) -> list[tuple[int, int]]:
    """Where a long sound is cut: at the quietest tenth of a second in the last `_SLACK` of each `_PIECE`."""
    found, begin = [], 0
    step = RATE // 10
    while len(samples) - begin > (_PIECE + _SLACK) * RATE:
        late = begin + int((_PIECE - _SLACK) * RATE)
        part = np.asarray(samples[late : begin + int(_PIECE * RATE)], dtype=np.float32)
        quiet = int((part[: len(part) // step * step].reshape(-1, step) ** 2).mean(axis=1).argmin())
        end = late + quiet * step + step // 2
        found.append((begin, end))
        begin = end
    return [*found, (begin, len(samples))] if len(samples) > begin else found
