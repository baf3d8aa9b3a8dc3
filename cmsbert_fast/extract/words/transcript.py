"""Transcripts: plain text, SubRip (.srt) and WebVTT (.vtt)."""

import hashlib
import html
import re
from dataclasses import dataclass
from pathlib import Path

from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.text import printable, whole
from cmsbert_fast.data.untrusted.files import read_bytes

SUFFIXES = (".txt", ".srt", ".vtt")
_LARGEST = 16 << 20  # bytes: subtitles of a day
_TIME = r"(?:(\d{1,3}):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_ARROW = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}")
_TAGS = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Cue:
    """A piece of text; ``span`` is its start and stop in seconds, None where the transcript has no times."""

    text: str
    span: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is said in a video.

    Attributes:
        cues: In order of time; a plain text is one cue.
        digest: Of the file, so that a changed transcript is noticed.
    """

    cues: tuple[Cue, ...]
    digest: str


def find_transcript(given: Path, video: str) -> Path | None:
    """The transcript of a video: the file given, or the one of its name in the folder given; None: it has none.

    Raises:
        DataError: The folder has several, or the file is of another kind.
    """
    if given.is_file():
        if given.suffix.lower() not in SUFFIXES:
            raise DataError(f"Give --transcript a file {', '.join(SUFFIXES)}: {given.name} is none.")
        return given
    found = [path for suffix in SUFFIXES if (path := given / f"{video}{suffix}").is_file()]
    if len(found) > 1:
        raise DataError(f"Keep one of {', '.join(p.name for p in found)} in {given}: all are transcripts of {video}.")
    return found[0] if found else None


def read_transcript(path: Path) -> Transcript:
    """Reads a transcript.

    Raises:
        DataError: It is no UTF-8 text, or a time in it cannot be read.
    """
    try:
        content = read_bytes(path, _LARGEST)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Save the transcript {path.name} as UTF-8 text: it cannot be read ({error}).") from error
    timed = path.suffix.lower() in (".srt", ".vtt")
    if not timed and any(map(_ARROW.match, text.splitlines())):
        raise DataError(f"Call {path.name} .srt or .vtt: it has times of subtitles, which would be read as words.")
    cues = _cues(text, path.name) if timed else [Cue(_clean(text), None)]
    return Transcript(tuple(cue for cue in cues if cue.text), hashlib.sha256(content).hexdigest())


def _cues(text: str, name: str) -> list[Cue]:
    """The cues of subtitles: a line with an arrow between two times, then text up to an empty line."""
    cues: list[Cue] = []
    lines = iter(enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1))
    for number, line in lines:
        match = _ARROW.match(line)
        if match is None:
            if "-->" in line:
                raise DataError(f"Write times as 00:01:02.500 --> 00:01:04.000: line {number} of {name} has {line!r}.")
            continue
        start, stop = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
        if stop < start:
            raise DataError(f"Let no subtitle stop before it starts: line {number} of {name} has {line!r}.")
        spoken = []
        for at, following in lines:
            if not following.strip():
                break
            if _ARROW.match(following):
                raise DataError(f"Put an empty line between subtitles: there is none before line {at} of {name}.")
            spoken.append(following)
        cues.append(Cue(_clean(html.unescape(_TAGS.sub("", " ".join(spoken)))), (start, stop)))
    return sorted(cues, key=lambda cue: cue.span or (0.0, 0.0))


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + float(f"0.{fraction}")


def _clean(text: str) -> str:
    """Text on one line, without tabs and control characters: it becomes a cell of a table."""
    return " ".join(printable(whole(text)).split())
