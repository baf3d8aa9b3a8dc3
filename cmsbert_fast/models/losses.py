"""From a batch's rows to its loss: the task's loss, and the weighted sum of all terms."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TASK_LOSSES = ("mse", "l1")


class LossTerm(NamedTuple):
    """One summand of a model's loss.

    Attributes:
        value: Scalar.
        weight: Its factor in the sum. A tensor is a scalar and gets no gradient.
        per_row: Whether ``value`` is a mean over the rows given. Ranks and micro-batches then weight it by their share
            of the global batch. False: ``value`` belongs to the global batch, is the same on every rank, and its
            gradients are such that their average over ranks is the gradient of one process.
    """

    value: Tensor
    weight: float | Tensor = 1.0
    per_row: bool = True


def total_loss(terms: Mapping[str, LossTerm]) -> Tensor:
    """The sum of weight times value (Eq. 20 for the terms l_task and nu l_con).

    Raises:
        ValueError: there are no terms.
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
    """The loss of regression for one output, cross-entropy for several (SPEC 3).

    Args:
        logits: (n, num_labels).
        labels: (n,); scores where num_labels is 1, class indices otherwise.
        kind: What regression minimises: "mse", the mean squared error, or "l1", the mean absolute error.

    Returns:
        Scalar in float32, or float64 where the logits are.

    Raises:
        ValueError: there is not one label an example, class labels are not integers, or ``kind`` is unknown.
    """
    if kind not in TASK_LOSSES:
        raise ValueError(f"kind={kind!r} is no loss; choose one of {', '.join(TASK_LOSSES)}.")
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; it must be {tuple(logits.shape[:1])}.")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if logits.shape[-1] == 1:
        error = F.mse_loss if kind == "mse" else F.l1_loss
        return error(logits[:, 0], labels.to(logits.dtype))
    if labels.is_floating_point():
        raise ValueError(f"labels is {labels.dtype}; with {logits.shape[-1]} classes give class indices as integers.")
    return F.cross_entropy(logits, labels)
