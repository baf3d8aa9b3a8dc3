"""The "triton" backend of :func:`cmsbert_fast.cms_attention`: fused kernels behind two registered operators.

``torch.ops.cmsbert_fast.cms_attention_forward`` and ``..._backward`` carry the kernels through torch.compile, CUDA
graphs and checkpointing; :class:`_CMSAttention` ties them together for autograd. By itself the forward operator is not
differentiable and says so when asked for a gradient: call :func:`cmsbert_fast.cms_attention`. Nothing here launches on
import.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from cmsbert_fast.ops.attention.types import Call, ModalityShift, flatten, group
from cmsbert_fast.ops.autograd import once_differentiable, register_operator
from cmsbert_fast.ops.capability import HAS_TRITON

if HAS_TRITON:
    from cmsbert_fast.kernels import cms_attention as kernels


class Modality(NamedTuple):
    """One modality among the operators' arguments. None in every place: it is absent."""

    token_gate: Any = None
    frame_gate: Any = None
    frames: Any = None
    weight: Any = None
    cu: Any = None
    mask: Any = None


class Arguments(NamedTuple):
    """The operators' arguments, grouped; or, in their places, which of them need a gradient, or the gradients."""

    query: Any
    key: Any
    value: Any
    visual: Modality
    acoustic: Modality
    cu_seqlens: Any = None
    mask: Any = None
    seed: Any = None
    max_length: Any = None
    max_length_v: Any = None
    max_length_a: Any = None
    activation: Any = None
    scale: Any = None
    dropout_p: Any = None
    varlen: Any = None

    @property
    def modalities(self) -> tuple[Modality, Modality]:
        return self.visual, self.acoustic


def cms_attention(call: Call, varlen: bool = False) -> Tensor:
    """The "triton" and "varlen" backends of :func:`cmsbert_fast.cms_attention`.

    With dropout, one 64-bit seed is drawn from PyTorch's generator of the device into a tensor on the device: replays
    of a CUDA graph draw anew, recomputation under checkpointing the same.
    """
    query, visual, acoustic, packing = call.query, call.visual, call.acoustic, call.packing
    if query.is_cuda and packing is not None:
        assert_longest(packing.cu_seqlens, packing.max_length, "max_seqlen")
        for name, shift in (("visual", visual), ("acoustic", acoustic)):
            if shift is not None and shift.cu_seqlens is not None:
                assert_longest(shift.cu_seqlens, _longest(shift), f"{name}.max_length")
    seed = torch.randint(2**62, (1,), dtype=torch.int64, device=query.device) if call.dropout_p > 0 else None
    return _CMSAttention.apply(
        query,
        call.key,
        call.value,
        *_modality(visual),
        *_modality(acoustic),
        None if packing is None else packing.cu_seqlens,
        call.attention_mask,
        seed,
        query.shape[1] if packing is None else packing.max_length,
        _longest(visual),
        _longest(acoustic),
        call.activation,
        call.scale,
        call.dropout_p,
        varlen,
    )


_asserted: "WeakTensorKeyDictionary" = WeakTensorKeyDictionary()


def assert_longest(cu_seqlens: Tensor, max_length: int, name: str) -> None:
    """Fails on the device, without waiting for it, where a sequence is longer than ``max_length``: its last rows would
    have no tile. Once for each tensor, so that the layers of a model share it: four small launches for each of the at
    most three tensors of a batch.
    """
    if torch.compiler.is_compiling():
        return
    known = _asserted.get(cu_seqlens)
    if known is not None and known[0] == cu_seqlens._version and known[1] <= max_length:
        return
    torch._assert_async(cu_seqlens.diff().max() <= max_length, f"{name}={max_length}: a sequence is longer")
    _asserted[cu_seqlens] = (cu_seqlens._version, max_length)


def _modality(shift: ModalityShift | None) -> Modality:
    if shift is None:
        return Modality()
    return Modality(shift.token_gate, shift.frame_gate, shift.frames, shift.weight, shift.cu_seqlens, shift.mask)


def _longest(shift: ModalityShift | None) -> int:
    if shift is None:
        return 0
    return shift.frames.shape[1] if shift.max_length is None else shift.max_length


# ------------------------------------------------------------------ registered operators

_ARGUMENTS = ", ".join(
    [
        "Tensor query, Tensor key, Tensor value",
        *(f"Tensor? {field}_{modality}" for modality in "va" for field in Modality._fields),
        "Tensor? cu_seqlens, Tensor? mask, Tensor? seed",
        "SymInt max_length, SymInt max_length_v, SymInt max_length_a, str activation, float scale, float dropout_p, "
        "bool varlen=False",
    ]
)
N_OPTIONS = 7  # arguments that are no tensors
_SAVED = "Tensor mean, Tensor shift, Tensor lse"


