"""The figures of a run, each as PNG and SVG, and ``captions.json`` about them.

``shift_maps`` (Fig. 1 of the paper), ``embeddings`` (Fig. 3), ``confusion`` of classes or ``scatter`` of scores.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmsbert_fast import atomic
from cmsbert_fast.data.example import MODALITIES, outlines
from cmsbert_fast.data.task import LabelKind, Labels, labels_of
from cmsbert_fast.training import strict_json
from cmsbert_fast.training.evaluate import Predictions
from cmsbert_fast.training.gates import has_gates, shift_maps
from cmsbert_fast.training.map_figures import CAPTIONS, Utterance, events_of, maps_figure, timed, told_of
from cmsbert_fast.training.tested import Tested

FIGURES = "figures"
# The same utterance for every system and seed, so that their maps can be compared; no look at predictions or gates.
RULE = "chosen by length alone: the first test utterance of median length"


def draw(folder: Path, tested: Tested) -> None:
    """Calls :func:`write_figures` for the run in ``folder``; the folder of figures appears once it is complete."""
    atomic.replace_folder(folder / FIGURES, lambda path: write_figures(path, tested))


def write_figures(folder: Path, tested: Tested) -> None:
    """Writes what the model has: maps, embeddings, and always what it predicts for the test set.

    ``captions.json`` holds for each figure its ``title``; for the maps also ``id``, ``words``, ``label``,
    ``prediction`` and ``rule`` of the utterance; for the embeddings ``alignment``
    (:func:`cmsbert_fast.training.alignment.alignment`).
    """
    folder.mkdir(exist_ok=True)
    captions = {}
    labels = labels_of(tested.corpus)
    title = f"{tested.name}, {tested.corpus.name}, test set"
    if tested.predictions.embeddings:
        captions["embeddings"] = _draw_embeddings(folder, tested, labels, title)
    if has_gates(tested.model.config):
        caption = _draw_shift_maps(folder, tested, labels, title)
        if caption is not None:
            captions["shift_maps"] = caption
    if tested.predictions.labels is not None:
        captions[draw_predictions(folder, tested.predictions, labels, title)] = {"title": title}
    strict_json.write_json(folder / CAPTIONS, captions)


def draw_predictions(folder: Path, predictions: Predictions, labels: Labels, title: str) -> str:
    """Writes the figure ``confusion`` of classes, or ``scatter`` of scores; returns its name.

    Of several labels at once, there is a matrix of absent and present for each.
    """
    from cmsbert_fast.plots import style  # slow to import, needed only at the end
    from cmsbert_fast.plots.confusion import plot_confusion
    from cmsbert_fast.plots.scores import plot_scores

    true, logits = predictions.labels, predictions.logits
    assert true is not None
    if not labels.classes:
        style.save(plot_scores(logits[:, 0].numpy(), true.numpy(), title), folder / "scatter")
        return "scatter"
    if labels.kind is LabelKind.SEVERAL:
        pairs = zip(true.long().unbind(1), (logits > 0).long().unbind(1), strict=True)
        counts = {name: _confusion(*pair, 2) for name, pair in zip(labels.classes, pairs, strict=True)}
        figure = plot_confusion(counts, ("absent", "present"), title)
    else:
        matrix = _confusion(true, logits.argmax(dim=1), len(labels.classes))
        figure = plot_confusion({"": matrix}, labels.classes, title)
    style.save(figure, folder / "confusion")
    return "confusion"


def _confusion(true: Tensor, predicted: Tensor, count: int) -> np.ndarray:
    """How many examples of each true class were predicted as which, (count, count)."""
    return torch.bincount(true * count + predicted, minlength=count**2).unflatten(0, (count, count)).numpy()


def _draw_embeddings(folder: Path, tested: Tested, labels: Labels, title: str) -> dict[str, Any]:
    from cmsbert_fast.plots import style
    from cmsbert_fast.plots.embeddings import plot_embeddings

    predictions, classes = tested.predictions, labels.classes or None
    values = predictions.labels
    if values is not None and labels.kind is LabelKind.SEVERAL:
        values, classes = _one_of_several(values), (*(classes or ()), "several", "none")
    figure = plot_embeddings(
        {name: z.numpy() for name, z in predictions.embeddings.items()},
        None if values is None else values.numpy(),
        classes=classes,
        numbers=tested.alignment,
        title=title,
    )
    style.save(figure, folder / "embeddings")
    return {"title": title, "alignment": tested.alignment}


def _one_of_several(labels: Tensor) -> Tensor:
    """The only label that is present, else K for several and K + 1 for none: (n, K) -> (n,) int64."""
    count, width = labels.sum(dim=1), labels.shape[1]
    return torch.where(count == 1, labels.argmax(dim=1), torch.where(count > 1, width, width + 1))


def _draw_shift_maps(folder: Path, tested: Tested, labels: Labels, title: str) -> dict[str, Any] | None:
    from cmsbert_fast.plots import style

    model, processor = tested.model, tested.processor
    index = _example(tested)
    example = timed(tested.corpus.splits["test"][index], tested.request, model.config)
    maps = shift_maps(model, processor, example)
    if not any(m is not None and m.size for layer in maps for m in layer):
        return None  # no example has frames
    told = told_of(tested.predictions, index, labels)
    utterance = Utterance(example, maps, told, events_of(tested.request, "test", index))
    figure = maps_figure(model.config, processor, utterance, (title, RULE))
    style.save(figure, folder / "shift_maps")
    return {"title": title, "id": example.id, "words": list(example.words), **told, "rule": RULE}


def _example(tested: Tested) -> int:
    """The first test example of median length in words, of those with frames of all the model's modalities.

    Or of any of them, where none has all.
    """
    known = list(outlines(tested.corpus.splits["test"]))
    sizes = [m for m in MODALITIES if getattr(tested.model.config, f"{m}_size")]
    for enough in (all, any):
        order = [i for i, outline in enumerate(known) if enough(getattr(outline, m) for m in sizes)]
        order.sort(key=lambda i: len(known[i].words))  # stable: the first of equal ones
        if order:
            middle = len(known[order[(len(order) - 1) // 2]].words)
            return next(i for i in order if len(known[i].words) == middle)
    return 0
