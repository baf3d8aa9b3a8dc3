"""The training step as CUDA graphs: forward, backward, clipping and AdamW in one launch, for each size of batches.

Batches differ in their numbers of rows. They are rounded up to a few sizes (:func:`bucket_of`) by rows of no sequence,
which every operator leaves out. The first batch of a size takes its step without a graph, which compiles kernels and
allocates what stays; the second is captured; from then on a batch is copied into the graph's inputs and the graph is
replayed. What a replay launches was fixed by the capture: nothing on the host may depend on the batch, hence
:attr:`~cmsbert_fast.models.base.Classifier.fits_graphs`.

No GPU has run this yet. Its control flow is tested with a stand-in for the capture.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from cmsbert_fast.data.example import MODALITIES
from cmsbert_fast.models.registry import VARIANTS
from cmsbert_fast.training.distributed import Ranks
from cmsbert_fast.training.settings import TrainingSettings
from cmsbert_fast.training.update import Update, Updated

ROWS = 64  # of tokens or frames: the least that a size is rounded up to, and
PARTS = 8  # it is rounded to this part of the next lower power of two: by 12.5 % at most
LENGTH = 16  # of sequences: the same, a tile's edge
MOST = 64  # graphs: each keeps its own activations' addresses, but they share memory

Inputs = dict[str, Any]
Replay = Callable[[], Updated]


def why_not(settings: TrainingSettings, ranks: Ranks) -> str | None:
    """Why a run cannot take its steps as graphs, as half a sentence; None where it can."""
    if ranks.device.type != "cuda":
        return f"a CUDA graph needs a GPU, and this run is on the {ranks.device.type.upper()}"
    if ranks.world_size > 1:
        return "several ranks add their gradients outside of a graph"
    if settings.accumulation > 1:
        return "a graph holds a whole batch, and --accumulation divides it"
    if not VARIANTS[settings.variant].model_class.fits_graphs:
        return f"what {settings.variant} launches depends on the words of a batch, not on its size alone"
    return None


class Bucket(NamedTuple):
    """The size of a batch; those of one bucket share a graph.

    Attributes:
        labels: Shape of the labels: (B,), or (B, K).
        tokens: Rows of tokens, and the longest sequence.
        frames: The same of each modality present, by name.
    """

    labels: tuple[int, ...]
    tokens: tuple[int, int]
    frames: tuple[tuple[str, int, int], ...]


def bucket_of(inputs: Mapping[str, Any]) -> Bucket:
    """The bucket of a packed batch."""
    tokens = _rounded(inputs["input_ids"].shape[1], inputs["max_length_q"])
    present = [name for name in MODALITIES if name in inputs]
    frames = ((name, *_rounded(len(inputs[name]), inputs[f"max_length_{name}"])) for name in present)
    return Bucket(tuple(inputs["labels"].shape), tokens, tuple(frames))


def _rounded(rows: int, longest: int) -> tuple[int, int]:
    return _up(rows, ROWS), _up(longest, LENGTH)


def _up(count: int, least: int) -> int:
    step = max(least, 1 << max(0, count.bit_length() - 1) >> PARTS.bit_length() - 1)
    return max(1, -(-count // step)) * step


def filled(inputs: Mapping[str, Any], bucket: Bucket, device: torch.device) -> Inputs:
    """A packed batch with rows of no sequence up to its bucket's size; offsets too on the device."""
    rows, longest = bucket.tokens
    padded: Inputs = {"labels": inputs["labels"], "cu_seq_lens_q": inputs["cu_seq_lens_q"], "max_length_q": longest}
    for name in ("input_ids", "position_ids"):
        padded[name] = F.pad(inputs[name], (0, rows - inputs[name].shape[1]))
    for name, count, most in bucket.frames:
        padded[name] = F.pad(inputs[name], (0, 0, 0, count - len(inputs[name])))
        padded[f"max_length_{name}"] = most
        padded[f"cu_seq_lens_{name}"] = inputs[f"cu_seq_lens_{name}"].to(device, non_blocking=True)
    return padded


def capture(compute: Callable[[], Updated], pool: Any) -> Replay:
    """Captures what ``compute`` launches, without running it; returns what runs it and gives its results.

    Args:
        compute: Reads and writes the same memory in every call.
        pool: Memory that graphs share: nothing of one is read after another has run, for results are copied.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        static = compute()

    def replay() -> Updated:
        graph.replay()
        return tree_map_only(Tensor, Tensor.clone, static)

    return replay


class _Graph(NamedTuple):
    inputs: Inputs
    replay: Replay


class GraphedUpdate:
    """An :class:`~cmsbert_fast.training.update.Update` whose steps are graphs. A replay never waits for the device."""

    def __init__(self, update: Update):
        self._update, self._device = update, update.ranks.device
        self._graphs: dict[Bucket, _Graph] = {}
        self._seen: set[Bucket] = set()
        self._pool = torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None
        # A graph holds the address of the rate, not its value.
        self._rates = [torch.zeros((), device=self._device) for _ in update.optimizer.param_groups]
        self._told = False

    def __call__(self, indices: np.ndarray) -> Updated:
        """A step on the examples of these indices."""
        inputs = self._update.batches.load(indices)
        bucket = bucket_of(inputs)
        with self._rates_on_the_device():
            graph = self._graphs.get(bucket)
            if graph is None and (bucket not in self._seen or len(self._graphs) == MOST):
                if bucket in self._seen and not self._told:
                    self._told = True
                    warnings.warn(
                        f"Batches have more than {MOST} sizes; further ones run without a graph.", stacklevel=2
                    )
                self._seen.add(bucket)
                return self._update.of_inputs(filled(inputs, bucket, self._device))
            if graph is None:
                static = tree_map_only(Tensor, Tensor.clone, filled(inputs, bucket, self._device))
                replay = capture(lambda: self._update.of_inputs(static), self._pool)
                graph = self._graphs[bucket] = _Graph(static, replay)
            for name, place in graph.inputs.items():
                if isinstance(place, Tensor):  # stale rows behind it belong to no sequence
                    own = place[tuple(map(slice, inputs[name].shape))]
                    own.copy_(inputs[name], non_blocking=True)
            return graph.replay()

    @contextmanager
    def _rates_on_the_device(self) -> Iterator[None]:
        """Hands the optimiser its learning rates as tensors, with or without a graph: the arithmetic is the same."""
        groups = self._update.optimizer.param_groups
        before = [(group["lr"], group["capturable"]) for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            rate.fill_(group["lr"])
            group["lr"], group["capturable"] = rate, self._device.type == "cuda"
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(groups, before, strict=True):
                group["lr"], group["capturable"] = rate, capturable
