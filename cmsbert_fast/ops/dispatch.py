"""Backend names, and which one runs: the only place where "auto" is decided.

========= ===================================================================
name      what it is
========= ===================================================================
reference the equations of the paper, literally (:mod:`cmsbert_fast.reference`)
torch     the best plain-PyTorch form; runs on any device and dtype
triton    fused Triton kernels; NVIDIA (sm_80 and later) and AMD GPUs (CDNA)
varlen    the same, but PyTorch's varlen attention serves the forward pass of attention above 64 tokens: packed, in 16
          bits, without dropout; NVIDIA GPUs
cpu       compiled C++ for the CPU
auto      the fastest of these that is correct for the device, dtype and shapes
========= ===================================================================

:data:`OPERATORS` says what each operator has of these; a name that an operator does not have means "torch" to it. Only
attention has "varlen", which means "triton" to the others.
"""

import os
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from cmsbert_fast.ops import capability
from cmsbert_fast.ops.autocast import autocast_dtype, cast_dtype

LAYER_ROWS = 512  # of layers in one call; above, Python's share is small, and scratch exceeds what a thread keeps
HALF_ROWS = 32  # likewise, in bfloat16, where oneDNN's products are as fast as ours or have a matrix unit
BACKENDS = ("reference", "torch", "triton", "varlen", "cpu", "auto")


class Operator(NamedTuple):
    """What an operator has besides plain PyTorch, and how it takes a backend's name.

    Attributes:
        compiled: Its compiled backends, best first. Each maps to a function of an example operand that returns why the
            backend cannot run, as half a sentence, or None.
        has_reference: Whether "reference" is a form of its own.
        required: Compiled backends that must run where they are named. The name of another is a permission, and "torch"
            runs where it cannot.
        casts: Whether autocast casts its operands; then the example counts as what it is cast to.
        unmeasured: Compiled backends that no device has timed: they run where they are named, never by "auto".
    """

    compiled: dict[str, Callable[[Tensor], str | None]]
    has_reference: bool = False
    required: Collection[str] = ()
    casts: bool = False
    unmeasured: Collection[str] = ()


def _attention_triton(query: Tensor) -> str | None:
    reason = capability.why_not_triton(query.device, query.dtype)
    if reason is None and query.shape[-1] > (largest := _largest_head()):
        return f"its kernels take heads of at most {largest}, not {query.shape[-1]}"
    return reason


@torch.compiler.assume_constant_result
def _largest_head() -> int:
    from cmsbert_fast.kernels.cms_attention import MAX_HEAD_SIZE  # imports Triton

    return MAX_HEAD_SIZE


def _attention_varlen(query: Tensor) -> str | None:
    return _attention_triton(query) or capability.why_not_varlen(query.device)


def _attention_cpu(query: Tensor) -> str | None:
    return capability.why_not_compiled(query.device, query.dtype, (torch.float32, torch.bfloat16))


def _any_triton(operand: Tensor) -> str | None:
    return capability.why_not_triton(operand.device, operand.dtype)


def _layer_triton(x: Tensor) -> str | None:
    reason = capability.why_not_triton(x.device, x.dtype)
    if reason is None and x.shape[-1] > (widest := _widest_row()):
        return f"its kernels take rows of at most {widest} numbers, not {x.shape[-1]}"
    return reason


@torch.compiler.assume_constant_result
def _widest_row() -> int:
    from cmsbert_fast.kernels.residual_norm import MAX_WIDTH  # imports Triton

    return MAX_WIDTH


def _lstm_cpu(frames: Tensor) -> str | None:
    return capability.why_not_compiled(frames.device, frames.dtype, (torch.float32,))


def _linear_cpu(x: Tensor) -> str | None:
    if reason := capability.why_not_compiled(x.device, x.dtype, (torch.float32, torch.bfloat16)):
        return reason
    rows = None if torch.is_grad_enabled() or torch.compiler.is_compiling() else x.shape[:-1].numel()
    reason = capability.why_not_own_products(x.dtype, rows)
    if reason is not None and (few := capability.rows_that_pay()):
        reason += f", but for {few[0]} to {few[-1]} rows of float32 without gradients"
    return reason


def _bert_layers_cpu(x: Tensor) -> str | None:
    dtype = cast_dtype(x, autocast_dtype(x.device))
    if x.dtype != torch.float32:
        return f"its rows are in float32, not in {x.dtype}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"its products are in float32 or bfloat16, not in {dtype}"
    if not 0 < x.shape[0] <= LAYER_ROWS:
        return f"with 0 or more than {LAYER_ROWS} rows it gains nothing"
    if dtype == torch.bfloat16:
        if not capability.has_bfloat16_vectors():
            return "this CPU has no bfloat16 instructions"
        reason = capability.why_not_own_products(dtype)
        if reason is not None and x.shape[0] > HALF_ROWS:
            return f"{reason}, in bfloat16 with more than {HALF_ROWS} rows"
    return _linear_cpu(x)


def _contrastive_cpu(embeddings: Tensor) -> str | None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)  # multiplied in float32
    return capability.why_not_compiled(embeddings.device, embeddings.dtype, dtypes)


