"""All videos of a command, one after another."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmsbert_fast.data.example import DataError
from cmsbert_fast.extract import outcomes
from cmsbert_fast.extract.face import measures
from cmsbert_fast.extract.face.process import Tracker
from cmsbert_fast.extract.folder import Folder, fingerprint_of, size_and_time, videos_of
from cmsbert_fast.extract.media.process import PICTURES, SIDE
from cmsbert_fast.extract.options import ExtractOptions, passed_over, version_of, videos_in
from cmsbert_fast.extract.outcomes import Result, Summary, outcome_of
from cmsbert_fast.extract.video import Account, Tools, extract_video
from cmsbert_fast.extract.voice import features as voice
from cmsbert_fast.extract.words.align import Aligner
from cmsbert_fast.extract.words.recognise import Recogniser, check_model
from cmsbert_fast.extract.words.transcript import SUFFIXES, Transcript, find_transcript, read_transcript
from cmsbert_fast.progress import Progress

CAVEAT = (
    "These features are not COVAREP's or FACET's, even where sizes agree: a model trained on released features cannot "
    "score them. Extract the videos of training and of use with the same command."
)
_FORMAT = 1
_SHARES = {"face": 0.6, "voice": 0.25, "words": 0.15}  # of the time that a video takes, for the progress bar
_UNSAFE = re.compile(r"[\x00-\x20\x7f/\\\ud800-\udfff]+")


def extract(videos: Sequence[Path], output: Path, options: ExtractOptions) -> Summary:
    """Extracts words, face and voice of videos into a folder that ``--data`` reads.

    A video that is in the folder already and has not changed, nor its transcript, is not done again.

    Args:
        videos: Files, or folders of them. The name without suffix is the id.
        output: The folder; more videos can be added to it with the same options.
        options: See there.

    Returns:
        What came of each video.

    Raises:
        DataError: Something is missing, or asked for that cannot be; found before any work.
    """
    options.check()
    files = _by_id(videos_in([Path(video) for video in videos]))
    transcripts = _transcripts(files, options)
    with contextlib.ExitStack() as stack:
        tracker = None
        if options.face:
            tracker = stack.enter_context(Tracker(options.face_python, options.face_model))
        about = _about(options, tracker)
        folder = Folder(Path(output), about["fingerprint"])
        _check_names({*files, *videos_of(folder.path)})
        stack.enter_context(folder.locked())
        recogniser = Recogniser(options.asr, options.language) if options.asr is not None else None
        tools = Tools(tracker, Aligner() if options.align else None, recogniser)
        bar = stack.enter_context(_Bar(files, options.progress))
        results, again, copy = {}, 0, None
        try:
            for name, file in files.items():
                key = _key(file, transcripts[name], about)
                part = folder.part(name)
                if part.get("key") == key and part.get("outcome") not in outcomes.RETRIED:
                    again += 1
                else:
                    account = extract_video(file, name, transcripts[name], tools, folder.path, bar.begin(name))
                    part = _part(os.path.relpath(file.resolve(), folder.path.resolve()), key, account)
                    folder.keep(name, part)
                bar.end(name)
                results[name] = _result(file, part)
        finally:  # also after Ctrl-C
            copy = folder.finish(about)
    others = tuple(passed_over([Path(video) for video in videos]))
    unused, lost = _unused(files, options.transcript), tuple(folder.unreadable)
    return Summary(results, Path(output), about["fingerprint"], again, copy, others, unused, lost, folder.cut_words)


def others_in(output: Path, videos: Sequence[Path]) -> list[str]:
    """The ids of other videos than these that a folder of `extract` has.

    Raises:
        DataError: A video does not exist, or two have one id.
    """
    return sorted(videos_of(output).difference(_by_id(videos_in(list(videos)))))


def _by_id(files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        name = _UNSAFE.sub("_", file.stem)
        other = found.setdefault(name, file)
        if other is not file:
            raise DataError(f"Rename one of {other} and {file}: the name without suffix is the id of a video.")
    return found


def _check_names(names: set[str]) -> None:
    """Finds a video that is called as a segment of another: the reader would take the frames of one for the other's.

    Raises:
        DataError: With its name.
    """
    for name in sorted(names):
        video, _, number = name.rpartition("_")
        if number.isdecimal() and video in names:
            raise DataError(
                f"Rename the video {name}, or extract it to another --output: a segment of the video {video} has the "
                "same name."
            )


def _transcripts(files: dict[str, Path], options: ExtractOptions) -> dict[str, Transcript | None]:
    """The transcript of each video; all are read before the first is used.

    Raises:
        DataError: One file is given for several videos, or one cannot be read.
    """
    given = options.transcript
    if given is None:
        return dict.fromkeys(files)
    if given.is_file() and len(files) > 1:
        raise DataError(f"Give --transcript a folder with a transcript of each video's name: {given} is a file.")
    found: dict[str, Transcript | None] = {}
    for name, file in files.items():
        path = find_transcript(given, file.stem)
        found[name] = None if path is None else read_transcript(path)
    return found


def _unused(files: dict[str, Path], given: Path | None) -> tuple[str, ...]:
    """The transcripts of a folder that are of no video: of one that was forgotten, or is called otherwise."""
    if given is None or not given.is_dir():
        return ()
    read = {f"{file.stem}{suffix}" for file in files.values() for suffix in SUFFIXES}
    known = (path for path in given.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    return tuple(sorted(path.name for path in known if path.name not in read))


def _about(options: ExtractOptions, tracker: Tracker | None) -> dict[str, Any]:
    """The manifest without its videos."""
    columns = {"visual": list(measures.UNITS) if tracker else [], "acoustic": list(voice.UNITS)}
    extractors: dict[str, Any] = {"voice": voice.VERSION}
    if tracker is not None:
        extractors |= {"face": measures.VERSION, "mediapipe": tracker.version, "pictures": [SIDE, PICTURES]}
        if options.face_model is not None:
            extractors["face_model"] = hashlib.sha256(options.face_model.read_bytes()).hexdigest()
    words: dict[str, Any] = {"aligned": options.align}
    if options.asr is not None:
        words |= {"asr": check_model(options.asr), "language": options.language}
    packages = ("av", "pocketsphinx", "faster-whisper", "numpy", "scipy")
    return {
        "format": _FORMAT,
        "fingerprint": fingerprint_of(columns, extractors),
        "caveat": CAVEAT,
        "extractors": extractors,
        "columns": columns,
        "units": {"visual": measures.UNITS if tracker else {}, "acoustic": voice.UNITS},
        "words": words,
        "versions": {name: version for name in packages if (version := version_of(name))},
    }


def _key(file: Path, transcript: Transcript | None, about: dict[str, Any]) -> str:
    """What a video's part was made from."""
    made = [about["fingerprint"], about["words"], size_and_time(file), transcript and transcript.digest]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _part(file: str, key: str, account: Account) -> dict[str, Any]:
    found = dataclasses.asdict(account)
    del found["notes"]
    return {"file": file, "outcome": outcome_of(account.conditions), "detail": account.detail, **found, "key": key}


