"""The figures of a run: ``shift_maps.png`` (Fig. 1 of the paper), ``embeddings.png`` (Fig. 3), ``confusion.png``."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmsbert_fast import atomic
from cmsbert_fast.data.embedded import embedded_utterances
from cmsbert_fast.data.example import Corpus
from cmsbert_fast.data.task import LabelKind, Labels, labels_of
from cmsbert_fast.training.batches import Batches
from cmsbert_fast.training.evaluate import Predictions
from cmsbert_fast.training.tested import Tested

FIGURES = "figures"


def draw(folder: Path, tested: Tested) -> None:
    """Calls :func:`write_figures` for the run in ``folder``; the folder of figures appears once it is complete."""
    atomic.replace_folder(folder / FIGURES, lambda path: write_figures(path, tested))


def write_figures(folder: Path, tested: Tested) -> None:
    """Writes ``shift_maps.png`` and ``embeddings.png``, if the model has maps and embeddings.

    Where classes are predicted, also ``confusion.png``, the confusion matrix of the test set; of several labels at
    once, a matrix of absent and present for each.

    A model without maps and embeddings has ``scatter.png``, predicted against true scores.

    The maps show the best-predicted test example among the clearly positive and negative ones; if it is from the
    embedded corpus, its events are marked.
    """
    folder.mkdir(exist_ok=True)
    config = tested.model.config
    if tested.corpus.classes and tested.predictions.labels is not None:
        title = f"{tested.corpus.name}, test set"
        _draw_confusion(folder / "confusion.png", labels_of(tested.corpus), tested.predictions, title)
    if tested.predictions.embeddings:
        _draw_embeddings(folder / "embeddings.png", tested.corpus, tested.predictions)
    if getattr(config, "cms_layers", ()) and (config.visual_size or config.acoustic_size):
        _draw_shift_maps(folder / "shift_maps.png", tested)
    if not any(folder.iterdir()) and tested.predictions.labels is not None:
        title = f"{tested.corpus.name}, test set"
        draw_predictions(folder, tested.predictions, labels_of(tested.corpus), title)


def _draw_embeddings(path: Path, corpus: Corpus, predictions: Predictions) -> None:
    from cmsbert_fast.training.plots import plot_embeddings  # slow to import, needed only at the end

    labels, classes = predictions.labels, corpus.classes
    if labels is not None and corpus.several:
        labels, classes = _one_of_several(labels), (*(classes or ()), "several", "none")
    figure = plot_embeddings(
        {name: z.numpy() for name, z in predictions.embeddings.items()},
        labels.numpy() if labels is not None else np.zeros(len(predictions.ids)),
        classes=classes,
        title=f"{corpus.name}, test set",
    )
    figure.savefig(path, dpi=150)


def _one_of_several(labels: Tensor) -> Tensor:
    """The only label that is present, else K for several and K + 1 for none: (n, K) -> (n,) int64."""
    count, width = labels.sum(dim=1), labels.shape[1]
    return torch.where(count == 1, labels.argmax(dim=1), torch.where(count > 1, width, width + 1))


def draw_predictions(folder: Path, predictions: Predictions, labels: Labels, title: str) -> None:
    """Writes ``confusion.png`` of classes, or ``scatter.png`` of scores."""
    from cmsbert_fast.training.scatter import plot_scores

    assert predictions.labels is not None
    if labels.classes:
        _draw_confusion(folder / "confusion.png", labels, predictions, title)
    else:
        figure = plot_scores(predictions.logits[:, 0].numpy(), predictions.labels.numpy(), title)
        figure.savefig(folder / "scatter.png", dpi=150)


def _draw_confusion(path: Path, labels: Labels, predictions: Predictions, title: str) -> None:
    from cmsbert_fast.training.plots import plot_confusion

    assert predictions.labels is not None
    classes, true, logits = labels.classes, predictions.labels, predictions.logits
    if labels.kind is LabelKind.SEVERAL:
        pairs = zip(true.long().unbind(1), (logits > 0).long().unbind(1), strict=True)
        counts = {name: _confusion(*pair, 2) for name, pair in zip(classes, pairs, strict=True)}
        figure = plot_confusion(counts, ("absent", "present"), title)
    else:
        figure = plot_confusion({"": _confusion(true, logits.argmax(dim=1), len(classes))}, classes, title)
    figure.savefig(path, dpi=150)


def _confusion(true: Tensor, predicted: Tensor, count: int) -> np.ndarray:
    """How many examples of each true class were predicted as which, (count, count)."""
    return torch.bincount(true * count + predicted, minlength=count**2).unflatten(0, (count, count)).numpy()


def _draw_shift_maps(path: Path, tested: Tested) -> None:
    from cmsbert_fast.training.plots import plot_shift_maps

    model, processor, corpus, predictions, embedded = tested
    index = _telling_example(predictions)
    example = corpus.splits["test"][index]
    batches = Batches([example], processor, model, model.device)
    model.eval()
    with torch.no_grad():
        output = model(**batches.load([0], labels=False), output_shift_maps=True)
    maps = [(_first(visual), _first(acoustic)) for visual, acoustic in output.shift_maps]
    if not any(m is not None and m.size for layer in maps for m in layer):
        return  # this example has no frames
    pieces = processor.tokenizer.convert_ids_to_tokens(batches.load([0])["input_ids"][0].tolist())
    events = embedded_utterances()["test"][index].events if embedded else ()
    title = f"{example.id}: {' '.join(example.words)}"
    if corpus.classes is None:
        title += f"\nlabel {example.label:.1f}, predicted {predictions.logits[index, 0]:.1f}"
    figure = plot_shift_maps(maps, pieces, layers=model.config.cms_layers, events=events, title=title)
    figure.savefig(path, dpi=150)


def _first(batch: Tensor | None) -> np.ndarray | None:
    return None if batch is None else batch[0].float().cpu().numpy()


def _telling_example(predictions: Predictions) -> int:
    assert predictions.labels is not None
    if predictions.labels.dim() == 2:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            predictions.logits.double(), predictions.labels.double(), reduction="none"
        )
        return int(losses.sum(dim=1).argmin())
    if predictions.logits.shape[1] > 1:
        chances = predictions.logits.softmax(dim=1)
        return int(chances.gather(1, predictions.labels[:, None]).argmax())
    error = (predictions.logits[:, 0] - predictions.labels).abs()
    clear = predictions.labels.abs() >= 1
    return int(error.masked_fill(~clear, torch.inf).argmin()) if clear.any() else int(error.argmin())
