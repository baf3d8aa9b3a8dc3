"""The registered operators of one process: ``cmsbert_fast::contrastive`` with its derivative, and
``cmsbert_fast::contrastive_at_once``, which computes gradients beside the loss: on CPUs, up to 192 MiB of tiles.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cmsbert_fast.ops.autocast import autocast_dtype
from cmsbert_fast.ops.autograd import once_differentiable, register_operator
from cmsbert_fast.ops.contrastive.cpu import CpuEngine, fits_at_once
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
    if call.backend == "cpu" and call.rows and fits_at_once(call) and wants_gradients(call):
        return torch.ops.cmsbert_fast.contrastive_at_once(*call)[0]
    return torch.ops.cmsbert_fast.contrastive(*call)[0]


def wants_gradients(call: Call) -> bool:
    """Whether the loss is to be differentiated."""
    given = [*call.embeddings, *([] if call.temperature is None else [call.temperature])]
    return torch.is_grad_enabled() and any(z.requires_grad for z in given)


def engine_of(backend: str) -> Engine:
    if backend == "triton":
        from cmsbert_fast.ops.contrastive.triton import TritonEngine  # imports Triton

        return TritonEngine()
    return CpuEngine() if backend == "cpu" else TorchEngine()


@contextmanager
def undisturbed(z: Tensor) -> Iterator[None]:
    """Without autocast, which rounds PyTorch's products, and on z's device, as Triton launches on the current one."""
    device = torch.cuda.device(z.device) if z.is_cuda else nullcontext()
    autocast = torch.autocast(z.device.type, enabled=False) if autocast_dtype(z.device) else nullcontext()
    with device, autocast:
        yield


def exact(loss: Tensor, rows: int) -> Tensor:
    """0 where there is nothing to tell apart, which a difference of rounded sums only nearly is. NaN stays NaN."""
    return 0 * loss if rows == 1 else loss


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(*arguments)
    with undisturbed(call.embeddings[0]):
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
    with undisturbed(call.embeddings[0]):
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


# ------------------------------------------------------------------ gradients beside the loss


def keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    """``setup_context`` of an operator that gives (loss, gradients of each modality, temperature's gradient)."""
    embeddings, _, temperature, *_ = inputs
    _, gradients, temperature_gradient = output
    ctx.dtype = embeddings[0].dtype
    ctx.temperature_dtype = None if temperature is None else temperature.dtype
    ctx.inputs = len(inputs)
    ctx.set_materialize_grads(False)  # or the gradients of the gradients would be made of zeros
    ctx.save_for_backward(temperature_gradient, *gradients)


@once_differentiable("pairwise_contrastive_loss")
def scale_gradients(ctx: Any, saved: tuple[Any, ...], grad: Tensor, *_: Any) -> tuple[Any, ...]:
    """``backward`` of such an operator: nothing is left but the chain rule."""
    temperature_gradient, *gradients = saved
    scaled = [(g * grad).to(ctx.dtype) for g in gradients]
    tau = None if ctx.temperature_dtype is None else (temperature_gradient * grad).to(ctx.temperature_dtype)
    return scaled, None, tau, *[None] * (ctx.inputs - 3)


def _at_once(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    call = Call(*arguments)
    with undisturbed(call.embeddings[0]):
        loss, gradients, temperature_gradient = CpuEngine().loss_and_gradients(call)
    return exact(loss, call.rows), gradients, temperature_gradient


def _at_once_fake(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    call = Call(*arguments)
    loss, temperature_gradient = (call.embeddings[0].new_empty((), dtype=call.dtype) for _ in range(2))
    return loss, [z.new_empty(z.shape, dtype=call.dtype) for z in call.embeddings], temperature_gradient


register_operator(
    f"contrastive_at_once({ARGUMENTS}) -> (Tensor loss, Tensor[] gradients, Tensor temperature_gradient)",
    _at_once,
    _at_once_fake,
    setup_context=keep_gradients,
    backward=scale_gradients,
)
