"""Scores for every example of a source: ``python -m cmsbert_fast.predict CHECKPOINT DATA``.

DATA may be videos: they are extracted first (`cmsbert_fast.extract`), and each segment has a score. With ``--page`` the
scores become a page, too, with words, gates and features over time.
"""

import argparse
import csv
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmsbert_fast.threads import wait_without_spinning

if __name__ == "__main__":
    wait_without_spinning()

import torch
from transformers import PreTrainedConfig

from cmsbert_fast.commandline import examples
from cmsbert_fast.data import read_corpus
from cmsbert_fast.data.example import MODALITIES, Corpus, Example, examples_of, outlines
from cmsbert_fast.data.extraction import recordings
from cmsbert_fast.data.folds import ALL
from cmsbert_fast.data.labels import choice_of
from cmsbert_fast.data.request import DataRequest, add_options, options_in
from cmsbert_fast.data.segment_table import find_table
from cmsbert_fast.data.text import printable
from cmsbert_fast.extract.__main__ import add_options as add_extract_options
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.encoding import FrameLevel
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.predict_page import Scores, check_page, check_size, write_scores_page
from cmsbert_fast.predict_videos import check_trained_on_videos, extract_options, extract_videos, videos_among
from cmsbert_fast.training.batches import Batches
from cmsbert_fast.training.build import load_trained
from cmsbert_fast.training.command import Parser
from cmsbert_fast.training.distributed import Ranks, find_device
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.evaluate import Predictions, predict
from cmsbert_fast.training.exits import exit_status
from cmsbert_fast.training.extraction import check_features, modalities_of
from cmsbert_fast.training.precision import precision_warning
from cmsbert_fast.training.preflight import frames_have_words, unread_pieces
from cmsbert_fast.training.report import prediction_rows, write_csv
from cmsbert_fast.training.settings import PRECISIONS
from cmsbert_fast.training.texts import check_texts

_PROG = "python -m cmsbert_fast.predict"


def main(arguments: Sequence[str], prog: str = _PROG) -> int:
    """Runs the command line; the exit status is that of :func:`~cmsbert_fast.training.exits.exit_status`."""
    return exit_status(lambda: _run(command_parser(prog).parse_args(arguments)))


