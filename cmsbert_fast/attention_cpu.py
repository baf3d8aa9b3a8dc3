"""The "cpu" backend of :func:`cmsbert_fast.cms_attention`: compiled C++ behind two registered operators.

``torch.ops.cmsbert_fast.cms_attention_cpu_forward`` and ``..._backward`` carry it through torch.compile and
checkpointing; :class:`_CMSAttention` ties them together for autograd. The library is that of
:mod:`cmsbert_fast.cpu_library`.
"""

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmsbert_fast import cpu_library
from cmsbert_fast.once import once_differentiable
from cmsbert_fast.packing import Packing, pack_mask, uniform_packing

if TYPE_CHECKING:
    from cmsbert_fast.attention import ModalityShift

DTYPES = (torch.float32, torch.bfloat16)
_ACTIVATIONS = ("relu", "sigmoid", "tanh")  # numbered as in the C++


def why_not(query: Tensor) -> str | None:
    """Why the compiled code cannot serve queries like these, in half a sentence; None where it can.

    The first answer about a query it could serve compiles the library where the user's cache has none: a few seconds.
    """
    if query.device.type != "cpu":
        return f"its code runs on the CPU, not on {query.device.type}"
    if query.dtype not in DTYPES:
        return f"its code computes in float32 and bfloat16, not in {query.dtype}"
    return cpu_library.why_not()


def is_available(query: Tensor) -> bool:
    """Whether "auto" may pick this backend."""
    return why_not(query) is None


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
    options = (seed, activation, scale, dropout_p)
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


class _Modality(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for field in ("token_gate", "frame_gate", "frames", "weight")
          for name in (field, f"{field}_stride")),
        *((name, ctypes.c_int64) for name in ("cu_seqlens", "rows", "size", "d_token_gate", "d_frame_gate",
                                              "d_frames", "d_weight")),
    )  # fmt: skip


class _Heads(ctypes.Structure):
    _fields_ = (("data", ctypes.c_int64), ("row", ctypes.c_int64), ("head", ctypes.c_int64))


class _Call(ctypes.Structure):
    """``Call`` of the C++, pointers as integers."""

    _fields_ = (
        *((name, _Heads) for name in ("query", "key", "value", "d_out")),
        *((name, ctypes.c_int64) for name in ("cu_seqlens", "batch", "rows", "heads", "head_size")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("activation", "bfloat16", "seed")),
        ("dropout_p", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("out", "d_query", "d_key", "d_value", "mean", "softmax", "threads",
                                              "parallel")),
        ("modalities", _Modality * 2),
    )  # fmt: skip


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with unit stride along its last dimension."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _heads(tensor: Tensor) -> _Heads:
    return _Heads(tensor.data_ptr(), *tensor.stride()[:2])


def _modality(
    token_gate: Tensor | None,
    frame_gate: Tensor | None,
    frames: Tensor | None,
    weight: Tensor | None,
    cu_seqlens: Tensor | None,
    gradients: list[Tensor | None],
) -> _Modality:
    if frames is None:
        return _Modality()
    assert token_gate is not None
    assert frame_gate is not None
    assert weight is not None
    vectors = (token_gate.data_ptr(), token_gate.stride(0), frame_gate.data_ptr(), frame_gate.stride(0))
    matrices = (frames.data_ptr(), frames.stride(0), weight.data_ptr(), weight.stride(0))
    return _Modality(*vectors, *matrices, _address(cu_seqlens), *frames.shape, *map(_address, gradients))


def _run(name: str, call: _Call) -> None:
    if cpu_library.run(f"cms_attention_{name}", call) == 1:
        raise ValueError("cu_seqlens must start at 0, never fall, and end at or below the number of rows.")


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
_LIBRARY.define(f"cms_attention_cpu_forward({_ARGUMENTS}) -> (Tensor out, Tensor mean, Tensor softmax)")
_LIBRARY.define(
    f"cms_attention_cpu_backward(Tensor d_out, Tensor mean, Tensor softmax, bool[] wanted, {_ARGUMENTS}) -> Tensor[]"
)


