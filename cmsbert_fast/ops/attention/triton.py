"""The "triton" backend of :func:`cmsbert_fast.cms_attention`: fused kernels behind two registered operators.

``torch.ops.cmsbert_fast.cms_attention_forward`` and ``..._backward`` carry the kernels through torch.compile, CUDA
graphs and checkpointing; :class:`_CMSAttention` ties them together for autograd. By itself the forward operator is not
differentiable and says so when asked for a gradient: call :func:`cmsbert_fast.cms_attention`. Nothing here launches on
import.
"""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cmsbert_fast.ops.autograd import once_differentiable
from cmsbert_fast.packing import Packing

if TYPE_CHECKING:
    from cmsbert_fast.ops.attention.types import ModalityShift

HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON:
    import triton

    from cmsbert_fast.kernels import cms_attention as kernels

INTERPRETED = HAS_TRITON and bool(triton.knobs.runtime.interpret)  # fixed when the kernels are imported
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CDNA = ("gfx908", "gfx90a", "gfx942", "gfx950")


def why_not(query: Tensor) -> str | None:
    """Why the Triton kernels cannot serve queries like these, in half a sentence; None where they can.

    With ``TRITON_INTERPRET=1`` tensors on the CPU are served too, slowly: for tests.
    """
    if not HAS_TRITON:
        return "Triton is not installed"
    if query.device.type != "cuda" and not (INTERPRETED and query.device.type == "cpu"):
        return f"its kernels run on CUDA and ROCm devices, not on {query.device.type}"
    if query.dtype not in DTYPES:
        return f"its kernels compute in float32, float16 and bfloat16, not in {query.dtype}"
    if INTERPRETED and query.dtype == torch.bfloat16:
        return "Triton's interpreter is wrong for bfloat16"
    if query.shape[-1] > kernels.MAX_HEAD_SIZE:
        return f"its kernels take heads of at most {kernels.MAX_HEAD_SIZE}, not {query.shape[-1]}"
    return why_not_device(query.device.index) if query.device.type == "cuda" else None


@torch.compiler.assume_constant_result
def why_not_device(index: int) -> str | None:
    """Why this GPU cannot run the project's Triton kernels, in half a sentence; None where it can.

    Below compute capability 8.0 they spill registers. AMD's RDNA has no matrix instructions of the kind, and its
    work-groups may span compute units: kernels that exchange data through global memory are proven for CDNA only.
    """
    if torch.version.hip is not None:
        architecture = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        if architecture not in CDNA:
            return f"its kernels need an AMD GPU of the CDNA kind ({', '.join(CDNA)}), not {architecture}"
    elif torch.cuda.get_device_capability(index) < (8, 0):
        return "its kernels need an NVIDIA GPU of compute capability 8.0 or later"
    return None


def is_available(query: Tensor) -> bool:
    """Whether "auto" may pick this backend: it can serve the call, and not by interpretation."""
    return query.device.type == "cuda" and why_not(query) is None


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
    tensors = _Tensors(
        query,
        key,
        value,
        **_shift_tensors(visual, "v"),
        **_shift_tensors(acoustic, "a"),
        cu_seqlens=None if packing is None else packing.cu_seqlens,
        mask=attention_mask,
        seed=seed,
    )
    longest = query.shape[1] if packing is None else packing.max_length
    options = _Options(longest, _longest(visual), _longest(acoustic), activation, scale, dropout_p)
    return _CMSAttention.apply(*tensors, *options)


def _shift_tensors(modality: "ModalityShift | None", suffix: str) -> dict[str, Tensor | None]:
    """The tensors of one modality by their names in :class:`_Tensors`."""
    if modality is None:
        return {}
    return {
        f"token_gate_{suffix}": modality.token_gate,
        f"frame_gate_{suffix}": modality.frame_gate,
        f"frames_{suffix}": modality.frames,
        f"weight_{suffix}": modality.weight,
        f"cu_{suffix}": modality.cu_seqlens,
        f"mask_{suffix}": modality.mask,
    }


def _longest(modality: "ModalityShift | None") -> int:
    if modality is None:
        return 0
    return modality.frames.shape[1] if modality.max_length is None else modality.max_length


# ------------------------------------------------------------------ registered operators


class _Tensors(NamedTuple):
    """The operators' tensors in their order; or for each its gradient, or whether one is wanted."""

    query: Any = None
    key: Any = None
    value: Any = None
    token_gate_v: Any = None
    frame_gate_v: Any = None
    frames_v: Any = None
    weight_v: Any = None
    cu_v: Any = None
    mask_v: Any = None
    token_gate_a: Any = None
    frame_gate_a: Any = None
    frames_a: Any = None
    weight_a: Any = None
    cu_a: Any = None
    mask_a: Any = None
    cu_seqlens: Any = None
    mask: Any = None
    seed: Any = None


