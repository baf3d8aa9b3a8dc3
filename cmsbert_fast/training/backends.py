"""Backend of CMS attention on a run's device, and whether bfloat16 is fast there."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from cmsbert_fast.ops import dispatch
from cmsbert_fast.ops.capability import has_fast_bfloat16
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.settings import TrainingSettings


def chosen_backend(settings: TrainingSettings, device: torch.device, config: PreTrainedConfig | None = None) -> str:
    """The backend of CMS attention in a run; without a configuration, for heads as wide as BERT's.

    Raises:
        UsageError: The requested backend cannot run here.
    """
    try:
        return dispatch.choose_backend("attention", _query(settings, device, config), settings.backend)
    except ValueError as error:
        raise UsageError(str(error)) from None


def backend_report(settings: TrainingSettings, device: torch.device) -> str:
    """One line: the backend of CMS attention, and why "auto" found no compiled one, if so."""
    return f"CMS attention: {dispatch.report('attention', _query(settings, device), settings.backend)}"


def precision_warning(settings: TrainingSettings, device: torch.device) -> str | None:
    """A warning if the requested precision is slow on this device, else None."""
    if settings.precision != "bf16" or has_fast_bfloat16(device):
        return None
    return (
        "warning: this CPU has no bfloat16 instructions, so --precision bf16 takes many times as long as float32; "
        "train with --precision fp32."
    )


def _query(settings: TrainingSettings, device: torch.device, config: PreTrainedConfig | None = None) -> Tensor:
    head_size = 64 if config is None else config.hidden_size // config.num_attention_heads
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    return torch.empty(0, 1, head_size, dtype=dtype, device=device)
