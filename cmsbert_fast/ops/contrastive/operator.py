"""The registered operator ``cmsbert_fast::contrastive``: the loss of one process, and its derivative."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cmsbert_fast.ops.autograd import once_differentiable, register_operator
from cmsbert_fast.ops.contrastive.cpu import CpuEngine
from cmsbert_fast.ops.contrastive.engine import Engine
from cmsbert_fast.ops.contrastive.torch import TorchEngine
from cmsbert_fast.ops.contrastive.types import Call, Saved

# Those of Call.
ARGUMENTS = (
    "Tensor[] embeddings, Tensor? labels, Tensor? temperature, float fixed_temperature, float smoothing, "
    "float threshold, str backend"
)


def loss_of_process(call: Call) -> Tensor:
    """The loss of a batch that this process holds, 0-dim."""
    return torch.ops.cmsbert_fast.contrastive(*call)[0]


def engine_of(backend: str) -> Engine:
    if backend == "triton":
        from cmsbert_fast.ops.contrastive.triton import TritonEngine  # imports Triton

        return TritonEngine()
    return CpuEngine() if backend == "cpu" else TorchEngine()


def on_device_of(z: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, whatever device its tensors are on."""
    return torch.cuda.device(z.device) if z.is_cuda else nullcontext()


def exact(loss: Tensor, rows: int) -> Tensor:
    """0 where there is nothing to tell apart, which a difference of rounded sums only nearly is. NaN stays NaN."""
    return 0 * loss if rows == 1 else loss


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(*arguments)
    with on_device_of(call.embeddings[0]):
        loss, saved = engine_of(call.backend).forward(call)
    return exact(loss, call.rows), *saved


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(*arguments)
    modalities = len(call.embeddings)
    shapes = ((), (modalities * (modalities - 1), call.rows), (modalities, call.rows), (call.rows,))
    loss, lse, inverse_norm, weight = (call.embeddings[0].new_empty(shape, dtype=call.dtype) for shape in shapes)
    return loss, lse, inverse_norm, weight


def _backward(grad: Tensor, *arguments: Any) -> tuple[list[Tensor], Tensor]:
    call, saved = _split(arguments)
    with on_device_of(call.embeddings[0]):
        return engine_of(call.backend).backward(call, saved, grad)


def _backward_fake(grad: Tensor, *arguments: Any) -> tuple[list[Tensor], Tensor]:
    call, _ = _split(arguments)
    return [z.new_empty(z.shape) for z in call.embeddings], grad.new_empty((), dtype=call.dtype)


def _split(arguments: tuple[Any, ...]) -> tuple[Call, Saved]:
    count = len(Call._fields)
    return Call(*arguments[:count]), Saved(*arguments[count:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call, (_, *saved) = Call(*inputs), output
    ctx.options = (call.fixed_temperature, call.smoothing, call.threshold, call.backend)
    ctx.save_for_backward(*call.embeddings, call.labels, call.temperature, *saved)
    ctx.mark_non_differentiable(*saved)


@once_differentiable("pairwise_contrastive_loss")
def _differentiate(ctx: Any, saved: tuple[Any, ...], grad: Tensor, *_: Any) -> tuple[Any, ...]:
    *embeddings, labels, temperature, lse, inverse_norm, weight = saved
    gradients, temperature_gradient = torch.ops.cmsbert_fast.contrastive_backward(
        grad, embeddings, labels, temperature, *ctx.options, lse, inverse_norm, weight
    )
    tau = None if temperature is None else temperature_gradient.to(temperature.dtype)
    return gradients, None, tau, None, None, None, None


register_operator(
    f"contrastive({ARGUMENTS}) -> (Tensor loss, Tensor lse, Tensor inverse_norm, Tensor weight)",
    _forward,
    _forward_fake,
    setup_context=_setup_context,
    backward=_differentiate,
)
register_operator(
    f"contrastive_backward(Tensor grad, {ARGUMENTS}, Tensor lse, Tensor inverse_norm, Tensor weight)"
    " -> (Tensor[] gradients, Tensor temperature_gradient)",
    _backward,
    _backward_fake,
)
