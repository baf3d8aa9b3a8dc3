"""The gates of a trained model for an example: of its word pieces (Fig. 1), and of its words."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from cmsbert_fast.data.example import MODALITIES, Example
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.encoding import Pieces, tokenize
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.training.batches import Batches

ShiftMaps = list[tuple[np.ndarray | None, np.ndarray | None]]


class WordGates(NamedTuple):
    """The gates of an example.

    Attributes:
        words: How many of its words the model read; a long text is cut.
        gates: By modality g_ij of Eq. 1 or 2, float32 (layers, words, frames): of a word the mean over its pieces.
            Without the modalities that the model or the example lacks.
    """

    words: int
    gates: Mapping[str, np.ndarray]


def has_gates(config: PreTrainedConfig) -> bool:
    """Whether a model has gates."""
    return bool(getattr(config, "cms_layers", ()) and (config.visual_size or config.acoustic_size))


@torch.no_grad()
def shift_maps(model: Classifier, processor: CMSBertProcessor, example: Example) -> ShiftMaps:
    """For every CMS layer the gates of an example's word pieces, [CLS] and [SEP] included.

    Returns:
        Visual (N, N_v) and acoustic (N, N_a), float32; None for a modality that the model lacks.
    """
    model.eval()
    inputs = Batches([example], processor, model, model.device).load([0], labels=False)
    output = model(**inputs, output_shift_maps=True)
    return [(_first(visual), _first(acoustic)) for visual, acoustic in output.shift_maps]


def word_gates(model: Classifier, processor: CMSBertProcessor, example: Example) -> WordGates:
    """The gates of an example's words; those of a model without gates are empty."""
    pieces = tokenize(processor.tokenizer, example.words, processor.max_length)
    if not has_gates(model.config):
        return WordGates(pieces.word_count, {})
    maps = shift_maps(model, processor, example)
    found = {}
    for modality, layers in zip(MODALITIES, zip(*maps, strict=True), strict=True):
        known = [gates for gates in layers if gates is not None]
        if known and known[0].shape[1]:
            found[modality] = np.stack([_of_words(gates[1:-1], pieces) for gates in known])
    return WordGates(pieces.word_count, found)


def _of_words(gates: np.ndarray, pieces: Pieces) -> np.ndarray:
    """The mean over the pieces of each word, (words, frames); 0 for a word without pieces."""
    of_words = np.array(pieces.words, dtype=np.int64)
    found = np.zeros((pieces.word_count, gates.shape[1]), dtype=np.float32)
    np.add.at(found, of_words, gates)
    return found / np.maximum(np.bincount(of_words, minlength=pieces.word_count), 1)[:, None].astype(np.float32)


def _first(batch: Tensor | None) -> np.ndarray | None:
    return None if batch is None else batch[0].float().cpu().numpy()