def _outputs(query: Tensor, frames: tuple[Tensor | None, Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Empty z (T, H, d_h), mean frames (T, K), both modalities' sizes rounded up to 16, and softmax (H, T, 2)."""
    columns = sum(-(-x.shape[1] // 16) * 16 for x in frames if x is not None)
    mean = query.new_empty(query.shape[0], columns, dtype=torch.float32)
    softmax = query.new_empty(query.shape[1], query.shape[0], 2, dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), mean, softmax


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


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, activation, scale, dropout_p = arguments
    outputs = _outputs(tensors[0], (tensors[5], tensors[10]))
    _launch("forward", tensors, activation, scale, dropout_p, *outputs)
    return outputs


def _backward(d_out: Tensor, mean: Tensor, softmax: Tensor, wanted: list[bool], *arguments: Any) -> list[Tensor]:
    *tensors, activation, scale, dropout_p = arguments
    gradients = _gradients(wanted, tensors)
    _launch("backward", tensors, activation, scale, dropout_p, None, mean, softmax, d_out, gradients, wanted)
    return gradients


def _launch(
    name: str,
    tensors: list[Any],
    activation: str,
    scale: float,
    dropout_p: float,
    out: Tensor | None,
    mean: Tensor,
    softmax: Tensor,
    d_out: Tensor | None = None,
    gradients: list[Tensor] | None = None,
    wanted: list[bool] | None = None,
) -> None:
    query, key, value = (_rows(x) for x in tensors[:3])
    modalities = []
    alive = [query, key, value]  # what the pointers point into
    for m in range(2):
        token_gate, frame_gate, frames, weight, cu_seqlens = tensors[3 + 5 * m : 8 + 5 * m]
        if frames is not None:
            frames, weight, cu_seqlens = _rows(frames), _rows(weight), cu_seqlens.contiguous()
            alive += [frames, weight, cu_seqlens]
        to: list[Tensor | None] = [None] * 4
        if gradients is not None and wanted is not None:
            asked = (True, True, *wanted[2 * m : 2 * m + 2])
            to = [x if ask else None for x, ask in zip(gradients[3 + 4 * m : 7 + 4 * m], asked, strict=True)]
        modalities.append(_modality(token_gate, frame_gate, frames, weight, cu_seqlens, to))
    cu_seqlens, seed = tensors[13].contiguous(), tensors[14]
    if d_out is not None:
        d_out = _rows(d_out)
    call = _Call(
        _heads(query),
        _heads(key),
        _heads(value),
        _Heads() if d_out is None else _heads(d_out),
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
        softmax.data_ptr(),
        torch.get_num_threads(),
        cpu_library.parallel_loop(),
        (_Modality * 2)(*modalities),
    )
    _run(name, call)


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(arguments[0], (arguments[5], arguments[10]))


def _backward_fake(d_out: Tensor, mean: Tensor, softmax: Tensor, wanted: list[bool], *arguments: Any) -> list[Tensor]:
    return _gradients(wanted, arguments)


for _name, _run_it, _fake in (("forward", _forward, _forward_fake), ("backward", _backward, _backward_fake)):
    _LIBRARY.impl(f"cms_attention_cpu_{_name}", _run_it, "CPU")
    torch.library.register_fake(f"cmsbert_fast::cms_attention_cpu_{_name}", _fake, lib=_LIBRARY)


class _CMSAttention(torch.autograd.Function):
    """The two operators as one differentiable function; its arguments are theirs."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        out, mean, softmax = torch.ops.cmsbert_fast.cms_attention_cpu_forward(*arguments)
        ctx.options = arguments[15:]
        ctx.save_for_backward(*arguments[:15], mean, softmax)
        return out

    @staticmethod
    @once_differentiable("cms_attention")
    def backward(ctx: Any, saved: tuple[Any, ...], d_out: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, mean, softmax = saved
        wanted = ctx.needs_input_grad
        dq, dk, dv, *rest = torch.ops.cmsbert_fast.cms_attention_cpu_backward(
            d_out, mean, softmax, [wanted[5], wanted[6], wanted[10], wanted[11]], *tensors, *ctx.options
        )
        gradients: list[Tensor | None] = [dq, dk, dv]
        for m in range(2):
            needed = wanted[3 + 5 * m : 7 + 5 * m]
            gradients += [x if need else None for x, need in zip(rest[4 * m : 4 * m + 4], needed, strict=True)]
            gradients.append(None)
        return (*gradients, *[None] * 5)
