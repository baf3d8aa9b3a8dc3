"""Gradients that can be differentiated no further, and say so."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class _Gradients(torch.autograd.Function):
    """Hands gradients on as functions of ``sources``, of which they have no derivative."""

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], name: str, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise RuntimeError(
            f"{ctx.name} can be differentiated only once; for second derivatives use "
            f'{ctx.name}(..., backend="reference").'
        )


def once_differentiable(name: str) -> Callable[[Callable[..., tuple]], Callable[..., tuple]]:
    """Makes differentiating the gradients of ``function(ctx, saved tensors, *upstream)`` an error, never a silent zero.

    torch.autograd.function.once_differentiable takes no lists of gradients, and keeps silent where the upstream
    gradient needs none, as that of a loss. In what torch.compile differentiates ahead of time (inductor, aot_eager)
    PyTorch itself raises; its debugging backend "eager" does not.

    Args:
        name: Of the public function whose backward this is.
    """

    def decorate(function: Callable[..., tuple]) -> Callable[..., tuple]:
        @wraps(function)
        def differentiate(ctx: Any, *upstream: Any) -> tuple:
            saved = ctx.saved_tensors
            if torch.compiler.is_compiling():
                return function(ctx, saved, *upstream)
            with torch.no_grad():
                gradients = function(ctx, saved, *upstream)
            if not torch.is_grad_enabled():
                return gradients
            flat, spec = pytree.tree_flatten(gradients)
            given = [g for g in flat if g is not None]
            sources = [x for x in (*saved, *upstream) if isinstance(x, Tensor) and x.requires_grad]
            marked = iter(_Gradients.apply(given, name, *sources))
            return pytree.tree_unflatten([None if g is None else next(marked) for g in flat], spec)

        return differentiate

    return decorate
