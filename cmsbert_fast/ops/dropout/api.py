"""Dropout with cheap masks on CPUs."""

from typing import Protocol

import torch
from torch import Tensor, nn

from cmsbert_fast.ops.dispatch import choose_backend


class Options(Protocol):
    """What dropout reads of a model's configuration, at every call."""

    backend: str


class Dropout(nn.Dropout):
    """torch.nn.Dropout with 16 random bits an element on CPUs, four elements a draw of PyTorch's generator.

    PyTorch's own draws a 64-bit number an element, one after the other, and takes four times as long. The probability
    is rounded to a multiple of 2^-16, and the scale is that of the rounded one, so that the mean is exact. So do the
    backends "auto" and "cpu"; with any other it is PyTorch's own.

    Args:
        p: Probability that an element becomes 0.
        options: Holds the backend's name; see :mod:`cmsbert_fast.ops.dispatch`.
    """

    def __init__(self, p: float, options: Options):
        super().__init__(p)
        self.options = options

    def forward(self, input: Tensor) -> Tensor:
        pointless = not self.training or self.p in (0, 1)
        if pointless or choose_backend("dropout", input, self.options.backend) != "cpu":
            return super().forward(input)
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        bits = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = bits[: input.numel()].view(input.shape) >= dropped - 2**15
        return (input * keep).mul_(2**16 / (2**16 - dropped))


def use_cheap_dropout(module: nn.Module, options: Options) -> None:
    """Replaces every torch.nn.Dropout below ``module``; it has no parameters, so that no checkpoint changes."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p, options))
