"""Gradient accumulation that keeps the whole batch's negatives (GradCache, Gao et al. 2021, arXiv:2101.06983).

A contrastive loss of micro-batches is not the loss of the batch: each example would see its micro-batch's negatives
only. Here the loss is taken of the outputs of all micro-batches together, and only the activations inside the model are
never alive for more than one:

1. every micro-batch runs forward without a graph, and its outputs (embeddings, predictions) are kept;
2. the loss of all outputs gives their gradients;
3. every micro-batch runs forward again, with the same random numbers, and backward from its part of those gradients.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

Outputs = tuple[Tensor | None, ...]


class GradCacheResult(NamedTuple):
    """What :func:`gradcache_backward` returns, all detached.

    Attributes:
        loss: what the ``loss`` function returned: a tensor, or a tuple of them whose first was differentiated.
        outputs: the model's outputs for the whole batch, in the order of the micro-batches.
    """

    loss: Any
    outputs: Outputs


class _RandomState:
    """The state of the generators that dropout draws from: the CPU's and every GPU's, for a model may span several."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)


def gradcache_backward(
    forward: Callable[[Any], Outputs],
    micro_batches: Sequence[Any],
    loss: Callable[..., Any],
    *,
    scale: Callable[[Tensor], Tensor] | None = None,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> GradCacheResult:
    """Adds to the parameters' ``.grad`` the gradient of the whole batch's loss, with the activations of one micro-batch
    at a time.

    The gradient is, to rounding, that of ``loss(*outputs)`` where ``outputs`` are those of all micro-batches in one
    graph. Dropout masks are as the micro-batches draw them, and the second pass draws what the first one drew; one
    forward of the undivided batch would draw others. A single micro-batch runs forward once, as usual.

    Args:
        forward: maps a micro-batch to the model's outputs, a tuple of tensors whose first dimension is the
            micro-batch's rows, or None where an output does not exist. Call the DistributedDataParallel wrapper in it,
            not the bare module. It must do the same in both passes but for the graph; autocast belongs inside it.
        micro_batches: at least one. A rank without rows still needs one micro-batch (of no rows), or its peers wait for
            ever.
        loss: called once with the concatenated outputs; returns the scalar loss, or a tuple whose first element it is.
            Its group-aware terms (``pairwise_contrastive_loss(..., group=...)``) see the negatives of all ranks and
            micro-batches.
        scale: applied to the loss before differentiation (``GradScaler.scale``).
        no_sync: entered around all backward passes but the last (``DistributedDataParallel.no_sync``), so that ranks
            reduce once.

    Returns:
        The (unscaled) loss and the outputs of the whole batch, detached.

    Raises:
        ValueError: no micro-batch, or an output that only some of them have.
    """
    if not micro_batches:
        raise ValueError("gradcache_backward needs at least one micro-batch.")
    scale = scale or (lambda total: total)
    if len(micro_batches) == 1:
        outputs = forward(micro_batches[0])
        losses = loss(*outputs)
        scale(_total(losses)).backward()
        return GradCacheResult(_detach(losses), _detach(tuple(outputs)))

    states, kept = [], []
    with torch.no_grad():
        for micro_batch in micro_batches:
            states.append(_RandomState())
            kept.append(forward(micro_batch))
    columns = list(zip(*kept, strict=True))
    for i, column in enumerate(columns):
        absent = sum(z is None for z in column)
        if 0 < absent < len(column):
            raise ValueError(
                f"Output {i} of forward is None in {absent} of {len(column)} micro-batches; return a tensor in all of "
                "them (of no rows where there are none), or None in all."
            )
    whole = [None if column[0] is None else torch.cat(column) for column in columns]
    del columns
    sizes = [next(z.shape[0] for z in outputs if z is not None) for outputs in kept]
    del kept
    leaves = [z.requires_grad_() for z in whole if z is not None and z.is_floating_point()]
    with torch.enable_grad():
        losses = loss(*whole)
        gradients = torch.autograd.grad(scale(_total(losses)), leaves, allow_unused=True)
    # Loss functions may draw random numbers too; what follows must not shift the stream that the caller sees next.
    after = _RandomState()
    parts = [gradient.split(sizes) if gradient is not None else [None] * len(sizes) for gradient in gradients]
    for i, (micro_batch, state) in enumerate(zip(micro_batches, states, strict=True)):
        state.restore()
        with no_sync() if i + 1 < len(micro_batches) else nullcontext():
            outputs = forward(micro_batch)
            differentiable = [z for z in outputs if z is not None and z.is_floating_point()]
            used = [
                (z, part[i])
                for z, part in zip(differentiable, parts, strict=True)
                if part[i] is not None and z.requires_grad
            ]
            torch.autograd.backward([z for z, _ in used], [gradient for _, gradient in used])
    after.restore()
    return GradCacheResult(_detach(losses), _detach(tuple(whole)))


def _total(losses: Any) -> Tensor:
    return losses[0] if isinstance(losses, tuple) else losses


def _detach(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_detach(item) for item in value)
    return value.detach() if isinstance(value, Tensor) else value
