"""``python -m cmsbert_fast.data``: convert a source once, or look at it."""

import argparse
import contextlib
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast.data import convert, open_source, read_corpus
from cmsbert_fast.data.example import Corpus, DataError, Example, outlines, printable
from cmsbert_fast.data.request import DataRequest, add_options, options_in


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cmsbert_fast.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    choices = argparse.ArgumentParser(add_help=False)
    add_options(choices)
    one = commands.add_parser("convert", parents=[choices], help="write the memory-mapped form that training reads")
    one.add_argument("source", type=Path, metavar="SRC")
    one.add_argument("target", type=Path, metavar="DST")
    look = commands.add_parser("inspect", parents=[choices], help="say what a source holds")
    look.add_argument("source", metavar="SRC")
    look.add_argument("--picture", type=Path, metavar="FILE", help="draw one example (.png, .pdf or .svg)")
    look.add_argument("--id", metavar="ID", help="which example to draw (default: the first)")
    return parser


def summary(corpus: Corpus) -> str:
    """What a corpus holds, in a few lines."""
    lines = [str(corpus.report)]
    for split, examples in corpus.splits.items():
        known = list(outlines(examples))
        labels = [outline.label for outline in known if outline.label is not None]
        words = np.array([len(outline.words) for outline in known])
        line = f"  {split}: {words.mean():.1f} words an example (at most {words.max()})"
        if labels and corpus.classes:
            counts = np.bincount(np.array(labels, dtype=int), minlength=len(corpus.classes))
            line += ", " + ", ".join(f"{n} {name}" for name, n in zip(corpus.classes, counts, strict=True))
        elif labels:
            line += f", labels {np.mean(labels):.2f} +- {np.std(labels):.2f} in [{min(labels):g}, {max(labels):g}]"
        else:
            line += ", no labels"
        lines.append(line)
    return printable("\n".join(lines))


_TITLE, _TICK, _TICKS = 400, 20, 60  # characters of a title and of a word below a frame, and how many such words


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def draw(example: Example, file: Path, sample: Sequence[Example]) -> None:
    """A picture of one example: its words, and its frames as maps of features over time.

    Features are standardised with the mean and standard deviation of the frames of ``sample``.

    Raises:
        DataError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    present = [(m, getattr(example, m)) for m in ("visual", "acoustic") if getattr(example, m).size]
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
        if example.aligned:
            shown_words = range(0, len(example.words), -(-len(example.words) // _TICKS))
            ticks = [_short(example.words[k], _TICK) for k in shown_words]
            axes.set_xticks(shown_words, ticks, rotation=60, ha="right", fontsize=7, **plain)
        else:
            axes.set_xlabel("frame")
        figure.colorbar(image, ax=axes, label="standard deviations")
    # Complete or not at all: what is drawn replaces what was there.
    temporary = file.parent / f".{file.stem}.{os.getpid()}{file.suffix or '.png'}"
    try:
        file = file if file.suffix else file.with_suffix(".png")
        figure.savefig(temporary, dpi=120)
        temporary.replace(file)
    except (OSError, ValueError) as error:
        raise DataError(f"Choose another file for the picture: {error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 2 where the user has to change something, 130 after Ctrl-C, 141 where nobody reads."""
    options = _parser().parse_args(arguments)
    request = DataRequest.of(options.source, **options_in(options))
    try:
        if options.command == "convert":
            report = convert.convert(open_source(request), options.target)
            print(report)
            print(printable(f"converted to {options.target}"))
            sys.stdout.flush()
            return 0
        if options.id is not None and options.picture is None:
            raise DataError("--id chooses the example to draw; add --picture FILE.")
        corpus = read_corpus(request)
        print(summary(corpus))
        if options.picture is not None:
            named = [(e.id, part, k) for part in corpus.splits.values() for k, e in enumerate(outlines(part))]
            one = next((part[k] for name, part, k in named if options.id in (None, name)), None)
            if one is None:
                raise DataError(f"Choose another --id: there is no example {options.id!r}.")
            draw(one, options.picture, [part[k] for _, part, k in named[:: max(1, len(named) // 200)]])
            print(printable(f"drew {one.id} in {options.picture}"))
        sys.stdout.flush()
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command continues a conversion from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # nobody reads any more; Python flushes standard output once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
