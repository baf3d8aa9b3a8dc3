"""The "cpu" backend of :func:`cmsbert_fast.cms_attention`: compiled C++ behind two registered operators.

``torch.ops.cmsbert_fast.cms_attention_cpu_forward`` and ``..._backward`` carry it through torch.compile and
checkpointing; :class:`_CMSAttention` ties them together for autograd. The library is that of
:mod:`cmsbert_fast.kernels.cpu.library`.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmsbert_fast.kernels.cpu import library
from cmsbert_fast.kernels.cpu.attention_call import ABSENT, CALL, modality_layout, run_on_sequences
from cmsbert_fast.ops.attention.types import ACTIVATIONS, Call, ModalityShift, flatten, group
from cmsbert_fast.ops.autograd import once_differentiable, register_operator
from cmsbert_fast.packing import Packing, pack_mask, take_rows, uniform_packing


class Modality(NamedTuple):
    """One modality among the operators' arguments, packed. None in every place: it is absent."""

    token_gate: Any = None
    frame_gate: Any = None
    frames: Any = None
    weight: Any = None
    cu_seqlens: Any = None


class Arguments(NamedTuple):
    """The operators' arguments, grouped; or, in their places, which of them need a gradient, or the gradients."""

    query: Any
    key: Any
    value: Any
    visual: Modality
    acoustic: Modality
    cu_seqlens: Any = None
    seed: Any = None
    activation: Any = None
    scale: Any = None
    dropout_p: Any = None
    for_backward: Any = None  # of forward only

    @property
    def modalities(self) -> tuple[Modality, Modality]:
        return self.visual, self.acoustic


class ModalityGradients(NamedTuple):
    """Gradients of one modality; of no elements where there is none."""

    token_gate: Tensor
    frame_gate: Tensor
    frames: Tensor
    weight: Tensor


class Gradients(NamedTuple):
    """What backward returns, grouped."""

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    visual: ModalityGradients | None = None
    acoustic: ModalityGradients | None = None


class Saved(NamedTuple):
    """What forward keeps for backward, float32; K is both modalities' sizes, each rounded up to 16, as d_h is here."""

    mean: Tensor  # (T, K), the mean frames
    shift: Tensor  # (H, T, d_h); of no elements without a modality, and where no backward is to come
    softmax: Tensor  # (H, T, 2), each row's maximum and sum


def cms_attention(call: Call) -> Tensor:
    """The "cpu" backend of :func:`cmsbert_fast.cms_attention`; the padded form is packed here.

    With dropout, one 64-bit seed is drawn from PyTorch's generator: recomputation under checkpointing draws the same.
    """
    seed = torch.randint(2**62, (1,), dtype=torch.int64) if call.dropout_p > 0 else None
    options = (seed, call.activation, call.scale, call.dropout_p)
    if call.packing is not None:
        shifts = (*_modality(call.visual), *_modality(call.acoustic))
        return _attend(call.query, call.key, call.value, *shifts, call.packing.cu_seqlens, *options)
    rows, packing = _packing_of(call.attention_mask, call.query)
    query, key, value = (take_rows(x, rows) for x in (call.query, call.key, call.value))
    shifts = (*_packed_modality(call.visual, rows), *_packed_modality(call.acoustic, rows))
    z = _attend(query, key, value, *shifts, packing.cu_seqlens, *options)
    batch, length, *heads = call.query.shape
    if rows is not None:
        z = z.new_zeros(batch * length, *heads).index_copy(0, rows, z)
    return z.unflatten(0, (batch, length))


def _attend(*flat: Any) -> Tensor:
    """z; ``flat`` are the arguments of forward but the last."""
    if torch.is_grad_enabled():
        return _CMSAttention.apply(*flat, True)
    return torch.ops.cmsbert_fast.cms_attention_cpu_forward(*flat, False)[0]


def _modality(shift: ModalityShift | None) -> Modality:
    if shift is None:
        return Modality()
    return Modality(shift.token_gate, shift.frame_gate, shift.frames, shift.weight, shift.cu_seqlens)


def _packed_modality(shift: ModalityShift | None, rows: Tensor | None) -> Modality:
    """A modality of the padded form; ``rows`` are the tokens'."""
    if shift is None:
        return Modality()
    frame_rows, packing = _packing_of(shift.mask, shift.frames)
    return Modality(
        take_rows(shift.token_gate, rows),
        take_rows(shift.frame_gate, frame_rows),
        take_rows(shift.frames, frame_rows),
        shift.weight,
        packing.cu_seqlens,
    )


