"""What is asked for, and whether this machine has what it takes."""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from cmsbert_fast.data.example import DataError
from cmsbert_fast.extract.words.recognise import check_model
from cmsbert_fast.extract.words.transcript import SUFFIXES

_SUFFIXES = (
    ".3g2 .3gp .aac .aif .aiff .amr .asf .avi .caf .flac .flv .m2ts .m4a .m4v .mka .mkv .mov .mp3 .mp4 .mpeg .mpg .mts "
    ".mxf .oga .ogg .ogv .opus .ts .wav .webm .wma .wmv"
)
MEDIA = frozenset(_SUFFIXES.split())


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How videos are extracted.

    Attributes:
        transcript: The transcript of one video (.txt, .srt, .vtt), or a folder with one of each video's name.
        asr: Folder of a faster-whisper model, for videos without a transcript.
        language: Of the speech, for ``asr``; None: the model decides. Only English words are aligned.
        align: Find the time of each word; False: segments are the transcript's, a plain text is one segment.
        face: Measure the face.
        face_model: A ``face_landmarker.task`` of MediaPipe; None: the models of MediaPipe 0.10's wheel.
        face_python: The Python that has MediaPipe; None: this one.
        progress: Show a progress bar where standard error is a terminal.
    """

    transcript: Path | None = None
    asr: Path | None = None
    language: str | None = "en"
    align: bool = True
    face: bool = True
    face_model: Path | None = None
    face_python: Path | None = None
    progress: bool = True

    def check(self) -> None:
        """Finds what is missing, before any work.

        Raises:
            DataError: A file or a package.
        """
        if self.transcript is None and self.asr is None:
            raise DataError(
                "Say where the words come from: --transcript FILE or FOLDER (.txt, .srt or .vtt), or --asr FOLDER of a "
                "faster-whisper model."
            )
        if self.transcript is not None and not self.transcript.exists():
            raise DataError(f"Give --transcript a file or a folder: {self.transcript} does not exist.")
        if self.asr is None and self.language not in (None, "en"):
            more = ", and add --no-align: only English words are aligned" if self.align else ""
            raise DataError(f"Leave out --language: it is for --asr, and the words are those of --transcript{more}.")
        if self.align and self.language not in (None, "en"):
            raise DataError(f"Add --no-align: only English words are aligned, --language is {self.language}.")
        self._need("av", "extract", "decoding")
        if self.align:
            self._need("pocketsphinx", "extract", "the times of words", " or give --no-align")
        if self.asr is not None:
            self._need("faster_whisper", "extract-asr", "recognised words")
            check_model(self.asr)
        if not self.face and (self.face_model or self.face_python):
            raise DataError("Leave out --face-model and --face-python, or --no-face.")
        if self.face_model is not None and not self.face_model.is_file():
            raise DataError(f"Give --face-model a file face_landmarker.task: {self.face_model} does not exist.")

    @staticmethod
    def _need(package: str, extra: str, what: str, otherwise: str = "") -> None:
        if importlib.util.find_spec(package) is None:
            raise DataError(f'For {what}, pip install "cmsbert-fast[{extra}]"{otherwise}: there is no {package}.')


def version_of(package: str) -> str:
    """The installed version of a package; empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def passed_over(given: list[Path]) -> list[str]:
    """What folders hold beside media and transcripts: `videos_in` looks into no folder in them."""
    inside = [p for path in given if path.is_dir() for p in sorted(path.iterdir()) if not p.name.startswith(".")]
    known = MEDIA.union(SUFFIXES)
    return [f"{p.name}/" if p.is_dir() else p.name for p in inside if p.is_dir() or p.suffix.lower() not in known]


def videos_in(given: list[Path]) -> list[Path]:
    """The files named, and those of the folders named that are called like media.

    Raises:
        DataError: One does not exist, or a folder has none.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            known = (p for p in path.iterdir() if p.suffix.lower() in MEDIA and not p.is_dir())
            inside = sorted(p for p in known if not p.name.startswith("."))
            if not inside:
                raise DataError(f"Give a folder with videos: {path} has none ({', '.join(sorted(MEDIA)[:6])} ...).")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"Give videos that exist: {path} does not.")
    return found
