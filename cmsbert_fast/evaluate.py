"""Metrics of a trained model on labelled data: ``python -m cmsbert_fast.evaluate CHECKPOINT --data DATA``."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cmsbert_fast.threads import wait_without_spinning

if __name__ == "__main__":
    wait_without_spinning()

import torch

from cmsbert_fast import atomic
from cmsbert_fast.commandline import examples
from cmsbert_fast.data.example import Corpus, examples_of
from cmsbert_fast.data.request import DataRequest, add_options, options_in
from cmsbert_fast.data.task import LabelKind, Labels, labels_of, outliers
from cmsbert_fast.data.text import printable
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.predict import (
    add_inference_options,
    check_options,
    check_split,
    predict_corpus,
    print_precision_warning,
    read_for,
    say_of_words,
)
from cmsbert_fast.training import figures, map_figures, strict_json
from cmsbert_fast.training.build import load_trained
from cmsbert_fast.training.command import Parser
from cmsbert_fast.training.distributed import find_device
from cmsbert_fast.training.errors import UsageError, os_reason
from cmsbert_fast.training.evaluate import measure
from cmsbert_fast.training.exits import exit_status
from cmsbert_fast.training.report import write_predictions

_TASKS = {"regression": "regression", "single_label_classification": "classification"}
_PROG = "python -m cmsbert_fast.evaluate"


def main(arguments: Sequence[str], prog: str = _PROG) -> int:
    """Runs the command line; the exit status is that of :func:`~cmsbert_fast.training.exits.exit_status`."""
    return exit_status(lambda: _run(command_parser(prog).parse_args(arguments)))


def command_parser(prog: str = _PROG) -> Parser:
    """The parser of the command line."""
    parser = Parser(
        prog=prog,
        description="Prints the metrics of a trained model on labelled data.",
        epilog=examples(
            "%(prog)s runs/mine/cmsbert-clr/seed-0 --data DIR",
            "%(prog)s runs/mine/cmsbert-clr/seed-0 --data embedded --split valid --output measured",
            "%(prog)s runs/mine/cmsbert-clr/seed-0 --data DIR --output maps --utterances ID ID --layers 1 12",
        ),
    )
    parser.add_argument("checkpoint", help="folder of a trained model, or of the run that trained it")
    parser.add_argument("--data", required=True, metavar="PATH", help="file or folder in a known format, or 'embedded'")
    parser.add_argument("--split", help="a split of the data, or 'all' (default: test; all where there is none)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="new folder for metrics.json, predictions.csv and figures: confusion of classes or scatter of scores, and "
        "maps (default: none)",
    )
    parser.add_argument(
        "--utterances",
        nargs="+",
        action="extend",
        metavar="ID",
        help="draw the CMS maps of these utterances too: shift_maps-ID.png and .svg in the folder of --output; an id "
        "that begins with a hyphen: --utterances=ID",
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        type=int,
        metavar="N",
        help="layers of these maps, counted from 1 (default: all; of more than four, four whole and the mean of each)",
    )
    add_inference_options(parser)
    add_options(parser)
    return parser


def _run(given: argparse.Namespace) -> None:
    check_options(given)
    _check_maps(given)
    model, processor = load_trained(given.checkpoint)
    layers = map_figures.check_layers(model.config, given.checkpoint, given.layers) if given.utterances else None
    device = find_device(given.device)
    print_precision_warning(given.precision, device)
    task = _TASKS.get(model.config.problem_type or "")
    request = DataRequest.of(given.data, **options_in(given), task=task)
    corpus = read_for(model, request)
    split = given.split or ("test" if "test" in corpus.splits else "all")
    one = None if split == "all" and split not in corpus.splits else split
    check_split(corpus, one)
    measured = corpus if one is None else dataclasses.replace(corpus, splits={one: corpus.splits[one]})
    for sentence in [] if corpus.classes else outliers(measured):
        print(printable(f"warning: {sentence}"), file=sys.stderr)
    chosen = map_figures.choose(corpus, one, model.config, given.utterances, layers) if given.utterances else None
    say_of_words(corpus, model, processor, one)
    predictions, classes = predict_corpus(model, processor, corpus, device, one, given.batch_size, given.precision)
    predictions = dataclasses.replace(predictions, labels=true_labels(model, corpus, one, classes))
    labels = _labels(corpus, classes, model)
    metrics = measure(predictions, labels)
    where = "all splits" if one is None else f"the {one} split"
    title = f"{corpus.name}, {where}, {len(predictions.ids)} examples"
    print(f"{title}: {labels.kind.value}")
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"  {name:{width}}  {value:.{3 if name in ('mae', 'corr') else 1}f}")

    def write(draft: Path) -> None:
        draft.mkdir(exist_ok=True)
        strict_json.write_json(draft / "metrics.json", {"data": title, "metrics": metrics})
        write_predictions(draft / "predictions.csv", predictions, labels)
        figures.draw_predictions(draft, predictions, labels, title)
        if chosen is not None:
            name = f"{given.checkpoint}, {corpus.name}, {where}"
            map_figures.write_chosen(draft, model, processor, corpus, chosen, predictions, labels, name, request)

    if given.output is not None:
        _write(given.output, write)


def _check_maps(given: argparse.Namespace) -> None:
    """Finds an option of the maps that would not apply.

    Raises:
        UsageError: There is one.
    """
    if given.layers and not given.utterances:
        raise UsageError("--layers chooses the layers of maps; name what to draw with --utterances, or leave it out.")
    if given.utterances and given.output is None:
        raise UsageError("--utterances draws maps into a folder; name a new one with --output.")


def _labels(corpus: Corpus, classes: Sequence[str] | None, model: Classifier) -> Labels:
    """What is measured: the model's classes, which may be more than those of the data."""
    if classes is None:
        return labels_of(corpus)
    several = model.config.problem_type == "multi_label_classification"
    return Labels(LabelKind.SEVERAL if several else LabelKind.CLASSES, tuple(classes))