def _packing_of(mask: Tensor | None, padded: Tensor) -> tuple[Tensor | None, Packing]:
    """Which rows of the flattened padded tensor are valid (None = all), and their packing."""
    if mask is None:
        return None, uniform_packing(padded.shape[0], padded.shape[1], padded.device)
    return pack_mask(mask)


# ------------------------------------------------------------------ outputs


def _round_up(size: int) -> int:
    return -(-size // 16) * 16


def _outputs(arguments: Arguments) -> tuple[Tensor, Saved]:
    """Unwritten z (T, H, d_h), and what is kept for backward."""
    query = arguments.query
    rows, heads, head_size = query.shape
    sizes = [m.frames.shape[1] for m in arguments.modalities if m.frames is not None]
    columns = sum(_round_up(size) for size in sizes)
    shift_size = _round_up(head_size) if arguments.for_backward and sizes else 0
    saved = Saved(
        query.new_empty((rows, columns), dtype=torch.float32),
        query.new_empty((heads, rows, shift_size), dtype=torch.float32),
        query.new_empty((heads, rows, 2), dtype=torch.float32),
    )
    return _empty(query), saved


def _gradients(arguments: Arguments, wanted: Iterable[bool]) -> Gradients:
    """Unwritten gradients; ``wanted``: frames and weight of the visual modality, then of the acoustic one."""
    frames_v, weight_v, frames_a, weight_a = wanted
    return Gradients(
        _empty(arguments.query),
        _empty(arguments.key),
        _empty(arguments.value),
        _modality_gradients(arguments.visual, arguments.query, frames_v, weight_v),
        _modality_gradients(arguments.acoustic, arguments.query, frames_a, weight_a),
    )


def _modality_gradients(modality: Modality, query: Tensor, frames: bool, weight: bool) -> ModalityGradients:
    if modality.frames is None:
        return ModalityGradients(*(query.new_empty(0) for _ in ModalityGradients._fields))
    return ModalityGradients(
        _empty(modality.token_gate),
        _empty(modality.frame_gate),
        _empty(modality.frames) if frames else query.new_empty(0),
        _empty(modality.weight) if weight else query.new_empty(0),
    )


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


# ------------------------------------------------------------------ the call of the C++


def _address(tensor: Tensor | None) -> int:
    """0 for None, and where there are no elements."""
    return 0 if tensor is None else tensor.data_ptr()


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with unit stride along its last dimension."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _in_rows(modality: Modality) -> Modality:
    """The modality as the C++ takes it."""
    if modality.frames is None:
        return modality
    token_gate, frame_gate, frames, weight, cu_seqlens = modality
    return Modality(token_gate, frame_gate, _rows(frames), _rows(weight), cu_seqlens.contiguous())


def _heads_layout(tensor: Tensor | None) -> tuple[int, ...]:
    """``Heads`` of the C++."""
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), *tensor.stride()[:2])


def _modality_layout(modality: Modality, gradients: ModalityGradients | None) -> tuple[int, ...]:
    """``Modality`` of the C++."""
    if modality.frames is None:
        return ABSENT
    token_gate, frame_gate, *others = modality
    gates = (token_gate.data_ptr(), token_gate.stride(0), frame_gate.data_ptr(), frame_gate.stride(0))
    if gradients is None:
        return modality_layout(gates, *others)
    return modality_layout(gates, *others, tuple(map(Tensor.data_ptr, gradients)))


