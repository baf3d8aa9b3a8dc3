"""The "triton" backend of :func:`cmsbert_fast.cms_attention`: fused kernels behind two registered operators.

``torch.ops.cmsbert_fast.cms_attention_forward`` and ``..._backward`` carry the kernels through torch.compile, CUDA
graphs and checkpointing; :class:`_CMSAttention` ties them together for autograd. By itself the forward operator is not
differentiable and says so when asked for a gradient: call :func:`cmsbert_fast.cms_attention`. Nothing here launches on
import.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmsbert_fast.ops.autograd import once_differentiable
from cmsbert_fast.ops.capability import HAS_TRITON
from cmsbert_fast.packing import Packing

if TYPE_CHECKING:
    from cmsbert_fast.ops.attention.types import ModalityShift

if HAS_TRITON:
    from cmsbert_fast.kernels import cms_attention as kernels


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
    """The "triton" backend of :func:`cmsbert_fast.cms_attention`; the arguments are that function's, already checked.

    ``packing`` is None for the padded form. With dropout, one 64-bit seed is drawn from PyTorch's generator of the
    device into a tensor on the device: replays of a CUDA graph draw anew, recomputation under checkpointing the same.
    """
    seed = torch.randint(2**62, (1,), dtype=torch.int64, device=query.device) if dropout_p > 0 else None
    return _CMSAttention.apply(
        query,
        key,
        value,
        *_tensors(visual),
        *_tensors(acoustic),
        None if packing is None else packing.cu_seqlens,
        attention_mask,
        seed,
        query.shape[1] if packing is None else packing.max_length,
        _longest(visual),
        _longest(acoustic),
        activation,
        scale,
        dropout_p,
    )


def _tensors(modality: "ModalityShift | None") -> tuple[Tensor | None, ...]:
    if modality is None:
        return (None,) * 6
    return (*modality[:4], modality.cu_seqlens, modality.mask)


def _longest(modality: "ModalityShift | None") -> int:
    if modality is None:
        return 0
    return modality.frames.shape[1] if modality.max_length is None else modality.max_length


# ------------------------------------------------------------------ registered operators

_FIELDS = ("token_gate", "frame_gate", "frames", "weight", "cu", "mask")
_CALL = ", ".join(
    [
        "Tensor query, Tensor key, Tensor value",
        *(f"Tensor? {field}_{modality}" for modality in "va" for field in _FIELDS),
        "Tensor? cu_seqlens, Tensor? mask, Tensor? seed",
        "SymInt max_length, SymInt max_length_v, SymInt max_length_a, str activation, float scale, float dropout_p",
    ]
)
_SAVED = "Tensor mean, Tensor shift, Tensor lse"
_LIBRARY = torch.library.Library("cmsbert_fast", "FRAGMENT")
_LIBRARY.define(f"cms_attention_forward({_CALL}) -> (Tensor out, {_SAVED})")
_LIBRARY.define(
    f"cms_attention_backward(Tensor d_out, Tensor? out, {_SAVED}, bool frames_wanted_v, bool frames_wanted_a, {_CALL}) "
    "-> Tensor[]"
)


def _call(*arguments: Any) -> "kernels.Call":
    """The flat arguments of the operators, in the order of ``_CALL``, as the kernels take them."""
    query, key, value, *rest = arguments
    visual, acoustic, (cu_seqlens, mask, seed, *lengths, activation, scale, dropout_p) = rest[:6], rest[6:12], rest[12:]
    length, length_v, length_a = lengths
    modalities = (
        None if m[0] is None else kernels.Modality(*m, longest)
        for m, longest in ((visual, length_v), (acoustic, length_a))
    )
    return kernels.Call(query, key, value, *modalities, cu_seqlens, mask, length, activation, scale, dropout_p, seed)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # PyTorch would only warn, and give no gradient. Within _CMSAttention and compiled graphs gradients are off.
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
        raise RuntimeError(
            "cms_attention_forward is not differentiable by itself; call cmsbert_fast.cms_attention, or the operator "
            "under torch.no_grad()."
        )
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device
        out, saved = kernels.forward(_call(*arguments))
    return out, *saved


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, saved = kernels.empty_outputs(_call(*arguments))
    return out, *saved


def _flat(gradients: "kernels.Gradients") -> list[Tensor]:
    return [*gradients[:4], *gradients.token_gates, *gradients.frame_gates, *gradients.frames]


def _backward(
    d_out: Tensor,
    out: Tensor | None,
    mean: Tensor,
    shift: Tensor,
    lse: Tensor,
    wanted_v: bool,
    wanted_a: bool,
    *arguments: Any,
) -> list[Tensor]:
    saved = kernels.Saved(mean, shift, lse)
    with torch.cuda.device_of(d_out):
        return _flat(kernels.backward(_call(*arguments), d_out, out, saved, (wanted_v, wanted_a)))


def _backward_fake(
    d_out: Tensor,
    out: Tensor | None,
    mean: Tensor,
    shift: Tensor,
    lse: Tensor,
    wanted_v: bool,
    wanted_a: bool,
    *arguments: Any,
) -> list[Tensor]:
    return _flat(kernels.empty_gradients(_call(*arguments), (wanted_v, wanted_a)))


for _key in ("CUDA", "CPU"):  # the CPU only ever by interpretation
    _LIBRARY.impl("cms_attention_forward", _forward, _key)
    _LIBRARY.impl("cms_attention_backward", _backward, _key)
torch.library.register_fake("cmsbert_fast::cms_attention_forward", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("cmsbert_fast::cms_attention_backward", _backward_fake, lib=_LIBRARY)


class _CMSAttention(torch.autograd.Function):
    """The two operators as one differentiable function; its arguments are theirs.

    Not registered as the operator's own formula: backward leaves out what ``needs_input_grad`` says nobody wants, and
    mean, shift and log-sum-exp, which forward keeps for it, are no outputs that somebody could differentiate.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        out, mean, shift, lse = torch.ops.cmsbert_fast.cms_attention_forward(*arguments)
        tensors = arguments[:18]
        ctx.options = arguments[18:]
        ctx.save_for_backward(*tensors, mean, shift, lse, out if lse.shape[1] else None)  # short: z is not needed again
        return out

    @staticmethod
    @once_differentiable("cms_attention")
    def backward(ctx: Any, saved: tuple[Any, ...], d_out: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, mean, shift, lse, out = saved
        wanted = ctx.needs_input_grad
        dq, dk, dv, d_shift, *rest = torch.ops.cmsbert_fast.cms_attention_backward(
            d_out, out, mean, shift, lse, wanted[5], wanted[11], *tensors, *ctx.options
        )
        d_token_gates, d_frame_gates, d_frames = rest[:2], rest[2:4], rest[4:]
        gradients: list[Tensor | None] = [dq, dk, dv]
        column = 0
        for i in range(2):
            weight = tensors[6 + 6 * i]
            if weight is None:
                gradients += [None] * 6
                continue
            size = weight.shape[1]
            # dW = sum_i da_i m_i^T over all tokens: one product, summed in a fixed order
            d_weight = d_shift.t() @ mean[:, column : column + size] if wanted[6 + 6 * i] else None
            d_frame = d_frames[i] if wanted[5 + 6 * i] else None
            gradients += [d_token_gates[i], d_frame_gates[i], d_frame, d_weight, None, None]
            column += -(-size // 16) * 16
        return (*gradients, *[None] * 9)
