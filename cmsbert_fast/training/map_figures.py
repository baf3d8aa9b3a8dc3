"""Figures of CMS maps: what all of them show, and those of utterances and layers that a user chooses."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor
from transformers import PreTrainedConfig

from cmsbert_fast.data.align import words_of_frames
from cmsbert_fast.data.embedded import embedded_utterances
from cmsbert_fast.data.example import MODALITIES, Alignment, Corpus, Example, outlines
from cmsbert_fast.data.open import clock_of
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.task import LabelKind, Labels
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.training import strict_json
from cmsbert_fast.training.batches import fitting
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.evaluate import Predictions
from cmsbert_fast.training.gates import ShiftMaps, has_gates, shift_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cmsbert_fast.plots.shift_maps import Event


CAPTIONS = "captions.json"


class Utterance(NamedTuple):
    """An utterance to draw.

    Attributes:
        example: With the frames that the model reads.
        maps: Of all CMS layers (:func:`~cmsbert_fast.training.gates.shift_maps`), or of some.
        told: Label and prediction, as :func:`told_of` makes them.
        events: What is seen and heard, where that is known.
    """

    example: Example
    maps: ShiftMaps
    told: Mapping[str, str]
    events: "Sequence[Event]" = ()


class Chosen(NamedTuple):
    """What to draw.

    Attributes:
        places: Of each utterance its split, and its place there.
        indices: The place of each among all predictions.
        layers: CMS layers, counted from 0, ascending; None: all.
    """

    places: list[tuple[str, int]]
    indices: list[int]
    layers: list[int] | None


def maps_figure(
    config: PreTrainedConfig,
    processor: CMSBertProcessor,
    utterance: Utterance,
    lines: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    limits: tuple[float, float] | None = None,
) -> "Figure":
    """The CMS maps of an utterance.

    Args:
        config: Of the model.
        processor: Its processor.
        utterance: What to draw.
        lines: The first line of the title, above the words, and what follows label and prediction.
        layers: Those of ``utterance.maps``, each drawn whole; None: all, of which four are drawn whole.
        limits: Smallest and largest gate of the colours; None: those of the utterance.
    """
    from cmsbert_fast.plots.shift_maps import plot_shift_maps

    example = utterance.example
    first, *rest = lines
    told = [f"{key} {value}" for key, value in utterance.told.items()]
    title = [first, f"{example.id}: {' '.join(example.words)}", "; ".join([*told, *rest])]
    return plot_shift_maps(
        utterance.maps,
        processor.tokenizer.convert_ids_to_tokens(processor.input_ids(example.words)),
        layers=config.cms_layers if layers is None else layers,
        depth=config.num_hidden_layers,
        whole=layers is not None,
        limits=limits,
        words={modality: word_spans(example, modality) for modality in MODALITIES},
        events=utterance.events,
        times=frame_times(example),
        title="\n".join(title),
    )


def check_layers(config: PreTrainedConfig, name: str, numbers: Sequence[int] | None) -> list[int] | None:
    """The layers of ``--layers``, counted from 0, ascending; None for all.

    Args:
        config: Of the model.
        name: What the checkpoint is called.
        numbers: Counted from 1, as all figures print them.

    Raises:
        UsageError: The model has no gates, or none in such a layer.
    """
    if not has_gates(config):
        raise UsageError(f"Leave out --utterances: the model of {name} has no gates, hence no CMS maps.")
    known = [layer + 1 for layer in config.cms_layers]
    wrong = next((number for number in numbers or () if number not in known), None)
    if wrong is not None:
        raise UsageError(
            f"--layers is {wrong}, but the gates of {name} are in layer{'s' * (len(known) > 1)} {_ranges(known)} of "
            f"{config.num_hidden_layers}; choose among these."
        )
    return None if numbers is None else sorted({number - 1 for number in numbers})


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers: "1", "1 to 12", "1, 3 to 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def choose(
    corpus: Corpus, split: str | None, config: PreTrainedConfig, names: Sequence[str], layers: list[int] | None
) -> Chosen:
    """Finds utterances by their ids.

    Args:
        corpus: The data.
        split: What is predicted; None: all splits, one after another.
        config: Of the model.
        names: The ids.
        layers: Of :func:`check_layers`.

    Raises:
        UsageError: One is not in the split, or has no frames that the model reads.
    """
    splits = list(corpus.splits) if split is None else [split]
    known = [(outline, part, k) for part in splits for k, outline in enumerate(outlines(corpus.splits[part]))]
    where = {outline.id: index for index, (outline, _, _) in enumerate(known)}
    sizes = [m for m in MODALITIES if getattr(config, f"{m}_size")]
    indices = []
    for name in dict.fromkeys(names):
        if name not in where:
            raise UsageError(f"--utterances: {_not_there(name, corpus, splits, list(where))}")
        if not any(getattr(known[where[name]][0], modality) for modality in sizes):
            raise UsageError(
                f"Leave {name!r} out of --utterances: it has no {' or '.join(sizes)} frames, hence no map."
            )
        indices.append(where[name])
    return Chosen([known[index][1:] for index in indices], indices, layers)


def _not_there(name: str, corpus: Corpus, splits: list[str], known: list[str]) -> str:
    """What to do about an id that was not found."""
    other = [part for part in corpus.splits if part not in splits]
    for part in other:
        if any(outline.id == name for outline in outlines(corpus.splits[part])):
            return f"{name!r} is in the {part} split; give --split {part} (or --split all)."
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {near[0]!r}?" if near else "predictions.csv of --output lists the ids."
    of = f"the {splits[0]} split of " if other else ""
    return f"there is no {name!r} in {of}{corpus.name}; {advice}"


def write_chosen(
    folder: Path,
    model: Classifier,
    processor: CMSBertProcessor,
    corpus: Corpus,
    chosen: Chosen,
    predictions: Predictions,
    labels: Labels,
    title: str,
    request: DataRequest,
) -> list[str]:
    """Writes ``shift_maps-ID`` for each utterance, as PNG and SVG, and ``captions.json`` about them.

    All have one scale of colours, so that they can be compared.

    Args:
        folder: An existing folder.
        model, processor: From `load_trained`.
        corpus, chosen: The data, and what to draw of them.
        predictions: Of the same split or splits.
        labels: What they are.
        title: Printed above each figure.
        request: What ``corpus`` was read by.

    Returns:
        The names of the figures.
    """
    from cmsbert_fast.plots import style

    config = model.config
    layers = config.cms_layers if chosen.layers is None else chosen.layers
    found = []
    for (split, k), index in zip(chosen.places, chosen.indices, strict=True):
        example = timed(corpus.splits[split][k], request, config)
        maps = dict(zip(config.cms_layers, shift_maps(model, processor, example), strict=True))
        told, events = told_of(predictions, index, labels), events_of(request, split, k)
        found.append(Utterance(example, [maps[i] for i in layers], told, events))
    gates = [m for one in found for layer in one.maps for m in layer if m is not None and m.size]
    limits = min(float(m.min()) for m in gates), max(float(m.max()) for m in gates)
    captions: dict[str, Any] = {}
    for one in found:
        name = _file_name(one.example.id, captions)
        figure = maps_figure(config, processor, one, (title,), layers=chosen.layers, limits=limits)
        style.save(figure, folder / name)
        captions[name] = {
            "title": title,
            "id": one.example.id,
            "words": list(one.example.words),
            **one.told,
            "layers": [layer + 1 for layer in layers],
        }
    strict_json.write_json(folder / CAPTIONS, captions)
    return list(captions)


def _file_name(id: str, taken: Mapping[str, Any]) -> str:
    """A name for the figure of an id, of characters that every file system takes; no two ids share one."""
    name = stem = f"shift_maps-{re.sub(r'[^0-9A-Za-z_.-]+', '-', id)[:80]}"
    number = 2
    while name.lower() in {other.lower() for other in taken}:
        name = f"{stem}-{number}"
        number += 1
    return name


def timed(example: Example, request: DataRequest, config: PreTrainedConfig) -> Example:
    """An example with the frames that a model reads, and when they and its words are, where that is known."""
    return fitting(replace(example, clock=clock_of(request, example)), config)


def events_of(request: DataRequest, split: str, place: int) -> "Sequence[Event]":
    """What is seen and heard in an utterance: known of the embedded corpus only."""
    return embedded_utterances()[split][place].events if request.embedded else ()


def word_spans(example: Example, modality: str) -> Sequence[Any]:
    """The frames during which each word of an example is said; none where that is not known.

    A word of several pieces of time has a span for each.
    """
    from cmsbert_fast.plots.shift_maps import Span

    count = len(getattr(example, modality))
    times, spoken = frame_times(example).get(modality), None if example.clock is None else example.clock.words
    if example.frame_words is not None:
        of_frames: Sequence[int] = getattr(example.frame_words, modality).tolist()
    elif example.alignment is Alignment.WORDS:
        of_frames = range(count)
    elif times is not None and spoken is not None and count > 1:
        of_frames = words_of_frames(times, spoken).tolist()
    else:
        return []
    spans: list[Any] = []
    for frame, word in enumerate(of_frames[:count]):
        if word < 0 or word >= len(example.words):
            continue
        if spans and spans[-1][0] == word and spans[-1][1].stop == frame:
            spans[-1] = (word, spans[-1][1]._replace(stop=frame + 1))
        else:
            spans.append((word, Span(example.words[word], frame, frame + 1)))
    return [span for _, span in spans]


def frame_times(example: Example) -> dict[str, np.ndarray]:
    """Start and stop of each frame in the recording, in seconds (N_m, 2), of the modalities where they are known."""
    if example.clock is None:
        return {}
    found = {modality: getattr(example.clock, modality) for modality in MODALITIES}
    return {modality: times for modality, times in found.items() if times is not None}


def told_of(predictions: Predictions, index: int, labels: Labels) -> Mapping[str, str]:
    """Label and prediction of an example, as text."""

    def text(values: Tensor, chances: bool) -> str:
        if labels.kind is LabelKind.SEVERAL:
            threshold = 0.0 if chances else 0.5
            return ", ".join(name for name, v in zip(labels.classes, values, strict=True) if v > threshold) or "none"
        if labels.classes:
            return labels.classes[int(values.argmax()) if chances else int(values)]
        return f"{float(values.reshape(-1)[0]):.2f}"

    told = {} if predictions.labels is None else {"label": text(predictions.labels[index], False)}
    return {**told, "prediction": text(predictions.logits[index], True)}
