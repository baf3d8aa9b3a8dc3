"""Dropout whose masks cost little on a CPU."""

import torch
from torch import Tensor, nn

from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.ops.dispatch import requested_backend


class Dropout(nn.Dropout):
    """torch.nn.Dropout with 16 random bits an element on CPUs, four elements a draw of PyTorch's generator.

    PyTorch's own draws a 64-bit number an element, one after the other: four times the time of this one. The
    probability is rounded to a multiple of 2^-16, and the scale is that of the rounded one, so that the mean is exact.
    With the backends "torch" and "reference" it is PyTorch's own.
    """

    def __init__(self, p: float, config: CMSBertConfig):
        super().__init__(p)
        self.config = config

    def forward(self, input: Tensor) -> Tensor:
        pointless = not self.training or self.p in (0, 1)
        if pointless or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        if requested_backend(self.config.backend) not in ("auto", "cpu"):
            return super().forward(input)
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        bits = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = bits[: input.numel()].view(input.shape) >= dropped - 2**15
        return (input * keep).mul_(2**16 / (2**16 - dropped))


def use_cheap_dropout(module: nn.Module, config: CMSBertConfig) -> None:
    """Replaces every torch.nn.Dropout below ``module``; it has no parameters, so that no checkpoint changes."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p, config))
