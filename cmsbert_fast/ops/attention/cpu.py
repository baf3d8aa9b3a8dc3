"""The "cpu" backend of :func:`cmsbert_fast.cms_attention`: compiled C++ behind two registered operators.

``torch.ops.cmsbert_fast.cms_attention_cpu_forward`` and ``..._backward`` carry it through torch.compile and
checkpointing; :class:`_CMSAttention` ties them together for autograd. The library is that of
:mod:`cmsbert_fast.kernels.cpu.library`.
"""

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmsbert_fast.kernels.cpu import library as cpu_library
from cmsbert_fast.ops.autograd import once_differentiable
from cmsbert_fast.packing import Packing, pack_mask, uniform_packing

if TYPE_CHECKING:
    from cmsbert_fast.ops.attention.types import ModalityShift

_ACTIVATIONS = ("relu", "sigmoid", "tanh")  # numbered as in the C++


def cms_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visual: "ModalityShift | None",
    acoustic: "ModalityShift | None",
    packing: Packing | None,
    attention_mask: Tensor | None,
    activation: str,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """The "cpu" backend of :func:`cmsbert_fast.cms_attention`; the arguments are that function's, already checked.

    ``packing`` is None for the padded form, which is packed here. With dropout, one 64-bit seed is drawn from PyTorch's
    generator: recomputation under checkpointing draws the same.
    """
    seed = torch.randint(2**62, (1,), dtype=torch.int64) if dropout_p > 0 else None
    for_backward = torch.is_grad_enabled()
    options = (seed, activation, scale, dropout_p, for_backward)
    if packing is not None:
        shifts = (*_tensors(visual), *_tensors(acoustic))
        return _CMSAttention.apply(query, key, value, *shifts, packing.cu_seqlens, *options)

    rows, packing = _packing_of(attention_mask, query)

    def packed(tensor: Tensor, rows: Tensor | None) -> Tensor:
        flat = tensor.flatten(0, 1)
        return flat if rows is None else flat.index_select(0, rows)

    def packed_shift(modality: "ModalityShift | None") -> tuple[Tensor | None, ...]:
        if modality is None:
            return _tensors(None)
        frame_rows, frame_packing = _packing_of(modality.mask, modality.frames)
        return (
            packed(modality.token_gate, rows),
            packed(modality.frame_gate, frame_rows),
            packed(modality.frames, frame_rows),
            modality.weight,
            frame_packing.cu_seqlens,
        )

    qkv = (packed(x, rows) for x in (query, key, value))
    z = _CMSAttention.apply(*qkv, *packed_shift(visual), *packed_shift(acoustic), packing.cu_seqlens, *options)
    if rows is not None:
        z = z.new_zeros(query.shape[0] * query.shape[1], *query.shape[2:]).index_copy(0, rows, z)
    return z.unflatten(0, query.shape[:2])


def _packing_of(mask: Tensor | None, padded: Tensor) -> tuple[Tensor | None, Packing]:
    """Which rows of the flattened padded tensor are valid (None = all), and their packing."""
    if mask is None:
        return None, uniform_packing(padded.shape[0], padded.shape[1], padded.device)
    return pack_mask(mask)


def _tensors(modality: "ModalityShift | None") -> tuple[Tensor | None, ...]:
    return (None,) * 5 if modality is None else (*modality[:4], modality.cu_seqlens)


# ------------------------------------------------------------------ the call


_HEADS, _MODALITY = "3q", "15q"
_CALL = struct.Struct(f"={_HEADS * 4}5qd3qd9q{_MODALITY * 2}")  # ``Call`` of the C++; pointers are integers


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with unit stride along its last dimension."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _heads(tensor: Tensor | None) -> tuple[int, ...]:
    """``Heads`` of the C++."""
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), *tensor.stride()[:2])


def _modality(
    token_gate: Tensor, frame_gate: Tensor, frames: Tensor, weight: Tensor, cu_seqlens: Tensor, gradients: list[int]
) -> tuple[int, ...]:
    """``Modality`` of the C++."""
    tensors = (token_gate, frame_gate, frames, weight)
    placed = (number for x in tensors for number in (x.data_ptr(), x.stride(0)))
    return (*placed, cu_seqlens.data_ptr(), *frames.shape, *gradients)


# ------------------------------------------------------------------ registered operators

_FIELDS = ("token_gate", "frame_gate", "frames", "weight", "cu")
_ARGUMENTS = ", ".join(
    [
        "Tensor query, Tensor key, Tensor value",
        *(f"Tensor? {field}_{modality}" for modality in "va" for field in _FIELDS),
        "Tensor cu_seqlens, Tensor? seed, str activation, float scale, float dropout_p",
    ]
)
_LIBRARY = torch.library.Library("cmsbert_fast", "FRAGMENT")
_SAVED = "Tensor mean, Tensor shift, Tensor softmax"
_LIBRARY.define(f"cms_attention_cpu_forward({_ARGUMENTS}, bool for_backward) -> (Tensor out, {_SAVED})")
_LIBRARY.define(f"cms_attention_cpu_backward(Tensor d_out, {_SAVED}, bool[] wanted, {_ARGUMENTS}) -> Tensor[]")