def _launch(
    name: str,
    arguments: Arguments,
    saved: Saved,
    *,
    out: Tensor | None = None,
    d_out: Tensor | None = None,
    gradients: Gradients | None = None,
) -> None:
    """Runs a function of the library, which writes to ``out`` and ``saved``, or to ``gradients``."""
    # Copies, where they are made, live until the call returns.
    query, key, value = (_rows(x) for x in (arguments.query, arguments.key, arguments.value))
    visual, acoustic = _in_rows(arguments.visual), _in_rows(arguments.acoustic)
    cu_seqlens = arguments.cu_seqlens.contiguous()
    d_out = None if d_out is None else _rows(d_out)
    to = gradients or Gradients()
    call = CALL.pack(
        *_heads_layout(query),
        *_heads_layout(key),
        *_heads_layout(value),
        *_heads_layout(d_out),
        cu_seqlens.data_ptr(),
        cu_seqlens.shape[0] - 1,
        *query.shape,
        arguments.scale,
        ACTIVATIONS.index(arguments.activation),
        query.dtype == torch.bfloat16,
        _address(arguments.seed),
        arguments.dropout_p,
        _address(out),
        _address(to.query),
        _address(to.key),
        _address(to.value),
        *map(Tensor.data_ptr, saved),
        torch.get_num_threads(),
        library.parallel_loop(),
        *_modality_layout(visual, to.visual),
        *_modality_layout(acoustic, to.acoustic),
    )
    run_on_sequences(name, call)


# ------------------------------------------------------------------ registered operators

_FIELDS = ("token_gate", "frame_gate", "frames", "weight", "cu")
_ARGUMENTS = ", ".join(
    [
        "Tensor query, Tensor key, Tensor value",
        *(f"Tensor? {field}_{modality}" for modality in "va" for field in _FIELDS),
        "Tensor cu_seqlens, Tensor? seed, str activation, float scale, float dropout_p",
    ]
)
_SAVED = "Tensor mean, Tensor shift, Tensor softmax"


def _forward(*flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arguments = Arguments(*group(flat, Modality))
    out, saved = _outputs(arguments)
    _launch("cms_attention_forward", arguments, saved, out=out)
    return out, *saved


def _forward_fake(*flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, saved = _outputs(Arguments(*group(flat, Modality)))
    return out, *saved


def _backward(
    d_out: Tensor, mean: Tensor, shift: Tensor, softmax: Tensor, wanted: list[bool], *flat: Any
) -> list[Tensor]:
    if mean.shape[1] and not shift.shape[2]:
        raise ValueError("the forward pass kept nothing for a backward pass; call it with for_backward=True.")
    arguments, saved = Arguments(*group(flat, Modality)), Saved(mean, shift, softmax)
    gradients = _gradients(arguments, wanted)
    _launch("cms_attention_backward", arguments, saved, d_out=d_out, gradients=gradients)
    return flatten(gradients)


def _backward_fake(
    d_out: Tensor, mean: Tensor, shift: Tensor, softmax: Tensor, wanted: list[bool], *flat: Any
) -> list[Tensor]:
    return flatten(_gradients(Arguments(*group(flat, Modality)), wanted))


register_operator(
    f"cms_attention_cpu_forward({_ARGUMENTS}, bool for_backward) -> (Tensor out, {_SAVED})",
    _forward,
    _forward_fake,
    keys=("CPU",),
    differentiable="cmsbert_fast.cms_attention",
)
register_operator(
    f"cms_attention_cpu_backward(Tensor d_out, {_SAVED}, bool[] wanted, {_ARGUMENTS}) -> Tensor[]",
    _backward,
    _backward_fake,
    keys=("CPU",),
)


class _CMSAttention(torch.autograd.Function):
    """The two operators as one differentiable function; its arguments are those of forward."""

    @staticmethod
    def forward(ctx: Any, *flat: Any) -> Tensor:
        out, *saved = torch.ops.cmsbert_fast.cms_attention_cpu_forward(*flat)
        *tensors, activation, scale, dropout_p, _ = flat
        ctx.options = (activation, scale, dropout_p)
        ctx.save_for_backward(*saved, *tensors)
        return out

    @staticmethod
    @once_differentiable("cms_attention")
    def backward(ctx: Any, saved: tuple[Any, ...], d_out: Tensor) -> tuple[Tensor | None, ...]:
        mean, shift, softmax, *tensors = saved
        needed = Arguments(*group(ctx.needs_input_grad, Modality))
        wanted = [need for m in needed.modalities for need in (m.frames, m.weight)]
        gradients = torch.ops.cmsbert_fast.cms_attention_cpu_backward(
            d_out, mean, shift, softmax, wanted, *tensors, *ctx.options
        )
        query, key, value, *shifts = group(gradients, ModalityGradients)
        modalities = (
            Modality(*(x if need else None for x, need in zip(shift, needs, strict=False)))  # cu_seqlens has none
            for shift, needs in zip(shifts, needed.modalities, strict=True)
        )
        return tuple(flatten(Arguments(query, key, value, *modalities)))
