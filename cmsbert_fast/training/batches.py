"""Batches of model inputs on the device, and their order in an epoch."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from cmsbert_fast.data.example import MODALITIES, Example, outlines, with_frames
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.baselines.base import Baseline
from cmsbert_fast.models.encoding import Encoded
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.training import text_features
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.signals import StopRequest
from cmsbert_fast.training.text_features import TextFeatures

CACHE_BYTES = 2**27  # MOSI and word-aligned MOSEI fit; larger data stay memory-mapped
FILE_BYTES = 2**22  # features of text beyond that go to a file, which the runs of a command share


class Batches:
    """Turns the examples of one split into model inputs.

    Encoded examples are cached, up to ``CACHE_BYTES`` of frames, so each is tokenised and standardised once. The inputs
    of a model with frozen text hold the features of its text, computed once too.

    Args:
        examples: The split.
        processor: Fitted to the training examples.
        model: The model to feed; inputs that it does not read (:attr:`Classifier.inputs`) are left out.
        device: Device of the inputs.
    """

    def __init__(
        self, examples: Sequence[Example], processor: CMSBertProcessor, model: Classifier, device: torch.device
    ):
        self._examples = examples
        self._processor = processor
        self._config = model.config
        self._names = frozenset(model.inputs)
        self._level = model.frame_level
        self._device = device
        self._encoded: dict[int, Encoded] = {}
        self._cached_bytes = 0
        self._features: TextFeatures | None = None
        if text_features.NAME in self._names:
            assert isinstance(model, Baseline)
            self._features = TextFeatures(model, self._pieces, CACHE_BYTES)

    def __len__(self) -> int:
        return len(self._examples)

    def ids(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of the given examples."""
        return [self._examples[int(i)].id for i in indices]

    def labels(self) -> Tensor | None:
        """All labels: (n,) float32 or int64, of several at once (n, K) float32; None if any is unknown."""
        labels = [outline.label for outline in outlines(self._examples)]
        if any(label is None for label in labels):
            return None
        several = any(isinstance(label, tuple) for label in labels)
        return torch.tensor(labels, dtype=torch.float32 if several else None)

    def load(self, indices: Sequence[int] | np.ndarray, labels: bool = True) -> dict[str, Any]:
        """The given examples as packed model inputs on the device; the copy to a GPU is asynchronous.

        The offsets of frames stay on the CPU, where the models read them.
        """
        inputs = self._processor.collate([self._encode(int(i)) for i in indices], packed=True, names=self._names)
        if self._features is not None:
            inputs[text_features.NAME] = self._features.of([int(i) for i in indices])
        names = self._names | {"labels"} if labels else self._names
        return {name: self._place(name, value) for name, value in inputs.items() if name in names}

    def in_order(self, size: int) -> Iterator[dict[str, Any]]:
        """The whole split without labels, ``size`` examples at a time."""
        return (self.load(range(len(self))[i : i + size], labels=False) for i in range(0, len(self), size))

    def keep_text_features(self, folder: Path, ranks: Ranks, stop: StopRequest) -> None:
        """For a split that is read again and again: features of text that exceed ``FILE_BYTES`` go to a file.

        Arguments and errors as in :meth:`TextFeatures.keep`. All ranks must call.
        """
        if self._features is not None:
            self._features.keep(len(self), self._processor.max_length, FILE_BYTES, folder, ranks, stop)

    def _pieces(self, index: int) -> list[int]:
        if index in self._encoded:
            return self._encoded[index].input_ids
        return self._processor.input_ids(self._examples[index].words)  # without reading frames

    def _encode(self, index: int) -> Encoded:
        if index in self._encoded:
            return self._encoded[index]
        encoded = self._processor.encode(fitting(self._examples[index], self._config), self._level)
        if self._cached_bytes < CACHE_BYTES:
            self._encoded[index] = encoded
            self._cached_bytes += encoded.visual.nbytes + encoded.acoustic.nbytes
        return encoded

    def _place(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or self._device.type == "cpu":
            return value
        return value.pin_memory() if stays_on_host(name) else _copied(value, self._device)


def stays_on_host(name: str) -> bool:
    """Whether an input is read on the CPU: where frames lie, since the LSTMs lay out their time steps there."""
    return name.startswith("cu_seq_lens_") and name not in ("cu_seq_lens_q", "cu_seq_lens_k")


def place(indices: np.ndarray, device: torch.device) -> Tensor:
    """Indices of examples as an int64 tensor on the device; the copy to a GPU is asynchronous."""
    return _copied(torch.from_numpy(indices), device)


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def fitting(example: Example, config: PreTrainedConfig) -> Example:
    """The example with the model's modalities: others are dropped, missing ones get 0 frames."""
    frames = {}
    for modality in MODALITIES:
        own, size = getattr(example, modality), getattr(config, f"{modality}_size") or 0
        frames[modality] = own if own.shape[1] and size else np.zeros((0, size), np.float32)
    return with_frames(example, frames["visual"], frames["acoustic"])


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The global batches of an epoch: ``count`` indices, shuffled, cut into batches whose sizes differ by at most 1."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return np.array_split(order, math.ceil(count / batch_size))
