"""Registration of PyTorch operators, and gradients that can be differentiated no further and say so."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_LIBRARY = torch.library.Library("cmsbert_fast", "FRAGMENT")


def register_operator(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    keys: tuple[str, ...] = ("CompositeExplicitAutograd",),
    differentiable: str | None = None,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Defines ``torch.ops.cmsbert_fast.<name>``, opaque to torch.compile.

    A call costs about 5 us, or 10 with ``backward``. Register one operator per hot path, and pass ``backward`` only
    where a torch.autograd.Function around the operator would not do.

    Args:
        schema: ``name(arguments) -> results``.
        implementation: What it does, called below autograd.
        fake: Its results' shapes and dtypes, as empty tensors.
        keys: The dispatch keys that the implementation serves; by default every device's.
        differentiable: The public function that gives gradients, where the operator does not: asked for one, it raises.
            PyTorch would only warn, and give none. In a torch.autograd.Function and compiled graphs gradients are off.
        setup_context, backward: Its derivative, as torch.library.register_autograd takes them.
    """
    name = schema.partition("(")[0]
    if differentiable is not None:
        implementation = _refusing_gradients(implementation, name, differentiable)
    _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    for key in keys:
        _LIBRARY.impl(name, implementation, key)
    qualified = f"cmsbert_fast::{name}"
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_LIBRARY)


def _refusing_gradients(implementation: Callable[..., Any], name: str, differentiable: str) -> Callable[..., Any]:
    @wraps(implementation)
    def guarded(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in _flat(arguments)):
            raise RuntimeError(
                f"{name} is not differentiable by itself; call {differentiable}, or the operator under torch.no_grad()."
            )
        return implementation(*arguments)

    return guarded


def _flat(arguments: Iterable[Any]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, list):
            yield from argument
        else:
            yield argument


class _Gradients(torch.autograd.Function):
    """Hands gradients on as functions of ``sources``, of which they have no derivative."""

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], error: str, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.error = error
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise RuntimeError(ctx.error)


def once_differentiable(
    name: str, instead: str | None = None
) -> Callable[[Callable[..., tuple]], Callable[..., tuple]]:
    """Makes differentiating the gradients of ``function(ctx, saved tensors, *upstream)`` an error, never a silent zero.

    torch.autograd.function.once_differentiable takes no lists of gradients, and does not raise where the upstream
    gradient needs none, as that of a loss. In what torch.compile differentiates ahead of time (inductor, aot_eager)
    PyTorch itself raises; its debugging backend "eager" does not.

    Args:
        name: Of the public function whose backward this is.
        instead: What has second derivatives; None = that function with ``backend="reference"``.
    """
    instead = instead or f'{name}(..., backend="reference")'
    error = f"{name} can be differentiated only once; for second derivatives use {instead}."

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
            marked = iter(_Gradients.apply(given, error, *sources))
            return pytree.tree_unflatten([None if g is None else next(marked) for g in flat], spec)

        return differentiate

    return decorate
