"""What a reader found, dropped and altered."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cmsbert_fast.data.text import printable


@dataclass(slots=True)
class ReadReport:
    """What a reader found. Nothing is dropped or altered without being counted here.

    Attributes:
        source: Where the data came from and in which format.
        counts: Examples by split.
        widths: Features of one frame by modality, for the modalities that exist.
        frames: Total frames by modality.
        tallies: Other counts, by the words that follow the number.
        non_finite: Values that were -inf, inf or NaN and became 0, by modality.
        dropped: Examples that were dropped, by reason.
        columns: Names of the features of each stream whose files have them.
        features: The same by modality, in the order of a frame, where all of its streams have names.
        notes: Anything else the user should know, one sentence each.
    """

    source: str
    counts: dict[str, int] = field(default_factory=dict)
    non_finite: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, int] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)
    features: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count an example that is dropped."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def tally(self, what: str, count: int) -> None:
        """Add to a count; 0 leaves no trace."""
        if count:
            self.tallies[what] = self.tallies.get(what, 0) + count

    def tally_twice(self, spans: Sequence[tuple[float, float]]) -> None:
        """Count the segments of a video that have the times of another one: somebody labelled them twice."""
        count = len(spans) - len({(round(start, 3), round(stop, 3)) for start, stop in spans})
        self.tally("segments have the same times as another of their video: they are there twice", count)

    def note(self, sentence: str) -> None:
        """Add a sentence, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def __str__(self) -> str:
        lines = [f"{self.source}: " + ", ".join(f"{n} {split}" for split, n in self.counts.items())]
        total = max(1, sum(self.counts.values()))
        for modality, width in self.widths.items():
            frames = self.frames.get(modality, 0)
            lines.append(f"  {modality}: {width} features, {frames} frames ({frames / total:.1f} an example)")
        lines += [
            f"  {modality}: {n} values were not finite and became 0" for modality, n in self.non_finite.items() if n
        ]
        lines += [f"  dropped {n}: {reason}" for reason, n in self.dropped.items() if n]
        lines += [f"  {n} {what}" for what, n in self.tallies.items()]
        lines += [f"  {note}" for note in self.notes]
        return printable("\n".join(lines))