def _run(given: argparse.Namespace) -> None:
    check_options(given)
    _check_label(given)
    check_page(given.page)
    videos = videos_among(given.data)
    options = extract_options(given, videos)
    # Before the data, which can take long to read.
    model, processor = load_trained(given.checkpoint)
    device = find_device(given.device)
    print_precision_warning(given.precision, device)
    data, note = given.data[0], ""
    files: Mapping[str, Path] = {}
    if videos:
        if given.split not in (None, ALL):
            raise UsageError("Leave out --split: videos have no splits.")
        check_trained_on_videos(processor, model)
        data, files = extract_videos(videos, options, given.output or given.page)
    else:
        note = f"  labels are not read; metrics: python -m cmsbert_fast.evaluate {given.checkpoint} --data {data}\n"
    timed = bool(videos) or given.page is not None
    request = DataRequest.of(data, **options_in(given), labels=False, clocks=timed)
    corpus = read_for(model, request, note)
    check_split(corpus, given.split)
    say_of_words(corpus, model, processor, given.split)
    if given.page is not None:
        check_size(corpus, given.split, model.config)
        files = files or recordings(Path(data))
    predictions, classes = predict_corpus(
        model, processor, corpus, device, given.split, given.batch_size, given.precision
    )
    rows = prediction_rows(predictions, classes or (), model.config.problem_type == "multi_label_classification")
    if given.page is not None:
        scores = Scores(model, processor, predictions.logits, classes or [], str(given.checkpoint))
        write_scores_page(given.page, corpus, given.split, scores, files)
        print(f"the page is {given.page} ({given.page.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
    _write(with_times(rows, examples_of(corpus, given.split)) if videos else rows, given.output)


def check_options(given: argparse.Namespace) -> None:
    """Finds a ``--batch-size`` or an ``--output`` that cannot be.

    Raises:
        UsageError: One of them.
    """
    if given.batch_size < 1:
        raise UsageError(f"--batch-size is {given.batch_size} but must be at least 1.")
    if given.output is not None and given.output.exists():
        raise UsageError(f"{given.output} exists; remove it or choose another --output.")


def print_precision_warning(precision: str, device: torch.device) -> None:
    """Prints a warning where the precision is slow."""
    if warning := precision_warning(precision, device):
        print(warning, file=sys.stderr)


def read_for(model: Classifier, request: DataRequest, note: str = "") -> Corpus:
    """Reads data for a trained model; prints their report, ``note``, and which frames are absent or not read."""
    corpus = read_corpus(request)
    print(corpus.report, file=sys.stderr)
    sys.stderr.write(note)
    idle = [m for m in MODALITIES if getattr(corpus, f"{m}_size") and not getattr(model.config, f"{m}_size", 0)]
    if idle:
        print(f"  the model reads no {' and no '.join(idle)} frames: those of the data are not used", file=sys.stderr)
    for warning in absent_streams(model.config, corpus, request):
        print(printable(f"warning: {warning}"), file=sys.stderr)
    return corpus


def _check_label(given: argparse.Namespace) -> None:
    """Finds a ``--label`` that would not apply: only in a set of ``.csd`` files it names where segments lie.

    Raises:
        UsageError: There is one.
    """
    if given.label is None:
        return
    path = Path(given.data[0])
    streams = path.is_dir() and any(path.glob("*.csd")) and find_table(path) is None
    if not streams or choice_of(given.label).columns:
        raise UsageError(
            "Leave out --label: no labels are read; of a folder of .csd files alone it may name the stream whose "
            f"segments are scored. Metrics of labelled data: python -m cmsbert_fast.evaluate {given.checkpoint} --data "
            f"PATH --label {given.label}."
        )


def check_split(corpus: Corpus, split: str | None) -> None:
    """Finds a ``--split`` that the data lack; None is all of them.

    Raises:
        UsageError: They do.
    """
    if split is not None and split not in corpus.splits:
        raise UsageError(f"{corpus.name} has no split {split!r}; choose one of {', '.join(corpus.splits)}.")


def say_of_words(corpus: Corpus, model: Classifier, processor: CMSBertProcessor, split: str | None) -> None:
    """Prints what a model does not read of the words of a split; ``split`` None = of all.

    How many texts are cut, what the tokenizer does not know, which words have no vector, and whose frames belong to
    other word pieces.

    Raises:
        UsageError: The tokenizer knows nothing of it.
    """
    wanted = [split] if split is not None and split in corpus.splits else None
    found = check_texts(corpus, processor.tokenizer, processor.max_length, wanted)
    if processor.word_vectors is not None:
        words = (word for name in wanted or corpus.splits for o in outlines(corpus.splits[name]) for word in o.words)
        found.append(processor.word_vectors.coverage(words))
    if model.frame_level is not FrameLevel.UTTERANCE:
        unread = unread_pieces(corpus, processor.tokenizer, processor.max_length)
        found += [f"{unread}; none of theirs are read"] if unread else []
    for sentence in found:
        print(printable(f"  {sentence}"), file=sys.stderr)


def command_parser(prog: str = _PROG) -> Parser:
    """The parser of the command line."""
    parser = Parser(
        prog=prog,
        description="Writes a score for every example, or for every segment of videos, as CSV. Labels are not read; "
        "cmsbert_fast.evaluate does.",
        epilog=examples(
            "%(prog)s runs/mine/cmsbert-clr/seed-0 DIR --output scores.csv",
            "%(prog)s runs/mine/cmsbert-clr/seed-0 embedded --split test",
            "%(prog)s runs/mine/cmsbert-clr/seed-0 clip.mp4 --transcript clip.txt --page clip.html",
        ),
    )
    parser.add_argument("checkpoint", help="folder of a trained model, or of the run that trained it")
    parser.add_argument(
        "data", nargs="+", help="a file or folder in a known format, or 'embedded'; or videos, which are extracted"
    )
    parser.add_argument("--split", help="only this split of the data (default: all)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="new CSV file (default: standard output)")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="new HTML file that shows words, scores, gates and features over time"
    )
    add_inference_options(parser)
    add_options(parser)
    add_extract_options(parser)
    return parser


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Options of how a model computes."""
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="examples at a time (default: 32)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: auto)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of scores: fp32, or bf16 by autocast (default: fp32)",
    )


def with_times(rows: list[list[str]], examples: Sequence[Example]) -> list[list[str]]:
    """Rows of :func:`prediction_rows` with start and stop of each segment in its video, in seconds, after the id."""
    spans = [("", "") if e.clock is None or e.clock.span is None else e.clock.span for e in examples]
    times = [("start", "stop"), *([t if isinstance(t, str) else f"{t:.3f}" for t in span] for span in spans)]
    return [[row[0], *time, *row[1:]] for row, time in zip(rows, times, strict=True)]


def _write(rows: Sequence[Sequence[str]], output: Path | None) -> None:
    """Writes rows as CSV, to standard output without a file."""
    if output is None:
        # Ids are a file's, and a terminal would obey them; a file or another program gets them as they are.
        shown = [[printable(cell) for cell in row] for row in rows] if sys.stdout.isatty() else rows
        csv.writer(sys.stdout, lineterminator="\n").writerows(shown)
        sys.stdout.flush()
        return
    try:
        write_csv(output, rows)
    except OSError as error:
        raise UsageError(f"{output} cannot be written ({error.strerror}); choose another --output.") from None
    print(f"{len(rows) - 1} predictions are in {output}", file=sys.stderr)


def predict_corpus(
    model: Classifier,
    processor: CMSBertProcessor,
    corpus: Corpus,
    device: torch.device,
    split: str | None = None,
    batch_size: int = 32,
    precision: str = "fp32",
) -> tuple[Predictions, list[str] | None]:
    """Predicts the examples of a corpus with a trained model.

    Args:
        model, processor: From `load_trained`.
        corpus: Labels are not read and may be missing.
        device: Where to run the model.
        split: One split; None = all, one after another.
        batch_size: Examples at a time.
        precision: Of the forward pass, "fp32" or "bf16".

    Returns:
        The predictions, and the model's classes (None for scores).

    Raises:
        UsageError: There is no such split, the model was trained with frames of other features or extraction or reads
            frames of words, or a score is not finite.
    """
    check_split(corpus, split)
    examples = [dataclasses.replace(example, label=None) for example in examples_of(corpus, split)]
    if not examples:
        raise UsageError(f"{corpus.name} has no examples to predict; give data with at least one.")
    check_features(processor.extraction, processor.feature_names, corpus, modalities_of(model.config))
    _check_width(model.config, corpus)
    if model.frame_level is not FrameLevel.UTTERANCE and not frames_have_words(corpus, processor.repeat_frames):
        raise UsageError(
            f"{corpus.name} does not tell which frames belong to which word, which this model reads; name a stream of "
            "words with --words."
        )
    ranks = Ranks(0, 1, device)
    model.to(ranks.device)  # type: ignore[arg-type]
    predictions = predict(model, Batches(examples, processor, model, ranks.device), ranks, batch_size, precision)
    _check_finite(predictions)
    names: dict = model.config.id2label or {}
    classes = [names[i] for i in sorted(names)] if predictions.logits.shape[1] > 1 else None
    return predictions, classes


def _check_finite(predictions: Predictions) -> None:
    lost = [k for k, finite in enumerate(predictions.logits.isfinite().all(dim=1).tolist()) if not finite]
    if lost:
        ids = ", ".join(printable(predictions.ids[k]) for k in lost[:5]) + (", ..." if len(lost) > 5 else "")
        raise UsageError(
            f"{len(lost)} of {len(predictions.ids)} examples have no finite score ({ids}); correct their frames, which "
            "are far outside the training range, or use another checkpoint."
        )


def absent_streams(config: PreTrainedConfig, corpus: Corpus, request: DataRequest) -> list[str]:
    """A warning for each modality of the model that the data have not, unless the request leaves it out."""
    return [
        f"the model was trained with {modality} frames, but {corpus.name} has none: its scores are those of a model "
        f"that sees none. Name their stream with --{modality} NAME, or give --{modality} none if this is meant."
        for modality in MODALITIES
        if getattr(config, f"{modality}_size", 0)
        and not getattr(corpus, f"{modality}_size")
        and getattr(request, modality) != ("none",)
    ]


def _check_width(config: PreTrainedConfig, corpus: Corpus) -> None:
    for modality in MODALITIES:
        trained, given = getattr(config, f"{modality}_size"), getattr(corpus, f"{modality}_size")
        if trained and given and trained != given:
            raise UsageError(
                f"The {modality} stream of {corpus.name} has {given} features a frame but the model was trained with "
                f"{trained}; give the stream and the --columns it was trained with."
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