class _Options(NamedTuple):
    """The operators' other arguments, which follow the tensors."""

    max_length: Any = None
    max_length_v: Any = None
    max_length_a: Any = None
    activation: Any = None
    scale: Any = None
    dropout_p: Any = None


def _named(arguments: Sequence[Any]) -> tuple[_Tensors, _Options]:
    """The operators' flat arguments by name."""
    count = len(_Tensors._fields)
    return _Tensors(*arguments[:count]), _Options(*arguments[count:])


_REQUIRED = ("query", "key", "value")
_CALL = ", ".join(
    [
        *(f"Tensor{'' if name in _REQUIRED else '?'} {name}" for name in _Tensors._fields),
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


def _call(arguments: Sequence[Any]) -> "kernels.Call":
    """The operators' flat arguments as the kernels take them."""
    t, options = _named(arguments)
    visual = acoustic = None
    if t.token_gate_v is not None:
        visual = kernels.Modality(
            t.token_gate_v, t.frame_gate_v, t.frames_v, t.weight_v, t.cu_v, t.mask_v, options.max_length_v
        )
    if t.token_gate_a is not None:
        acoustic = kernels.Modality(
            t.token_gate_a, t.frame_gate_a, t.frames_a, t.weight_a, t.cu_a, t.mask_a, options.max_length_a
        )
    return kernels.Call(
        t.query,
        t.key,
        t.value,
        visual,
        acoustic,
        t.cu_seqlens,
        t.mask,
        options.max_length,
        options.activation,
        options.scale,
        options.dropout_p,
        t.seed,
    )


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # PyTorch would only warn, and give no gradient. Within _CMSAttention and compiled graphs gradients are off.
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
        raise RuntimeError(
            "cms_attention_forward is not differentiable by itself; call cmsbert_fast.cms_attention, or the operator "
            "under torch.no_grad()."
        )
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device
        out, saved = kernels.forward(_call(arguments))
    return out, *saved


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, saved = kernels.empty_outputs(_call(arguments))
    return out, *saved


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
        return kernels.backward(_call(arguments), d_out, out, saved, (wanted_v, wanted_a)).flat


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
    return kernels.empty_gradients(_call(arguments), (wanted_v, wanted_a)).flat


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
        tensors, ctx.options = _named(arguments)
        ctx.save_for_backward(*tensors, mean, shift, lse, out if lse.shape[1] else None)  # short: z is not needed again
        return out

    @staticmethod
    @once_differentiable("cms_attention")
    def backward(ctx: Any, saved: tuple[Any, ...], d_out: Tensor) -> tuple[Tensor | None, ...]:
        *given, mean, shift, lse, out = saved
        tensors, (wanted, _) = _Tensors(*given), _named(ctx.needs_input_grad)
        gradients = kernels.Gradients.from_flat(
            torch.ops.cmsbert_fast.cms_attention_backward(
                d_out, out, mean, shift, lse, wanted.frames_v, wanted.frames_a, *tensors, *ctx.options
            )
        )

        def of_weight(weight: Tensor, column: int) -> Tensor:
            """dW = sum_i da_i m_i^T over all tokens: one product, summed in a fixed order."""
            return gradients.shift.t() @ mean[:, column : column + weight.shape[1]]

        visual: dict[str, Tensor | None] = {}
        acoustic: dict[str, Tensor | None] = {}
        column_a = 0
        if tensors.weight_v is not None:
            column_a = kernels.mean_width(tensors.weight_v.shape[1])
            visual = {
                "token_gate_v": gradients.token_gates[0],
                "frame_gate_v": gradients.frame_gates[0],
                "frames_v": gradients.frames[0] if wanted.frames_v else None,
                "weight_v": of_weight(tensors.weight_v, 0) if wanted.weight_v else None,
            }
        if tensors.weight_a is not None:
            acoustic = {
                "token_gate_a": gradients.token_gates[1],
                "frame_gate_a": gradients.frame_gates[1],
                "frames_a": gradients.frames[1] if wanted.frames_a else None,
                "weight_a": of_weight(tensors.weight_a, column_a) if wanted.weight_a else None,
            }
        of_queries = {"query": gradients.query, "key": gradients.key, "value": gradients.value}
        return (*_Tensors(**of_queries, **visual, **acoustic), *_Options())
