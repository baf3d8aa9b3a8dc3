"""Backends of a run's operators on its device."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from cmsbert_fast.models.registry import VARIANTS
from cmsbert_fast.ops import dispatch
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TrainingSettings

_TITLES = {
    "attention": "CMS attention",
    "contrastive": "contrastive loss",
    "lstm": "LSTM",
    "linear": "linear layers",
    "dropout": "dropout",
}
_EVERYWHERE = ("linear",)  # said in the report, but nothing that tells results of one system apart


def chosen_backend(
    settings: TrainingSettings, device: torch.device, config: PreTrainedConfig | None = None
) -> str | None:
    """The backend of the variant's own operators in a run; without a configuration, for heads as wide as BERT's.

    Returns:
        Its name; several names, joined by ", ", where operators differ; None for a variant without operators.

    Raises:
        UsageError: The requested backend cannot run here.
    """
    try:
        found = [
            dispatch.choose_backend(operator, _example(operator, settings, device, config), settings.backend)
            for operator in _operators(settings)
            if operator not in _EVERYWHERE
        ]
    except ValueError as error:
        raise UsageError(str(error)) from None
    return ", ".join(dict.fromkeys(found)) or None


def backend_report(runs: Sequence[TrainingSettings], device: torch.device) -> list[str]:
    """A line for each operator of the runs: its backend, and why "auto" found no compiled one, if so."""
    users: dict[str, TrainingSettings] = {}
    for settings in runs:
        for operator in _operators(settings):
            users.setdefault(operator, settings)
    return [
        f"{_TITLES[operator]}: {dispatch.report(operator, _example(operator, settings, device), settings.backend)}"
        for operator, settings in users.items()
    ]


def _operators(settings: TrainingSettings) -> Sequence[str]:
    return VARIANTS[settings.variant].model_class.operators


def _example(
    operator: str, settings: TrainingSettings, device: torch.device, config: PreTrainedConfig | None = None
) -> Tensor:
    """What decides about an operator's backend: its dtype, device and, of attention, the size of a head."""
    dtype = torch.float32  # autocast leaves frames and embeddings in it
    if dispatch.OPERATORS[operator].casts and settings.precision == "bf16":
        dtype = torch.bfloat16
    head_size = 64 if config is None else config.hidden_size // config.num_attention_heads
    return torch.empty(0, 1, head_size, dtype=dtype, device=device)
