"""One video: decoded once for its sound and once for its pictures, which are followed at the same time."""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmsbert_fast.data.extraction import STREAMS
from cmsbert_fast.extract import outcomes
from cmsbert_fast.extract.face import measures
from cmsbert_fast.extract.face.process import Seen, Tracker, TrackerFailed
from cmsbert_fast.extract.media.process import PICTURES, RATE, Unreadable, probe
from cmsbert_fast.extract.media.sound import Sound, decode_sound
from cmsbert_fast.extract.table import write_table
from cmsbert_fast.extract.voice import features as voice
from cmsbert_fast.extract.words import timing
from cmsbert_fast.extract.words.align import Aligner
from cmsbert_fast.extract.words.recognise import Recogniser
from cmsbert_fast.extract.words.transcript import Transcript

FACE, VOICE = STREAMS["visual"], STREAMS["acoustic"]  # folders of the tables
_SPOKEN = 0.3  # seconds of voiced sound from which somebody speaks
_SEVERAL = 0.1  # share of pictures
_FEW = 0.5  # share of a transcript's words that must be found
_SHORT = 1.0  # seconds that may be missing at the end of a file
_SHORTEST_CUT = 0.05  # seconds of overlapping sound that are worth a note
_ROWS = 500  # rows that are kept before they are written

Progress = Callable[[str, float], None]  # a part of the work, and the share of it that is done


class _Stopped(Exception):
    """The rest of the work failed or was interrupted: what is written of the face so far is dropped."""


class _Files(NamedTuple):
    """The video, the tables that are made of it, and its sound while it is worked on."""

    video: Path
    face: Path
    voice: Path
    sound: Path

    @classmethod
    def of(cls, video: Path, name: str, folder: Path) -> "_Files":
        """As they lie in the folder."""
        return cls(video, folder / FACE / f"{name}.csv", folder / VOICE / f"{name}.csv", folder / f".{name}.sound")


@dataclass(frozen=True)
class Tools:
    """What is started once for all videos; None where it is not asked for."""

    tracker: Tracker | None
    aligner: Aligner | None
    recogniser: Recogniser | None


@dataclass
class Account:
    """What came of a video, as it is kept (JSON).

    Attributes:
        conditions: Names of `outcomes.MEANINGS`.
        notes: What is to be said of it, each without a capital and a full stop.
        duration: Seconds on the file's clock.
        media: What `probe` found.
        face, voice, words: Counts.
        segments: Text, start, stop, and words with their times.
    """

    conditions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    duration: float = 0.0
    media: dict[str, Any] = field(default_factory=dict)
    face: dict[str, Any] = field(default_factory=dict)
    voice: dict[str, Any] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)
    segments: list[dict[str, Any]] = field(default_factory=list)

    @property
    def detail(self) -> str:
        """All notes."""
        return "; ".join(self.notes)


def extract_video(
    path: Path, name: str, transcript: Transcript | None, tools: Tools, folder: Path, progress: Progress
) -> Account:
    """Extracts one video into ``folder/face/NAME.csv`` and ``folder/voice/NAME.csv``.

    Args:
        transcript: None: the words are recognised; without a recogniser, nothing is done.
        progress: Is told shares of "face", "voice" and "words".
    """
    account = Account()
    files = _Files.of(path, name, folder)
    for table in (files.face, files.voice):
        table.unlink(missing_ok=True)
    if (transcript is None and tools.recogniser is None) or (transcript is not None and not transcript.cues):
        account.conditions.append(outcomes.NO_TRANSCRIPT)
        return account
    try:
        account.media = probe(path)
        account.duration = account.media["duration"] or 0.0
        if account.media["audio"] is None and account.media["video"] is None:
            raise Unreadable("it has neither sound nor moving pictures")
        _both(files, transcript, tools, account, progress)
    except (Unreadable, TrackerFailed) as error:
        failed = isinstance(error, TrackerFailed)
        account.conditions = [outcomes.TRACKER_FAILED if failed else outcomes.UNREADABLE]
        account.notes, account.segments = [str(error)], []
        for table in (files.face, files.voice):
            table.unlink(missing_ok=True)
    finally:
        files.sound.unlink(missing_ok=True)
    return account


