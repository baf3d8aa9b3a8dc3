"""Batches on the device, predictions for a whole split, and the losses and metrics computed from them."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmsbert_fast.data.example import MODALITIES, Example
from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.models.losses import contrastive_loss, task_loss
from cmsbert_fast.models.processing import CMSBertProcessor, Encoded
from cmsbert_fast.training.distributed import Ranks, join_shares, share

SUBNETWORKS = ("linguistic", *MODALITIES)
HOST_INPUTS = ("cu_seq_lens_visual", "cu_seq_lens_acoustic")  # the LSTMs lay out their time steps on the CPU
CACHE_BYTES = 2**27  # MOSI and word-aligned MOSEI fit; larger data stay where they are mapped


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model says about examples, in their order, on the CPU.

    Attributes:
        ids: n ids.
        logits: (n, num_labels) float32 (float64 from a float64 model).
        labels: (n,) float (scores) or int64 (classes); None where a label is unknown.
        embeddings: z_m by modality, (n, d); empty for models without embeddings.
    """

    ids: list[str]
    logits: Tensor
    labels: Tensor | None
    embeddings: dict[str, Tensor]


class Batches:
    """Examples of one split, turned into model inputs.

    Encoded examples are kept, so that each is tokenised and standardised once, up to ``CACHE_BYTES`` of frames.

    Args:
        examples: The split.
        processor: Fitted to the training examples.
        config: The model's; a modality that it does not have is left out.
        device: Where the inputs go.
    """

    def __init__(
        self, examples: Sequence[Example], processor: CMSBertProcessor, config: CMSBertConfig, device: torch.device
    ):
        self._examples = examples
        self._processor = processor
        self._config = config
        self._device = device
        self._encoded: dict[int, Encoded] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self._examples)

    def ids(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of some examples."""
        return [self._examples[int(i)].id for i in indices]

    def labels(self) -> Tensor | None:
        """All labels, (n,) float32 or int64; None where one is unknown."""
        labels = [example.label for example in self._examples]
        return None if any(label is None for label in labels) else torch.tensor(labels)

    def load(self, indices: Sequence[int] | np.ndarray, labels: bool = True) -> dict[str, Any]:
        """Some examples as packed model inputs on the device; the copy to a GPU is asynchronous.

        What the models read on the CPU, the lengths of frames, stays there."""
        inputs = self._processor.collate([self._encode(int(i)) for i in indices], packed=True)
        if not labels:
            inputs.pop("labels", None)
        return {name: self._place(name, value) for name, value in inputs.items()}

    def _encode(self, index: int) -> Encoded:
        if index in self._encoded:
            return self._encoded[index]
        encoded = self._processor.encode(fitting(self._examples[index], self._config))
        if self._cached_bytes < CACHE_BYTES:
            self._encoded[index] = encoded
            self._cached_bytes += encoded.visual.nbytes + encoded.acoustic.nbytes
        return encoded

    def _place(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or self._device.type == "cpu":
            return value
        value = value.pin_memory()
        return value if name in HOST_INPUTS else value.to(self._device, non_blocking=True)


def fitting(example: Example, config: CMSBertConfig) -> Example:
    """The example with the model's modalities: others are left out, and one that the source lacks has no frames."""
    frames = {}
    for modality, size in (("visual", config.visual_size or 0), ("acoustic", config.acoustic_size or 0)):
        own = getattr(example, modality)
        frames[modality] = own if own.shape[1] and size else np.zeros((0, size), np.float32)
    return dataclasses.replace(example, visual=frames["visual"], acoustic=frames["acoustic"])


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context a forward pass of this precision ("fp32" or "bf16") runs in."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def predict(model: nn.Module, batches: Batches, ranks: Ranks, batch_size: int, precision: str = "fp32") -> Predictions:
    """Predicts a whole split. Every rank computes its share; every rank gets all of it.

    ``batch_size`` examples go through the model at a time, over all ranks together.
    """
    was_training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {}
    mine = range(len(batches))[share(len(batches), ranks)]
    # A rank without examples computes one all the same, so that it knows the shapes of what it gives none of.
    for some in _chunks(mine or range(1), max(1, batch_size // ranks.world_size)):
        with autocast(precision, ranks.device):
            output = model(**batches.load(some, labels=False))
        named = {"logits": output.logits, **{m: getattr(output, f"{m}_embeds", None) for m in SUBNETWORKS}}
        for name, rows in named.items():
            if rows is not None:
                rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
                parts.setdefault(name, []).append(rows)
    own = {name: torch.cat(rows)[: len(mine)] for name, rows in parts.items()}
    joined = {name: join_shares(rows, len(batches), ranks).cpu() for name, rows in own.items()}
    model.train(was_training)
    logits = joined.pop("logits")
    return Predictions(batches.ids(range(len(batches))), logits, batches.labels(), joined)


def losses(predictions: Predictions, config: CMSBertConfig, batch_size: int) -> tuple[float, float | None]:
    """Task loss and contrastive loss over a whole split; the latter is None without at least two embeddings.

    Both are sample-weighted means. The contrastive loss compares examples of one batch with each other, so it is the
    mean over consecutive batches of ``batch_size`` examples: the same for every number of ranks.
    """
    assert predictions.labels is not None
    n, labels, z = len(predictions.ids), predictions.labels, predictions.embeddings
    task = float(task_loss(predictions.logits.double(), labels))
    if len(z) < 2:
        return task, None
    total = 0.0
    for some in _chunks(range(n), batch_size):
        rows = slice(some.start, some.stop)
        embeds = {f"{m}_embeds": z[m][rows] for m in z}
        # Predictions are on the CPU, whatever CMSBERT_BACKEND asks for.
        loss = contrastive_loss(embeds, labels[rows], config, backend="torch")
        total += float(loss) * len(some)
    return task, total / n


def metrics(predictions: Predictions) -> dict[str, float]:
    """Every metric of SPEC section 7: sentiment scores for one output, emotions for several."""
    from cmsbert_fast.training.metrics import (  # slow to import, prediction needs none
        emotion_metrics,
        sentiment_metrics,
    )

    assert predictions.labels is not None
    labels = predictions.labels.numpy()
    if predictions.logits.shape[1] == 1:
        return sentiment_metrics(predictions.logits[:, 0].numpy(), labels)
    return emotion_metrics(predictions.logits.argmax(dim=1).numpy(), labels)


def selection(values: dict[str, float]) -> float:
    """What validation selects by, lower is better: MAE; for emotions the negative accuracy."""
    return values["mae"] if "mae" in values else -values["wa"]


def _chunks(items: range, size: int) -> Iterator[range]:
    return (items[i : i + size] for i in range(0, len(items), size))
