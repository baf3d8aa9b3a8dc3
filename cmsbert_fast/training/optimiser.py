"""The optimiser's parameter groups and learning-rate schedule."""

from typing import Any

import torch
from torch import nn

from cmsbert_fast.models.base import Classifier
from cmsbert_fast.training.settings import TrainingSettings


def parameter_groups(model: Classifier, settings: TrainingSettings) -> list[dict[str, Any]]:
    """AdamW's groups: weights of new modules, BERT's weights, and biases and LayerNorm, without decay.

    The model says what is new (:meth:`Classifier.parameter_group`). Frozen parameters are in no group. "base_lr" is the
    highest learning rate of a group, which :func:`schedule` scales.
    """
    undecayed = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)}
    decays = {"new": settings.weight_decay, "bert": settings.bert_weight_decay, "undecayed": 0.0}
    members: dict[str, list[nn.Parameter]] = {group: [] for group in decays}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays_not = id(parameter) in undecayed or "bias" in name.rsplit(".", 1)[-1]
        members["undecayed" if decays_not else model.parameter_group(name)].append(parameter)
    return [
        {"name": group, "params": members[group], "weight_decay": decay, "base_lr": settings.learning_rate}
        for group, decay in decays.items()
        if members[group]
    ]


def restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Takes over the state of an optimiser, but for "base_lr", which checkpoints of earlier versions lack."""
    rates = [group["base_lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["base_lr"] = rate


def schedule(step: int, total_steps: int, warmup: float) -> float:
    """Learning-rate factor of a step (0, 1, ...): rises linearly to 1 during warm-up, then falls linearly to 0."""
    warm = round(warmup * total_steps)
    return (step + 1) / warm if step < warm else (total_steps - step) / max(1, total_steps - warm)
