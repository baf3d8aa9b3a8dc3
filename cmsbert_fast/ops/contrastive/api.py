"""Pairwise contrastive loss among two or three modalities (Eq. 17-19) with label smoothing (Eq. 23), as one operator.

:func:`pairwise_contrastive_loss` checks its arguments and chooses the backend. ``operator`` has the
computation in one process, ``distributed`` that of a process group; both are registered operators.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from cmsbert_fast import reference
from cmsbert_fast.ops.contrastive import distributed, operator
from cmsbert_fast.ops.contrastive.types import Call
from cmsbert_fast.ops.dispatch import choose_backend


def pairwise_contrastive_loss(
    linguistic: Tensor | None,
    visual: Tensor | None,
    acoustic: Tensor | None,
    labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    smoothing: float | None = 0.9,
    threshold: float = 0.1,
    *,
    group: "dist.ProcessGroup | None" = None,
    backend: str = "auto",
) -> Tensor:
    """Sum of the contrastive losses of every ordered pair of modalities (Eq. 19), with smoothed targets (Eq. 23).

    Each direction m -> m' is the mean over examples i of ``- sum_j t_ij log softmax_j(cos(z_mi, z_m'j) / temperature)``
    with ``t_ii = smoothing`` and ``1 - smoothing`` shared equally by S_i, the other examples whose label has the same
    sign and differs by at most ``threshold`` (and 1e-5, labels being float32). Where S_i is empty, or ``smoothing`` is
    None, the target is the example itself.

    Deterministic. Memory beyond inputs and gradients is O(n); but Triton's kernels sort more than 1,024 labelled rows
    of one process by label, and either pass then holds a copy of the embeddings, and "cpu" holds all similarities for
    the time of a forward pass with gradients while they fit into 192 MiB: up to 4,096 rows of three modalities.
    15 n^2 d multiply-adds with three modalities, forward and backward; in one process 12 on PyTorch, 9 on "cpu" where
    similarities are held. See ``docs/kernels/contrastive.md``.

    Args:
        linguistic, visual, acoustic: (n, d) embeddings, not normalised; any one may be None. float64 (not on Triton),
            float32, bfloat16 or float16; sums are accumulated in float32 at least.
        labels: (n,) floating point (regression) or integer (classes: S_i = same class). May be None if ``smoothing``
            is.
        temperature: positive number, or a 0-dim tensor on the embeddings' device, which then receives a gradient.
        smoothing: beta in [0, 1], or None for one-hot targets.
        threshold: delta >= 0; not used for classes.
        group: process group whose ranks each hold some rows (any number, even 0) of one global batch. Every rank must
            call. The value is the loss of the global batch on every rank, and the gradients are such that their
            *average* over ranks, as DistributedDataParallel takes it, is the gradient of the global loss. None: the
            rows are the whole batch.
        backend: see :mod:`cmsbert_fast.ops.dispatch`.

    Returns:
        The loss, 0-dim, float32 (float64 for float64 embeddings); 0 for n < 2.

    Raises:
        ValueError: fewer than two modalities, or shapes, dtypes, devices or numbers that do not fit together. On every
            rank, if those of the ranks do not fit one another.
    """
    given = [z for z in (linguistic, visual, acoustic) if z is not None]
    _validate(given, labels, temperature, smoothing, threshold)
    embeddings = _in_one_dtype(given)
    chosen = choose_backend("contrastive", embeddings[0], backend)
    if group is not None and dist.get_world_size(group) == 1:
        group = None
    if chosen == "reference":
        if group is not None:
            raise ValueError('The reference backend knows no process group; use backend="torch" or "auto".')
        numbers = (temperature, smoothing, threshold)
        return reference.pairwise_contrastive_loss(linguistic, visual, acoustic, labels, *numbers)
    call = _call(embeddings, labels, temperature, smoothing, threshold, chosen)
    return operator.loss_of_process(call) if group is None else distributed.loss_of_group(call, group)


def _in_one_dtype(embeddings: list[Tensor]) -> list[Tensor]:
    dtype = embeddings[0].dtype
    for z in embeddings[1:]:
        dtype = torch.promote_types(dtype, z.dtype)
    return [z.to(dtype) for z in embeddings]


def _call(
    embeddings: list[Tensor],
    labels: Tensor | None,
    temperature: float | Tensor,
    smoothing: float | None,
    threshold: float,
    backend: str,
) -> Call:
    if smoothing is None:
        labels, smoothing = None, 1.0
    if labels is not None and labels.dtype in (torch.bfloat16, torch.float16):
        labels = labels.float()
    if labels is not None and labels.dtype == torch.bool:
        labels = labels.long()
    if isinstance(temperature, Tensor):
        learned, fixed = temperature, 0.0
    else:
        learned, fixed = None, float(temperature)
    return Call(embeddings, labels, learned, fixed, smoothing, threshold, backend)


def _validate(
    embeddings: list[Tensor],
    labels: Tensor | None,
    temperature: float | Tensor,
    smoothing: float | None,
    threshold: float,
) -> None:
    if len(embeddings) < 2:
        raise ValueError("The contrastive loss compares modalities; give at least two of linguistic, visual, acoustic.")
    first = embeddings[0]
    if first.ndim != 2 or any(z.shape != first.shape for z in embeddings):
        shapes = ", ".join(str(tuple(z.shape)) for z in embeddings)
        raise ValueError(f"Embeddings must all have one shape (n, d), but these have {shapes}.")
    if not all(z.is_floating_point() for z in embeddings):
        raise ValueError("Embeddings must be of a floating-point dtype.")
    if any(z.device != first.device for z in embeddings):
        raise ValueError("Embeddings must all be on one device.")
    if smoothing is not None:
        if not 0.0 <= smoothing <= 1.0:
            raise ValueError(f"smoothing={smoothing} must lie in [0, 1]; None switches smoothing off.")
        if labels is None:
            raise ValueError("Label smoothing needs labels; pass them, or smoothing=None.")
        if labels.shape != first.shape[:1]:
            raise ValueError(f"labels must have the shape ({first.shape[0]},), but have {tuple(labels.shape)}.")
        if labels.device != first.device:
            raise ValueError(f"labels are on {labels.device}, but the embeddings on {first.device}.")
        if not threshold >= 0.0:
            raise ValueError(f"threshold={threshold} must not be negative.")
    if isinstance(temperature, Tensor):
        if temperature.ndim != 0 or not temperature.is_floating_point() or temperature.device != first.device:
            raise ValueError("A temperature tensor must be a floating-point scalar (0-dim) on the embeddings' device.")
    elif not temperature > 0.0:
        raise ValueError(f"temperature={temperature} must be positive.")
