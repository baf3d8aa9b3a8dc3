"""Looking at a corpus: a summary in a few lines, and a picture of one example."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmsbert_fast import atomic
from cmsbert_fast.data.example import MODALITIES, Alignment, Corpus, DataError, Example, Outline, outlines
from cmsbert_fast.data.streams.columns import short_list
from cmsbert_fast.data.task import labels_of, warnings_of
from cmsbert_fast.data.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE, _TICK, _TICKS = 400, 20, 60  # characters of a title and of a word below a frame, and how many such words


def summary(corpus: Corpus, task: str | None = None, max_length: int = 50) -> str:
    """What a corpus holds, in a few lines.

    Args:
        corpus: From `cmsbert_fast.data.read_corpus`.
        task: The task it was read for.
        max_length: Word pieces to which training cuts an utterance, [CLS] and [SEP] included.
    """
    lines = [str(corpus.report)]
    for split, examples in corpus.splits.items():
        known = list(outlines(examples))
        labels = [outline.label for outline in known if outline.label is not None]
        words = np.array([len(outline.words) for outline in known])
        line = f"  {split}: {words.mean():.1f} words an example (at most {words.max()})"
        if longer := int((words > max_length - 2).sum()):
            line += f", {longer} or more longer than {max_length} word pieces (--max-length)"
        if labels and corpus.classes and corpus.several:
            counts = np.array(labels).sum(axis=0)
            line += ", " + ", ".join(f"{n} {name}" for name, n in zip(corpus.classes, counts, strict=True))
        elif labels and corpus.classes:
            counts = np.bincount(np.array(labels, dtype=int), minlength=len(corpus.classes))
            line += ", " + ", ".join(f"{n} {name}" for name, n in zip(corpus.classes, counts, strict=True))
        elif labels:
            scores = np.array(labels, dtype=float)
            line += f", labels {scores.mean():.2f} +- {scores.std():.2f} in [{scores.min():g}, {scores.max():g}]"
        else:
            line += ", no labels"
        lines += [line, f"  {split}: {_alignment(known)}"]
    if any(outline.label is not None for examples in corpus.splits.values() for outline in outlines(examples)):
        lines.append(f"  labels: {labels_of(corpus).kind.value}")
    for name, columns in corpus.report.columns.items():
        listed = textwrap.fill(f"{name} has {short_list(columns)}", 116, break_on_hyphens=False)
        lines.append(textwrap.indent(listed, "  "))
    lines += [f"  warning: {sentence}" for sentence in warnings_of(corpus, task)]
    return printable("\n".join(lines))


def _alignment(known: Sequence[Outline]) -> str:
    """What the frames of a split belong to, in words, and how many examples each is true of."""
    found: dict[str, int] = {}
    for outline in known:
        if not outline.visual and not outline.acoustic:
            what = "have no frames"
        elif outline.alignment is Alignment.WORDS:
            what = "have one frame a word"
        elif outline.alignment is Alignment.PIECES:
            what = "have one frame a word piece"
        elif outline.timed:
            what = "tell the word of each frame"
        elif max(outline.visual, outline.acoustic) == 1:
            what = "have one frame, aligned to no word"
        else:
            what = "have frames aligned to no word"
        found[what] = found.get(what, 0) + 1
    if len(found) == 1:
        return f"all examples {next(iter(found))}"
    return ", ".join(f"{count} {what}" for what, count in found.items())


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def draw(example: Example, file: Path, sample: Sequence[Example]) -> None:
    """A picture of one example: its words, and its frames as maps of features over time.

    Features are standardised with the mean and standard deviation of the frames of ``sample``.

    Raises:
        DataError: The file cannot be written.
    """
    figure = _figure(example, sample)
    try:
        file = file if file.suffix else file.with_suffix(".png")
        atomic.replace_file(file, lambda draft: figure.savefig(draft, dpi=120, format=file.suffix[1:]))
    except (OSError, ValueError) as error:
        raise DataError(f"Choose another file for the picture: {error}.") from error


def _figure(example: Example, sample: Sequence[Example]) -> "Figure":
    from matplotlib.figure import Figure

    present = [(m, getattr(example, m)) for m in MODALITIES if getattr(example, m).size]
    figure = Figure(figsize=(10, 1.5 + 2.5 * len(present)), layout="constrained")
    # Ids and words are text, not formulas, whatever dollar signs are in them; matplotlib's own wrapping forgets that.
    plain: dict[str, Any] = {"parse_math": False}
    text = textwrap.fill(_short(" ".join(example.words[:_TITLE]), _TITLE), 120)
    figure.suptitle(f"{_short(example.id, 80)}   label {example.label}\n{text}", fontsize=9, **plain)
    for row, (modality, frames) in enumerate(present):
        axes = figure.add_subplot(len(present), 1, row + 1)
        others = np.concatenate([getattr(e, modality) for e in sample] or [frames])
        spread = others.std(axis=0, dtype=np.float64)
        shown = (frames - others.mean(axis=0, dtype=np.float64)) / np.where(spread > 0, spread, 1)
        image = axes.imshow(shown.T, aspect="auto", interpolation="nearest", cmap="coolwarm", vmin=-3, vmax=3)
        axes.set_ylabel(f"{modality} feature")
        if example.alignment is Alignment.WORDS:
            shown_words = range(0, len(example.words), -(-len(example.words) // _TICKS))
            ticks = [_short(example.words[k], _TICK) for k in shown_words]
            axes.set_xticks(shown_words, ticks, rotation=60, ha="right", fontsize=7, **plain)
        else:
            axes.set_xlabel("frame")
        figure.colorbar(image, ax=axes, label="standard deviations")
    return figure