def _result(file: Path, part: dict[str, Any]) -> Result:
    return Result(
        file=file,
        outcome=part["outcome"],
        conditions=tuple(dict.fromkeys(part["conditions"])),
        detail=part["detail"],
        segments=len(part["segments"]),
        seconds=part["duration"],
    )


class _Bar:
    """A progress bar with the time left; the size of a file stands for the work it is."""

    def __init__(self, files: dict[str, Path], shown: bool) -> None:
        self._sizes = {name: max(file.stat().st_size, 1) for name, file in files.items()}
        self._before, self._parts = 0.0, dict.fromkeys(_SHARES, 0.0)
        self._total, self._shown = sum(self._sizes.values()), 0.0
        self._bar = Progress("extracting", 100, "percent", show=shown, plain=False)

    def __enter__(self) -> "_Bar":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def begin(self, name: str) -> Any:
        """A function that is told shares of the parts of a video."""
        self._parts = dict.fromkeys(_SHARES, 0.0)
        self._bar.advance(0, name)

        def tell(part: str, share: float) -> None:
            self._parts[part] = max(self._parts[part], share)
            self._move(self._sizes[name] * sum(_SHARES[key] * done for key, done in self._parts.items()))

        return tell

    def end(self, name: str) -> None:
        """A video is done."""
        self._move(self._sizes[name])
        self._before += self._sizes[name]

    def _move(self, done: float) -> None:
        percent = 100 * (self._before + done) / self._total
        self._bar.advance(max(percent - self._shown, 0))
        self._shown = max(percent, self._shown)
