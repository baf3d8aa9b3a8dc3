"""Dropout that costs little on a CPU."""

import struct
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from cmsbert_fast import cpu_library
from cmsbert_fast.backends import requested_backend
from cmsbert_fast.configuration_cmsbert import CMSBertConfig


class Dropout(nn.Dropout):
    """torch.nn.Dropout, compiled for float32 and bfloat16 on CPUs (``kernels/cpu/dropout.cpp``).

    PyTorch's own draws a 64-bit number an element, one after the other, and keeps the mask; this one draws one seed,
    from which forward and backward pass compute the mask. The probability is rounded to a multiple of 2^-16, and the
    scale is that of the rounded one, so that the mean is exact. With the backends "torch" and "reference", without a
    compiler and within torch.compile it is PyTorch's own.
    """

    def __init__(self, p: float, config: CMSBertConfig):
        super().__init__(p)
        self.config = config

    def forward(self, input: Tensor) -> Tensor:
        pointless = not self.training or self.p in (0, 1)
        if pointless or torch.compiler.is_compiling() or not _is_wanted(input, self.config.backend):
            return super().forward(input)
        seed = int(torch.randint(2**62, (), dtype=torch.int64))
        return _Compiled.apply(input, seed, min(round(self.p * 2**16), 2**16 - 1))


def use_cheap_dropout(module: nn.Module, config: CMSBertConfig) -> None:
    """Replaces every torch.nn.Dropout below ``module``; it has no parameters, so that no checkpoint changes."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p, config))


def _is_wanted(input: Tensor, backend: str) -> bool:
    # A subclass, such as a fake tensor, may have no memory.
    if input.device.type != "cpu" or input.dtype not in (torch.float32, torch.bfloat16) or type(input) is not Tensor:
        return False
    return requested_backend(backend) in ("auto", "cpu") and cpu_library.why_not() is None


_CALL = struct.Struct("=8q")  # ``Dropout`` of the C++; pointers are integers


class _Compiled(Function):
    """x -> x * mask * 2^16 / (2^16 - dropped), contiguous; the mask is 0 with the probability dropped / 2^16."""

    @staticmethod
    def forward(x: Tensor, seed: int, dropped: int) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        call = _CALL.pack(
            x.data_ptr(),
            y.data_ptr(),
            x.numel(),
            x.dtype == torch.bfloat16,
            seed,
            dropped,
            torch.get_num_threads(),
            cpu_library.parallel_loop(),
        )
        cpu_library.run("dropout", call)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.mask = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Compiled.apply(grad, *ctx.mask), None, None