def _dropout_cpu(values: Tensor) -> str | None:
    if values.device.type != "cpu":
        return f"its masks are made on the CPU, not on {values.device.type}"
    return "torch.compile fuses PyTorch's own" if torch.compiler.is_compiling() else None


OPERATORS = {
    "attention": Operator(
        {"triton": _attention_triton, "varlen": _attention_varlen, "cpu": _attention_cpu},
        has_reference=True,
        required=("triton", "varlen", "cpu"),
        casts=True,
        unmeasured=("varlen",),
    ),
    "contrastive": Operator({"triton": _any_triton, "cpu": _contrastive_cpu}, has_reference=True, required=("triton",)),
    "lstm": Operator({"cpu": _lstm_cpu}),
    "linear": Operator({"cpu": _linear_cpu}, casts=True),
    "bert_layers": Operator({"cpu": _bert_layers_cpu}),
    "dropout": Operator({"cpu": _dropout_cpu}),
    "bias_gelu": Operator({"triton": _any_triton}, has_reference=True, unmeasured=("triton",)),
    "residual_norm": Operator({"triton": _layer_triton}, has_reference=True, unmeasured=("triton",)),
}


def choose_backend(operator: str, example: Tensor, backend: str = "auto") -> str:
    """Which backend an operator runs for operands like the example: also the answer to "what did auto pick?".

    "auto" goes by device, dtype and shape, and for linear layers by whether gradients are enabled ("bert_layers",
    layers of BERT in one call, is asked for only where they are not): the first compiled backend that can run, else
    "torch". On a CPU that is the fastest at the lengths of the paper's corpora (BENCHMARKS.md); with thousands of
    frames an utterance "torch" overtakes compiled attention.

    Args:
        operator: A key of :data:`OPERATORS`.
        example: The operand that decides: attention's query, the contrastive loss's embeddings in their common dtype,
            the LSTM's frames, the input of linear layers, of dropout and of layers of BERT.
        backend: A name of :data:`BACKENDS`; "auto" asks the environment's ``CMSBERT_BACKEND`` first.

    Returns:
        A name of :data:`BACKENDS` other than "auto". Under torch.export always "torch", whose operators every runtime
        has.

    Raises:
        ValueError: the backend asked for is unknown or cannot run here; the message says why.
    """
    name = requested_backend(backend)
    if torch.compiler.is_exporting():
        return "torch"
    table = OPERATORS[operator]
    if name == "varlen" and name not in table.compiled:
        name = "triton"
    if name == "auto":
        for candidate in table.compiled:
            if candidate in table.unmeasured or (candidate == "triton" and example.device.type != "cuda"):
                continue  # Triton's interpreter runs only when asked for by name
            if why_not(operator, candidate, example) is None:
                return candidate
        return "torch"
    if name == "reference" and table.has_reference:
        return name
    if name not in table.compiled:
        return "torch"
    reason = why_not(operator, name, example)
    if reason is None:
        return name
    if name in table.required:
        raise ValueError(f"{_request(backend)} cannot run here: {reason}; {_advice(backend)}.")
    return "torch"


def why_not(operator: str, backend: str, example: Tensor) -> str | None:
    """Why a compiled backend that the operator has cannot run for operands like the example; None where it can."""
    table = OPERATORS[operator]
    dtype = cast_dtype(example, autocast_dtype(example.device)) if table.casts else example.dtype
    if dtype != example.dtype:
        example = example.new_empty(example.shape[-1:], dtype=dtype)  # one row: no answer depends on more
    return table.compiled[backend](example)


def report(operator: str, example: Tensor, backend: str = "auto") -> str:
    """What :func:`choose_backend` answers, and why it is not the device's compiled one where "auto" could not take it.

    For instance "cpu", or "torch (not cpu: no C++ compiler found)".

    Raises:
        ValueError: as :func:`choose_backend`.
    """
    name = choose_backend(operator, example, backend)
    best = "triton" if example.device.type == "cuda" else example.device.type
    if name != "torch" or requested_backend(backend) != "auto" or best not in OPERATORS[operator].compiled:
        return name
    reason = why_not(operator, best, example) or "no device has timed it yet"
    return f"{name} (not {best}: {reason})"


def requested_backend(backend: str = "auto") -> str:
    """Returns the backend asked for: the argument, or the environment's ``CMSBERT_BACKEND`` where that is "auto".

    Raises:
        ValueError: the name is none of :data:`BACKENDS`.
    """
    origin = "backend"
    if backend == "auto":
        backend = os.environ.get("CMSBERT_BACKEND", "auto")
        origin = "CMSBERT_BACKEND"
    if backend not in BACKENDS:
        raise ValueError(f"{origin}={backend!r} is not a backend; choose one of {', '.join(BACKENDS)}.")
    return backend


def _request(backend: str) -> str:
    """What :func:`requested_backend` obeyed, as the user wrote it."""
    name = requested_backend(backend)
    return f'backend="{name}"' if backend == name else f"CMSBERT_BACKEND={name} in the environment"


def _advice(backend: str) -> str:
    """What to do where that backend cannot run."""
    return 'use backend="auto" or "torch"' if backend != "auto" else "unset CMSBERT_BACKEND, or set it to auto or torch"
