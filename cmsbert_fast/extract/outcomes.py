"""What came of each video: no video is left out without a name for why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmsbert_fast.data.text import printable

EXTRACTED = "extracted"
UNREADABLE, TRACKER_FAILED, NO_TRANSCRIPT = "unreadable", "face tracker failed", "no transcript"
NO_SPEECH, NO_FIT = "no speech", "transcript does not fit"
NO_SOUND, NO_PICTURE, NO_FACE = "no sound", "no picture", "no face"
DOUBTFUL, DAMAGED, SEVERAL, NARROW = "doubtful transcript", "damaged", "several faces", "narrow sound"
# What each means. A video may have several; the first of them in this order is its outcome.
MEANINGS = {
    UNREADABLE: "it cannot be decoded; it has no segments",
    TRACKER_FAILED: "the process of the face mesh ended; the same command tries again",
    NO_TRANSCRIPT: "there is no transcript of its name, or an empty one; it has no segments",
    NO_SPEECH: "nobody speaks; it has no segments",
    NO_FIT: "most words of its transcript are not in the sound; it has no segments",
    NO_SOUND: "it has no sound: no voice, and words have no times of their own",
    NO_PICTURE: "it has no moving picture: no measures of a face",
    NO_FACE: "no picture shows a face: no measures of one",
    DOUBTFUL: "the sound fits its transcript badly: another text, or much noise; listen to it",
    DAMAGED: "parts cannot be decoded; the rest is used",
    SEVERAL: "a tenth of its pictures or more show several faces; one is followed",
    NARROW: "its sound has fewer than 16,000 samples a second: cepstrum and slope do not compare with other videos'",
    EXTRACTED: "words, voice and face, as far as they were asked for",
}
_NAMED = 5  # of what is left out
RETRIED = (UNREADABLE, TRACKER_FAILED, NO_TRANSCRIPT)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)


def outcome_of(conditions: Sequence[str]) -> str:
    """The gravest of a video's conditions; `EXTRACTED` without any."""
    return next((name for name in MEANINGS if name in conditions), EXTRACTED)


@dataclass(frozen=True)
class Result:
    """One video.

    Attributes:
        file: As given.
        outcome: A name of `MEANINGS`.
        conditions: All that hold, the outcome among them; empty where it was extracted in full.
        detail: Notes joined by semicolons; may be empty.
        segments: How many.
        seconds: Length of the video; 0 where unknown.
    """

    file: Path
    outcome: str
    conditions: tuple[str, ...]
    detail: str
    segments: int
    seconds: float


@dataclass(frozen=True)
class Summary:
    """What came of all videos of a command.

    Attributes:
        results: By the video's id, in the order of the command.
        output: The folder.
        fingerprint: Of the extractors; features of two folders are comparable where it is the same.
        again: Videos that were extracted before and are as they were.
        copy: A copy of the former table, if cells that a user added belong to no segment any more.
        passed_over: Files and folders in the folders given that are not called like media.
        unused: Transcripts in the folder given that are of none of these videos.
        unreadable: Videos of earlier commands whose part cannot be read, and which have lost their segments.
        cut_words: How many are cut in the table of words.
    """

    results: Mapping[str, Result]
    output: Path
    fingerprint: str
    again: int = 0
    copy: Path | None = None
    passed_over: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    cut_words: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many videos have each outcome, in the order of `MEANINGS`."""
        found = Counter(result.outcome for result in self.results.values())
        return {name: found[name] for name in (EXTRACTED, *MEANINGS) if found[name]}

    @property
    def segments(self) -> int:
        """Segments of these videos."""
        return sum(result.segments for result in self.results.values())

    @property
    def text(self) -> str:
        """The summary for a user: a line for all, one for each outcome, one for each video with more to say."""
        seconds = sum(result.seconds for result in self.results.values())
        lines = [f"{len(self.results)} videos, {seconds / 60:.1f} minutes, {self.segments} segments in {self.output}"]
        if self.again:
            lines.append(f"  {self.again} were extracted before")
        if self.passed_over:
            lines.append(
                f"  {len(self.passed_over)} files and folders are not called like media, left out: "
                f"{_some(self.passed_over)}"
            )
        if self.unused:
            lines.append(f"  {len(self.unused)} transcripts have no video of their name here: {_some(self.unused)}")
        if self.unreadable:
            lines.append(
                "  what earlier commands kept cannot be read, and its segments are left out; extract again: "
                f"{_some(self.unreadable)}"
            )
        if self.cut_words:
            lines.append(f"  words too long for the table of words, and cut there: {self.cut_words}")
        if self.copy is not None:
            lines.append(
                f"  some cells that you added had texts that are no longer there: {self.copy} keeps the former table"
            )
        lines += [f"  {count} {name}: {MEANINGS[name]}" for name, count in self.counts.items()]
        for name, result in self.results.items():
            if result.conditions or result.detail:
                detail = f" ({result.detail})" if result.detail else ""
                lines.append(f"    {name}: {', '.join(result.conditions or [EXTRACTED])}{detail}")
        return printable("\n".join(lines))
