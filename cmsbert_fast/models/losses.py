"""From the model's outputs to the loss: the task (MSE or cross-entropy) and the sum with the contrastive loss."""

import torch
from torch import Tensor
from torch.nn import functional as F


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error for one output, cross-entropy for several (SPEC 3).

    Args:
        logits: (n, num_labels).
        labels: (n,); scores where num_labels is 1, class indices otherwise.

    Returns:
        Scalar in float32, or float64 where the logits are.

    Raises:
        ValueError: there is not one label an example, or class labels are not integers.
    """
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; it must be {tuple(logits.shape[:1])}.")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if logits.shape[-1] == 1:
        return F.mse_loss(logits[:, 0], labels.to(logits.dtype))
    if labels.is_floating_point():
        raise ValueError(f"labels is {labels.dtype}; with {logits.shape[-1]} classes give class indices as integers.")
    return F.cross_entropy(logits, labels)


def total_loss(task: Tensor, contrastive: Tensor, nu: Tensor) -> Tensor:
    """l = l_task + nu l_con (Eq. 20); nu carries no gradient."""
    return task + nu.detach() * contrastive