def _call(flat: Sequence[Any]) -> "kernels.Call":
    """The operators' flat arguments as the kernels take them."""
    arguments = Arguments(*group(flat, Modality))
    lengths = arguments.max_length_v, arguments.max_length_a
    visual, acoustic = (
        None if modality.frames is None else kernels.Modality(*modality, length)
        for modality, length in zip(arguments.modalities, lengths, strict=True)
    )
    return kernels.Call(
        arguments.query,
        arguments.key,
        arguments.value,
        visual,
        acoustic,
        arguments.cu_seqlens,
        arguments.mask,
        arguments.max_length,
        arguments.activation,
        arguments.scale,
        arguments.dropout_p,
        arguments.seed,
        arguments.varlen,
    )


def _forward(*flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = _call(flat)
    with torch.cuda.device_of(call.query):  # Triton launches on the current device
        out, saved = kernels.forward(call)
    return out, *saved


def _forward_fake(*flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, saved = kernels.empty_outputs(_call(flat))
    return out, *saved


def _backward(
    d_out: Tensor,
    out: Tensor | None,
    mean: Tensor,
    shift: Tensor,
    lse: Tensor,
    wanted_v: bool,
    wanted_a: bool,
    *flat: Any,
) -> list[Tensor]:
    saved = kernels.Saved(mean, shift, lse)
    with torch.cuda.device_of(d_out):
        return kernels.backward(_call(flat), d_out, out, saved, (wanted_v, wanted_a)).flat


def _backward_fake(
    d_out: Tensor,
    out: Tensor | None,
    mean: Tensor,
    shift: Tensor,
    lse: Tensor,
    wanted_v: bool,
    wanted_a: bool,
    *flat: Any,
) -> list[Tensor]:
    return kernels.empty_gradients(_call(flat), (wanted_v, wanted_a)).flat


_KEYS = ("CUDA", "CPU")  # the CPU only ever by interpretation
register_operator(
    f"cms_attention_forward({_ARGUMENTS}) -> (Tensor out, {_SAVED})",
    _forward,
    _forward_fake,
    keys=_KEYS,
    differentiable="cmsbert_fast.cms_attention",
)
register_operator(
    f"cms_attention_backward(Tensor d_out, Tensor? out, {_SAVED}, bool frames_wanted_v, bool frames_wanted_a, "
    f"{_ARGUMENTS}) -> Tensor[]",
    _backward,
    _backward_fake,
    keys=_KEYS,
)


class _CMSAttention(torch.autograd.Function):
    """The two operators as one differentiable function; its arguments are theirs.

    Not registered as the operator's derivative: backward skips what ``needs_input_grad`` does not ask for, and the
    saved mean, shift and log-sum-exp must not be differentiable outputs.
    """

    @staticmethod
    def forward(ctx: Any, *flat: Any) -> Tensor:
        out, mean, shift, lse = torch.ops.cmsbert_fast.cms_attention_forward(*flat)
        tensors, ctx.options = flat[:-N_OPTIONS], flat[-N_OPTIONS:]
        ctx.save_for_backward(mean, shift, lse, out if lse.shape[1] else None, *tensors)  # short: z is not needed again
        return out

    @staticmethod
    @once_differentiable("cms_attention")
    def backward(ctx: Any, saved: tuple[Any, ...], d_out: Tensor) -> tuple[Tensor | None, ...]:
        mean, shift, lse, out, *tensors = saved
        needed = Arguments(*group(ctx.needs_input_grad, Modality))
        wanted = (needed.visual.frames, needed.acoustic.frames)
        gradients = kernels.Gradients.from_flat(
            torch.ops.cmsbert_fast.cms_attention_backward(d_out, out, mean, shift, lse, *wanted, *tensors, *ctx.options)
        )
        arguments = Arguments(*group(tensors, Modality))
        # dW = sum_i da_i m_i^T over all tokens: one product for both modalities, summed in a fixed order
        wants_weights = any(modality.weight for modality in needed.modalities)
        d_weights = gradients.shift.t() @ mean if wants_weights else None
        shifts, column = [], 0
        of_modality = zip(gradients.token_gates, gradients.frame_gates, gradients.frames, strict=True)
        for modality, needs, (d_token, d_frame, d_frames) in zip(
            arguments.modalities, needed.modalities, of_modality, strict=True
        ):
            if modality.weight is None:
                shifts.append(Modality())
                continue
            size = modality.weight.shape[1]
            d_weight = d_weights[:, column : column + size] if d_weights is not None and needs.weight else None
            shifts.append(Modality(d_token, d_frame, d_frames if needs.frames else None, d_weight))
            column += kernels.mean_width(size)
        return tuple(flatten(Arguments(gradients.query, gradients.key, gradients.value, *shifts)))