def true_labels(model: Classifier, corpus: Corpus, split: str | None, classes: Sequence[str] | None) -> torch.Tensor:
    """The labels of a split, in the order of its examples, as the model numbers them.

    Args:
        model: Says what is predicted.
        corpus: Read with labels.
        split: One split; None = all, one after another.
        classes: The model's classes; None for scores.

    Raises:
        UsageError: An example has none, or the data have labels of another kind or class than the model.
    """
    examples = examples_of(corpus, split)
    bare = next((example.id for example in examples if example.label is None), None)
    if bare is not None:
        raise UsageError(f"Example {bare!r} has no label; give it one, or use python -m cmsbert_fast.predict.")
    found = [example.label for example in examples]
    several = model.config.problem_type == "multi_label_classification"
    known = corpus.classes or ()
    if (classes is None) != (not known) or (known and several != corpus.several):
        kinds = {None: "scores", False: "classes", True: "several labels at once"}
        ours, theirs = kinds[several if classes else None], kinds[corpus.several if known else None]
        raise UsageError(f"The model predicts {ours}, but the labels of {corpus.name} are {theirs}; choose a --label.")
    if classes is None:
        return torch.tensor(found, dtype=torch.float32)
    unknown = sorted(set(known) - set(classes))
    if unknown:
        raise UsageError(
            f"The data have the class {unknown[0]!r}, which the model does not know: its classes are "
            f"{', '.join(classes)}; choose another --label."
        )
    places = [list(classes).index(name) for name in known]
    if not several:
        return torch.tensor([places[int(label)] for label in found])  # type: ignore[arg-type]
    if set(known) != set(classes):
        raise UsageError(
            f"The model predicts {', '.join(classes)}, but the data have labels for {', '.join(known)}; name all of "
            "the model's by --label."
        )
    values = torch.zeros(len(found), len(classes))
    values[:, places] = torch.tensor(found, dtype=torch.float32)
    return values


def _write(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes the folder of results, whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace_folder(folder, write)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({os_reason(error)}); choose another --output.") from None
    print(f"metrics, predictions and figures are in {folder}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
