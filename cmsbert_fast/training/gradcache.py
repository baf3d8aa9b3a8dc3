"""Gradient accumulation that keeps the whole batch's negatives (GradCache, Gao et al. 2021, arXiv:2101.06983).

A contrastive loss per micro-batch is not the loss of the batch: each example would see only the negatives of its
micro-batch. Here one loss takes the outputs of all micro-batches, but only one micro-batch's activations are held at a
time:

1. every micro-batch runs forward without a graph, and its outputs (embeddings, predictions) are kept;
2. the loss of all outputs gives their gradients;
3. every micro-batch runs forward again with the same random numbers, and backward from its part of those gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Outputs: TypeAlias = tuple[Tensor | None, ...] | Mapping[str, Tensor | None]


class GradCacheResult(NamedTuple):
    """What :func:`gradcache_backward` returns, all detached.

    Attributes:
        loss: Result of the ``loss`` function: a tensor, or a tuple whose first element was differentiated.
        outputs: The model's outputs for the whole batch, in the order of the micro-batches; a dict if ``forward``
            returns mappings, a tuple otherwise.
    """

    loss: Any
    outputs: Outputs


class _RandomState:
    """The state of the generators that dropout uses: the CPU's and every GPU's, since a model may span several."""

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
    """Adds the gradient of the whole batch's loss to ``.grad``, holding the activations of one micro-batch at a time.

    Up to rounding, the gradient is that of the loss of all outputs in one graph. Dropout masks are drawn per
    micro-batch, the same in both passes; one forward pass of the undivided batch would draw others. A single
    micro-batch runs forward once, as usual.

    Args:
        forward: Maps a micro-batch to the model's outputs: a tuple or a mapping of tensors whose first dimension is the
            micro-batch's rows, or None for an output that does not exist. Call the DistributedDataParallel wrapper
            in it, not the bare module. Both passes must compute the same; autocast belongs inside it.
        micro_batches: At least one. A rank without rows still needs one micro-batch (of no rows), or its peers wait
            forever.
        loss: Called once with the concatenated outputs: ``loss(*outputs)`` for tuples, ``loss(outputs)`` with a dict
            for mappings. Returns the scalar loss, or a tuple that starts with it. Group-aware terms
            (``pairwise_contrastive_loss(..., group=...)``) see the negatives of all ranks and micro-batches.
        scale: Applied to the loss before differentiation (``GradScaler.scale``).
        no_sync: Entered around all backward passes but the last (``DistributedDataParallel.no_sync``), so ranks reduce
            once.

    Returns:
        The (unscaled) loss and the outputs of the whole batch, detached.

    Raises:
        ValueError: No micro-batch, or an output that only some of them have.
    """
    if not micro_batches:
        raise ValueError("gradcache_backward needs at least one micro-batch.")
    scale = scale or (lambda total: total)
    if len(micro_batches) == 1:
        outputs = forward(micro_batches[0])
        outputs = dict(outputs) if isinstance(outputs, Mapping) else tuple(outputs)
        losses = loss(outputs) if isinstance(outputs, Mapping) else loss(*outputs)
        scale(_total(losses)).backward()
        return GradCacheResult(_detach(losses), _detach(outputs))
    outputs, sizes, states = _without_graph(forward, micro_batches)
    losses, gradients = _gradients_of_outputs(loss, outputs, scale)
    # The loss may draw random numbers too; the second pass must not shift the caller's stream.
    after = _RandomState()
    parts = {name: gradient.split(sizes) for name, gradient in gradients.items()}
    for i, (micro_batch, state) in enumerate(zip(micro_batches, states, strict=True)):
        state.restore()
        with no_sync() if i + 1 < len(micro_batches) else nullcontext():
            named = _named(forward(micro_batch))
            used = [(z, part[i]) for name, part in parts.items() if (z := named[name]) is not None and z.requires_grad]
            torch.autograd.backward([z for z, _ in used], [gradient for _, gradient in used])
    after.restore()
    return GradCacheResult(_detach(losses), _detach(outputs))


def _without_graph(
    forward: Callable[[Any], Outputs], micro_batches: Sequence[Any]
) -> tuple[Outputs, list[int], list[_RandomState]]:
    """The first pass: all outputs, concatenated; each micro-batch's number of rows and initial random state."""
    states, kept = [], []
    by_name = False
    with torch.no_grad():
        for micro_batch in micro_batches:
            states.append(_RandomState())
            outputs = forward(micro_batch)
            by_name = isinstance(outputs, Mapping)
            kept.append(_named(outputs))
    whole: dict[Any, Tensor | None] = {}
    for name in dict.fromkeys(name for named in kept for name in named):
        column = [z for named in kept if (z := named.get(name)) is not None]
        if 0 < len(column) < len(kept):
            raise ValueError(
                f"Output {name!r} of forward is None in {len(kept) - len(column)} of {len(kept)} micro-batches; return "
                "a tensor in all of them (with 0 rows if need be), or None in all."
            )
        whole[name] = torch.cat(column) if column else None
    sizes = [next(z.shape[0] for z in named.values() if z is not None) for named in kept]
    return (whole if by_name else tuple(whole.values())), sizes, states


def _gradients_of_outputs(
    loss: Callable[..., Any], outputs: Outputs, scale: Callable[[Tensor], Tensor]
) -> tuple[Any, dict[Any, Tensor]]:
    """The result of ``loss`` for all outputs, and the gradients of the outputs it depends on."""
    floating = {name: z for name, z in _named(outputs).items() if z is not None and z.is_floating_point()}
    leaves = [z.requires_grad_() for z in floating.values()]
    with torch.enable_grad():
        losses = loss(outputs) if isinstance(outputs, Mapping) else loss(*outputs)
        gradients = torch.autograd.grad(scale(_total(losses)), leaves, allow_unused=True)
    return losses, {name: g for name, g in zip(floating, gradients, strict=True) if g is not None}


def _named(outputs: Outputs) -> dict[Any, Tensor | None]:
    """Outputs by name, or by position for a tuple."""
    return dict(outputs) if isinstance(outputs, Mapping) else dict(enumerate(outputs))


def _total(losses: Any) -> Tensor:
    return losses[0] if isinstance(losses, tuple) else losses


def _detach(values: Any) -> Any:
    return tree_map_only(Tensor, Tensor.detach, values)