def _outputs(
    query: Tensor, frames: tuple[Tensor | None, Tensor | None], for_backward: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Empty z (T, H, d_h), mean frames (T, K), shifts (H, T, d_h), of no elements if not kept, and softmax (H, T, 2).

    K is both modalities' sizes, each rounded up to 16; the shifts' d_h is too.
    """

    def rounded_up(size: int) -> int:
        return -(-size // 16) * 16

    rows, heads, head_size = query.shape
    columns = sum(rounded_up(x.shape[1]) for x in frames if x is not None)
    shifted = any(x is not None for x in frames)
    shift_size = rounded_up(head_size) if for_backward and shifted else 0
    mean, shift, softmax = (
        query.new_empty(shape, dtype=torch.float32)
        for shape in ((rows, columns), (heads, rows, shift_size), (heads, rows, 2))
    )
    return torch.empty_like(query, memory_format=torch.contiguous_format), mean, shift, softmax


def _gradients(wanted: list[bool], tensors: Sequence[Any]) -> list[Tensor]:
    """Empty gradients of query, key, value and of each modality's four tensors; of no elements where there is none."""
    result = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors[:3] if x is not None]
    for m in range(2):
        for i, tensor in enumerate(tensors[3 + 5 * m : 7 + 5 * m]):
            if tensor is None or (i >= 2 and not wanted[2 * m + i - 2]):
                result.append(tensors[0].new_empty(0))
            else:
                result.append(torch.empty_like(tensor, memory_format=torch.contiguous_format))
    return result


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *tensors, activation, scale, dropout_p, _ = arguments
    outputs = _forward_fake(*arguments)
    _launch("forward", tensors, activation, scale, dropout_p, *outputs)
    return outputs


def _backward(
    d_out: Tensor, mean: Tensor, shift: Tensor, softmax: Tensor, wanted: list[bool], *arguments: Any
) -> list[Tensor]:
    *tensors, activation, scale, dropout_p = arguments
    if mean.shape[1] and not shift.shape[2]:
        raise ValueError("the forward pass kept nothing for a backward pass; call it with for_backward=True.")
    gradients = _gradients(wanted, tensors)
    _launch("backward", tensors, activation, scale, dropout_p, None, mean, shift, softmax, d_out, gradients, wanted)
    return gradients


def _launch(
    name: str,
    tensors: list[Any],
    activation: str,
    scale: float,
    dropout_p: float,
    out: Tensor | None,
    mean: Tensor,
    shift: Tensor,
    softmax: Tensor,
    d_out: Tensor | None = None,
    gradients: list[Tensor] | None = None,
    wanted: list[bool] | None = None,
) -> None:
    query, key, value = alive = [_rows(x) for x in tensors[:3]]  # what the pointers point into
    modalities: list[int] = []
    for m in range(2):
        token_gate, frame_gate, frames, weight, cu_seqlens = tensors[3 + 5 * m : 8 + 5 * m]
        if frames is None:
            modalities += [0] * 15
            continue
        to = [0] * 4
        if gradients is not None and wanted is not None:
            asked = (True, True, *wanted[2 * m : 2 * m + 2])
            to = [x.data_ptr() if ask else 0 for x, ask in zip(gradients[3 + 4 * m : 7 + 4 * m], asked, strict=True)]
        frames, weight, cu_seqlens = _rows(frames), _rows(weight), cu_seqlens.contiguous()
        alive += [frames, weight, cu_seqlens]
        modalities += _modality(token_gate, frame_gate, frames, weight, cu_seqlens, to)
    cu_seqlens, seed = tensors[13].contiguous(), tensors[14]
    if d_out is not None:
        d_out = _rows(d_out)
    call = _CALL.pack(
        *_heads(query),
        *_heads(key),
        *_heads(value),
        *_heads(d_out),
        cu_seqlens.data_ptr(),
        cu_seqlens.shape[0] - 1,
        *query.shape,
        scale,
        _ACTIVATIONS.index(activation),
        query.dtype == torch.bfloat16,
        _address(seed),
        dropout_p,
        _address(out),
        *(map(_address, gradients[:3]) if gradients is not None else (0, 0, 0)),
        mean.data_ptr(),
        shift.data_ptr(),  # 0 where it has no elements
        softmax.data_ptr(),
        torch.get_num_threads(),
        cpu_library.parallel_loop(),
        *modalities,
    )
    if cpu_library.run(f"cms_attention_{name}", call) == 1:
        raise ValueError("cu_seqlens must start at 0, never fall, and end at or below the number of rows.")


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(arguments[0], (arguments[5], arguments[10]), arguments[-1])


def _backward_fake(
    d_out: Tensor, mean: Tensor, shift: Tensor, softmax: Tensor, wanted: list[bool], *arguments: Any
) -> list[Tensor]:
    return _gradients(wanted, arguments)


for _name, _run_it, _fake in (("forward", _forward, _forward_fake), ("backward", _backward, _backward_fake)):
    _LIBRARY.impl(f"cms_attention_cpu_{_name}", _run_it, "CPU")
    torch.library.register_fake(f"cmsbert_fast::cms_attention_cpu_{_name}", _fake, lib=_LIBRARY)


class _CMSAttention(torch.autograd.Function):
    """The two operators as one differentiable function; its arguments are theirs."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        out, *kept = torch.ops.cmsbert_fast.cms_attention_cpu_forward(*arguments)
        ctx.options = arguments[15:-1]
        ctx.save_for_backward(*arguments[:15], *kept)
        return out

    @staticmethod
    @once_differentiable("cms_attention")
    def backward(ctx: Any, saved: tuple[Any, ...], d_out: Tensor) -> tuple[Tensor | None, ...]:
        tensors, kept = saved[:15], saved[15:]
        wanted = ctx.needs_input_grad
        dq, dk, dv, *rest = torch.ops.cmsbert_fast.cms_attention_cpu_backward(
            d_out, *kept, [wanted[5], wanted[6], wanted[10], wanted[11]], *tensors, *ctx.options
        )
        gradients: list[Tensor | None] = [dq, dk, dv]
        for m in range(2):
            needed = wanted[3 + 5 * m : 7 + 5 * m]
            gradients += [x if need else None for x, need in zip(rest[4 * m : 4 * m + 4], needed, strict=True)]
            gradients.append(None)
        return (*gradients, *[None] * 6)
