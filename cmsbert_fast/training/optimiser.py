"""The optimiser's parameter groups and learning-rate schedule."""

from typing import Any

import torch
from torch import nn

from cmsbert_fast.models.base import Classifier
from cmsbert_fast.training.settings import TrainingSettings


def parameter_groups(model: Classifier, settings: TrainingSettings) -> list[dict[str, Any]]:
    """AdamW's groups: weights of new modules, BERT's weights, and biases and LayerNorm, without decay.

    The model says what is new (:meth:`Classifier.from_bert`). A parameter group (:meth:`Classifier.parameter_group`)
    with a learning rate or weight decay of its own has groups of its own. Frozen parameters are in no group. "base_lr"
    is the highest learning rate of a group, which :func:`schedule` scales.
    """
    undecayed = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)}
    decays = {"new": settings.weight_decay, "bert": settings.bert_weight_decay, "undecayed": 0.0}
    special = ["", *(g for g in model.parameter_groups if g in settings.learning_rates.keys() | settings.weight_decays)]
    members: dict[tuple[str, str], list[nn.Parameter]] = {(kind, group): [] for group in special for kind in decays}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays_not = id(parameter) in undecayed or "bias" in name.rsplit(".", 1)[-1]
        kind = "undecayed" if decays_not else "bert" if model.from_bert(name) else "new"
        group = model.parameter_group(name)
        members[kind, group if group in special else ""].append(parameter)
    return [
        {
            "name": f"{kind}, {group}" if group else kind,
            "params": found,
            "weight_decay": 0.0 if kind == "undecayed" else settings.weight_decays.get(group, decays[kind]),
            "base_lr": settings.learning_rates.get(group, settings.learning_rate),
        }
        for (kind, group), found in members.items()
        if found
    ]


def restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Takes over the state of an optimiser, but for "base_lr", which checkpoints of earlier versions lack.

    Raises:
        ValueError, KeyError: It is the state of another optimiser.
    """
    rates = [group["base_lr"] for group in optimizer.param_groups]
    kinds = [{name: type(value) for name, value in group.items()} for group in optimizer.param_groups]
    _check_moments(optimizer, saved)
    optimizer.load_state_dict(saved)
    for group, known in zip(optimizer.param_groups, kinds, strict=True):
        for name, kind in known.items():
            if name != "base_lr" and type(group[name]) is not kind and not (kind is float and type(group[name]) is int):
                raise ValueError(f"its optimizer has a {name} that is a {type(group[name]).__name__}")
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["base_lr"] = rate


def _check_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Checks that the moments of a saved state have the shapes of the parameters they are of.

    Raises:
        ValueError: They have others.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    if len(numbers) != len(parameters):
        raise ValueError(f"its optimizer has {len(numbers)} parameters, not {len(parameters)}")
    for number, parameter in zip(numbers, parameters, strict=True):
        moments = saved["state"].get(number)
        if moments is None:  # before the first step
            continue
        shapes = [moments[name].shape for name in ("exp_avg", "exp_avg_sq")]
        if shapes != [parameter.shape] * 2 or moments["step"].numel() != 1:
            raise ValueError("its optimizer has moments of other shapes")


def schedule(step: int, total_steps: int, warmup: float, kind: str = "linear") -> float:
    """Learning-rate factor of a step (0, 1, ...): rises linearly to 1 during warm-up.

    Then it falls linearly to 0 ("linear") or stays ("constant").
    """
    warm = round(warmup * total_steps)
    if step < warm:
        return (step + 1) / warm
    return 1.0 if kind == "constant" else (total_steps - step) / max(1, total_steps - warm)
