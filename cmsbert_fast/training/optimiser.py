"""The optimiser's parameter groups and learning-rate schedule."""

from typing import Any

from torch import nn

from cmsbert_fast.training.settings import TrainingSettings


def parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """AdamW's groups: weights of new modules, BERT's weights, and biases and LayerNorm, without decay.

    New modules are those that BertModel lacks: gates, shifts, and everything outside the encoder.
    """
    undecayed = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)}
    new: list[nn.Parameter] = []
    bert: list[nn.Parameter] = []
    none: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if id(parameter) in undecayed or "bias" in name.rsplit(".", 1)[-1]:
            none.append(parameter)
        elif is_new(name):
            new.append(parameter)
        else:
            bert.append(parameter)
    groups = (("new", new, settings.weight_decay), ("bert", bert, settings.bert_weight_decay), ("undecayed", none, 0.0))
    return [{"name": n, "params": parameters, "weight_decay": d} for n, parameters, d in groups if parameters]


def is_new(parameter_name: str) -> bool:
    """Whether BertModel lacks this parameter of our models."""
    return not parameter_name.startswith("bert.") or ".gate_" in parameter_name or ".shift_" in parameter_name


def schedule(step: int, total_steps: int, warmup: float) -> float:
    """Learning-rate factor of a step (0, 1, ...): rises linearly to 1 during warm-up, then falls linearly to 0."""
    warm = round(warmup * total_steps)
    return (step + 1) / warm if step < warm else (total_steps - step) / max(1, total_steps - warm)