def _both(files: _Files, transcript: Transcript | None, tools: Tools, account: Account, progress: Progress) -> None:
    """The face in a thread of its own, which mostly waits for other processes, and the sound in this one."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            following = None
            if tools.tracker is not None and account.media["video"] is None:
                account.conditions.append(outcomes.NO_PICTURE)
            elif tools.tracker is not None:
                following = pool.submit(_face, files, tools.tracker, account, progress, stop)
            sound = None
            if account.media["audio"] is None:
                account.conditions.append(outcomes.NO_SOUND)
            else:
                total = max(account.duration, 1.0)
                sound = decode_sound(
                    files.video, files.sound, lambda seconds: progress("voice", 0.3 * min(seconds / total, 1.0))
                )
                _voice(sound, files.voice, account, progress)
            if following is not None and (sound is None or tools.aligner is None):
                _join(following, account)  # a text without times is as long as the video, which may not declare it
            _words(transcript, sound, tools, account, progress)
            if following is not None:
                _join(following, account)
        finally:
            stop.set()
    _compare(account, sound, following is not None)


def _join(following: "Future[None]", account: Account) -> None:
    """Waits for the face."""
    following.result()
    account.duration = max(account.duration, account.face["end"])


def _compare(account: Account, sound: Sound | None, followed: bool) -> None:
    """Notes where a file ends before the time that it declares. A stream that is not decoded could go on."""
    declared = account.media["duration"]
    whole = followed or account.media["video"] is None
    end = max(sound.stop if sound is not None else 0.0, account.face.get("end", 0.0))
    if declared and whole and end < declared - max(_SHORT, 0.05 * declared):
        account.conditions.append(outcomes.DAMAGED)
        account.notes.append(f"it ends after {end:.1f} of {declared:.1f} seconds")


def _face(files: _Files, tracker: Tracker, account: Account, progress: Progress, stop: threading.Event) -> None:
    total = max(account.duration, 1.0)
    counts = {"pictures": 0, "faces": 0, "several": 0}
    last = 0.0

    def rows() -> Iterator[np.ndarray]:
        nonlocal last
        kept: list[np.ndarray] = []
        waiting: np.ndarray | None = None  # its stop is the start of the next picture
        for seen in tracker.track(files.video):
            if stop.is_set():
                raise _Stopped
            if not isinstance(seen, Seen):
                counts.update(seen)
                break
            counts["pictures"] += 1
            counts["several"] += seen.faces > 1
            if waiting is not None:
                waiting[1] = min(seen.time, waiting[0] + _longest(account))
                kept.append(waiting)
            waiting, last = _row(seen, tracker.detector), seen.time
            counts["faces"] += waiting is not None
            progress("face", min(seen.time / total, 1.0))
            if len(kept) >= _ROWS:
                yield np.stack(kept)
                kept = []
        if waiting is not None:
            kept.append(waiting)
        if kept:
            yield np.stack(kept)

    times = ("start", "stop", *(("confidence",) if tracker.detector else ()))
    write_table(files.face, times, list(measures.UNITS), rows())
    account.face = {**counts, "end": last}
    if not counts["faces"]:
        account.conditions.append(outcomes.NO_FACE)
    if counts.get("lost") or counts.get("untimed"):
        account.conditions.append(outcomes.DAMAGED)
    if counts.get("untimed"):
        account.notes.append(f"{counts['untimed']} pictures have no time and are left out")
    if counts["several"] >= max(_SEVERAL * counts["pictures"], 1):
        account.conditions.append(outcomes.SEVERAL)


def _longest(account: Account) -> float:
    """Seconds that a picture may stand for: a picture or two of the usual rate."""
    return 2 / min(max(account.media["video"]["rate"] or PICTURES, 5.0), PICTURES)


def _row(seen: Seen, detector: bool) -> np.ndarray | None:
    values = None if seen.points is None else measures.measure(seen.points)
    if values is None:
        return None
    known = [seen.confidence] if detector else []
    return np.array([seen.time, seen.time + 1 / PICTURES, *known, *values])


def _voice(sound: Sound, target: Path, account: Account, progress: Progress) -> None:
    frames = voiced = 0
    total = max(len(sound.samples) / RATE / voice.STEP, 1.0)

    def rows() -> Iterator[np.ndarray]:
        nonlocal frames, voiced
        for block in voice.features(sound.samples, sound.start, RATE):
            frames += len(block.times)
            voiced += int((block.values[:, 0] > 0).sum())
            progress("voice", 0.3 + 0.7 * min(frames / total, 1.0))
            yield np.column_stack([block.times, block.values])

    write_table(target, ("timestamp",), list(voice.UNITS), rows())
    account.duration = max(account.duration, sound.stop)
    account.voice = {
        "frames": frames,
        "voiced": voiced,
        "start": sound.start,
        "lost": sound.lost,
        "silence_filled": round(sound.filled, 3),
        "overlap_cut": round(sound.cut, 3),
    }
    if sound.cut >= _SHORTEST_CUT:
        account.notes.append(f"{sound.cut:.1f} seconds of sound, whose time had sound already, are left out")
    if sound.lost:
        account.conditions.append(outcomes.DAMAGED)
    if account.media["audio"]["rate"] < RATE:
        account.conditions.append(outcomes.NARROW)


def _words(
    transcript: Transcript | None, sound: Sound | None, tools: Tools, account: Account, progress: Progress
) -> None:
    """Finds the segments, and the time of each word."""
    heard = sound is not None and account.voice["voiced"] * voice.STEP >= _SPOKEN
    if sound is not None and not heard:
        account.conditions.append(outcomes.NO_SPEECH)
        return
    total = max(account.duration, 1.0)

    def tell(seconds: float) -> None:
        progress("words", min(seconds / total, 1.0))

    if transcript is None:
        if sound is None or tools.recogniser is None:
            return
        cues = tools.recogniser.recognise(sound.samples, tell)
        if not cues:
            account.conditions.append(outcomes.NO_SPEECH)
            return
        if tools.aligner is not None:
            found = timing.recognised(cues, sound, tools.aligner, tell)
        else:
            found = timing.untimed(timing.cues_on_clock(cues, sound), account.duration)
    elif sound is not None and tools.aligner is not None:
        found = timing.timed(transcript.cues, sound, tools.aligner, tell)
    else:
        found = timing.untimed(transcript.cues, account.duration)
    _judge(found, account)


def _judge(found: timing.Timed, account: Account) -> None:
    """Keeps what was found, unless most of it was not."""
    account.words = {"words": found.words, "not_found": found.missing}
    if math.isfinite(found.cost):
        account.words["cost"] = round(found.cost, 5)
    if found.missing:
        note = f"{found.missing} of {found.words} words were not found in the sound"
        if found.left_out:
            note += f", and {found.left_out} of them, which have no time at all, are in no segment"
        account.notes.append(note)
    if found.missing > (1 - _FEW) * found.words or not found.segments:
        account.conditions.append(outcomes.NO_FIT)
        return
    if found.cost > timing.DOUBTFUL:
        account.conditions.append(outcomes.DOUBTFUL)
    account.segments = [
        {
            "text": s.text,
            "start": round(s.start, 3),
            "stop": round(s.stop, 3),
            "words": [[w.text, round(w.start, 3), round(w.stop, 3)] for w in s.words],
        }
        for s in found.segments
    ]
