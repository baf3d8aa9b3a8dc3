"""Losses of a batch: the task loss, and the weighted sum of all terms."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TASK_LOSSES = ("mse", "l1")


class LossTerm(NamedTuple):
    """One term of a model's loss.

    Attributes:
        value: Scalar.
        weight: Factor of ``value`` in the sum. A tensor must be a scalar; it gets no gradient.
        per_row: Whether ``value`` is a mean over the given rows. Ranks and micro-batches then weight it by their share
            of the global batch. False: ``value`` is the global batch's, the same on every rank, and its gradients
            averaged over the ranks are those of one process.
    """

    value: Tensor
    weight: float | Tensor = 1.0
    per_row: bool = True


def total_loss(terms: Mapping[str, LossTerm]) -> Tensor:
    """The sum of weight times value (Eq. 20 for l_task and nu l_con).

    Raises:
        ValueError: There are no terms.
    """
    total: Tensor | None = None
    for term in terms.values():
        weight = term.weight.detach() if isinstance(term.weight, Tensor) else term.weight
        value = weight * term.value
        total = value if total is None else total + value
    if total is None:
        raise ValueError("total_loss needs at least one term.")
    return total


def task_loss(logits: Tensor, labels: Tensor, kind: str = "mse") -> Tensor:
    """The loss of regression for one output, cross-entropy for several (SPEC 3); binary for several labels at once.

    Args:
        logits: (n, num_labels).
        labels: (n,); scores where num_labels is 1, class indices otherwise. Or (n, num_labels), floating point, for
            several outputs: 1 for every label that is present, 0 for the others; binary cross-entropy, mean over all.
        kind: Regression loss: "mse", mean squared error, or "l1", mean absolute error.

    Returns:
        Scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: The number of labels is wrong, class labels are not integers, or ``kind`` is unknown.
    """
    if kind not in TASK_LOSSES:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(TASK_LOSSES)}.")
    several = logits.shape[-1] > 1 and labels.shape == logits.shape
    if labels.dim() == 2 and len(labels) == 1 and not several:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, one a token, as DataCollatorWithFlattening makes them; give one "
            f"an utterance, ({len(logits)},), as CMSBertProcessor does."
        )
    if labels.shape != logits.shape[:1] and not several:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; it must be {tuple(logits.shape[:1])}.")
    if several and not labels.is_floating_point():
        raise ValueError(f"labels is {labels.dtype}; for several labels at once give floating-point 0 and 1.")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if several:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    if logits.shape[-1] == 1:
        error = F.mse_loss if kind == "mse" else F.l1_loss
        return error(logits[:, 0], labels.to(logits.dtype))
    if labels.is_floating_point():
        raise ValueError(f"labels is {labels.dtype}; with {logits.shape[-1]} classes give class indices as integers.")
    return F.cross_entropy(logits, labels)
