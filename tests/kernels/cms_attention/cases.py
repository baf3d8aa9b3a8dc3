"""Calls of the CMS attention kernels, their float64 reference, and how far the two may differ.

The kernels run on a GPU, or in Triton's interpreter (``TRITON_INTERPRET=1``), which ``test_interpreter.py`` starts.

Error rule: at most twice (z) or three times (gradients) the error of the same computation in plain PyTorch in the same
dtype, plus a few units in the last place.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsbert_fast import ModalityShift, cms_attention, reference
from cmsbert_fast.packing import cumulative
from tests.interpreter import INTERPRETED

DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_kernels = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1")
bfloat16 = pytest.param(torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="the interpreter is wrong for it"))
DTYPES = [torch.float32, torch.float16, bfloat16]

all_classes = pytest.mark.parametrize("shape_class", ["short", "medium", "long"], indirect=True)


@dataclass
class Case:
    """A padded call in float64 whose packed form and lower precisions are derived from it."""

    query: Tensor
    key: Tensor
    value: Tensor
    visual: list[Tensor] | None  # token gate, frame gate, frames, weight, mask
    acoustic: list[Tensor] | None
    mask: Tensor
    activation: str
    d_out: Tensor

    @property
    def modalities(self) -> list[list[Tensor]]:
        return [m for m in (self.visual, self.acoustic) if m is not None]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.query, self.key, self.value, *(x for m in self.modalities for x in m[:4])]


def prefix_mask(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def make_case(
    tokens: list[int],
    visual: list[int] | None,
    acoustic: list[int] | None,
    heads: int = 2,
    head_size: int = 32,
    sizes: tuple[int, int] = (47, 20),
    activation: str = "relu",
    dtype: torch.dtype = torch.float32,
    scattered: bool = False,
) -> Case:
    """Random input whose values are exact in ``dtype``. ``scattered``: masks with holes instead of lengths."""
    generator = torch.Generator().manual_seed(len(tokens) + sum(tokens))

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        return x.to(dtype).double()

    def mask_of(lengths: list[int]) -> Tensor:
        mask = prefix_mask(lengths)
        return mask & (torch.rand(mask.shape, generator=generator) < 0.7) if scattered else mask

    def modality(lengths: list[int] | None, size: int) -> list[Tensor] | None:
        if lengths is None:
            return None
        batch, frames = len(lengths), max(lengths)
        weight = random(heads * head_size, size, scale=size**-0.5)
        gates = random(batch, max(tokens)), random(batch, frames)
        return [*gates, random(batch, frames, size), weight, mask_of(lengths)]

    shape = (len(tokens), max(tokens), heads, head_size)
    qkv = [random(*shape) for _ in range(3)]
    shifts = modality(visual, sizes[0]), modality(acoustic, sizes[1])
    return Case(*qkv, *shifts, mask_of(tokens), activation, random(*shape))


def literal(case: Case) -> list[Tensor]:
    """z and every gradient in float64."""
    leaves = [x.clone().requires_grad_() for x in case.leaves]
    modalities = list(case.modalities)
    rest = iter(leaves[3:])
    shifted = [[next(rest) for _ in range(4)] + [m[4]] for m in modalities]
    pair = [None if m is None else shifted.pop(0) for m in (case.visual, case.acoustic)]
    z = reference.cms_attention(*leaves[:3], *pair, case.mask, case.activation)
    return [z.detach(), *torch.autograd.grad(z, leaves, case.d_out, allow_unused=False)]


def public(case: Case, dtype: torch.dtype, backend: str, packed: bool, tail: int = 0, **options: Any) -> list[Tensor]:
    """z and every gradient of the public operator in ``dtype``, in padded form, float64 on the CPU.

    Packed input gets ``tail`` rows that belong to no sequence. What is invalid is NaN on entry to the kernels.
    """
    poison = float("nan") if backend in ("triton", "varlen") else 0.0

    def rows(x: Tensor, mask: Tensor) -> Tensor:
        x = x.masked_fill(~mask.view(mask.shape + (1,) * (x.dim() - 2)), poison)
        if packed:
            x = torch.cat([x[mask], x.new_full((tail, *x.shape[2:]), poison)])
        return x.to(DEVICE, dtype).requires_grad_()

    def back(x: Tensor, mask: Tensor) -> Tensor:
        x = x.detach().double().cpu()
        if not packed:
            assert (x[~mask] == 0).all()
            return x
        total = int(mask.sum())
        assert x.shape[0] == total + tail
        assert (x[total:] == 0).all()
        out = x.new_zeros(*mask.shape, *x.shape[1:])
        out[mask] = x[:total]
        return out

    def cu(mask: Tensor) -> dict[str, Any]:
        return {"cu_seqlens": cumulative(mask.sum(1)).to(DEVICE), "max_length": mask.shape[1]}

    qkv = [rows(x, case.mask) for x in (case.query, case.key, case.value)]
    shifts, leaves, masks = [], [*qkv], [case.mask] * 3
    for m in (case.visual, case.acoustic):
        if m is None:
            shifts.append(None)
            continue
        tensors = [rows(m[0], case.mask), rows(m[1], m[4]), rows(m[2], m[4]), m[3].to(DEVICE, dtype).requires_grad_()]
        where = cu(m[4]) if packed else {"mask": m[4].to(DEVICE)}
        shifts.append(ModalityShift(*tensors, **where))
        leaves += tensors
        masks += [case.mask, m[4], m[4], None]
    if packed:
        options |= {"cu_seqlens": cu(case.mask)["cu_seqlens"], "max_seqlen": case.mask.shape[1]}
    else:
        options |= {"attention_mask": case.mask.to(DEVICE)}
    z = cms_attention(*qkv, *shifts, activation=case.activation, backend=backend, **options)
    d_out = rows(case.d_out, case.mask).detach()
    gradients = torch.autograd.grad(z, leaves, d_out)
    pairs = zip([z, *gradients], [case.mask, *masks], strict=True)
    return [x.detach().double().cpu() if mask is None else back(x, mask) for x, mask in pairs]


def check(
    case: Case,
    dtype: torch.dtype,
    packed: bool = True,
    tail: int = 0,
    expected: list[Tensor] | None = None,
    backend: str = "triton",
) -> None:
    names = ["z", "dq", "dk", "dv"]
    for m in (n for n, x in (("v", case.visual), ("a", case.acoustic)) if x is not None):
        names += [f"{name}_{m}" for name in ("token_gate", "frame_gate", "frames", "weight")]
    expected = literal(case) if expected is None else expected
    rival = public(case, dtype, "torch", packed, tail)
    actual = public(case, dtype, backend, packed, tail)
    for i, (name, e, r, a) in enumerate(zip(names, expected, rival, actual, strict=True)):
        if e.numel() == 0:
            continue
        # float32 sums in float32, the narrower dtypes in a wider one
        floor = (16 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps * max(1.0, e.abs().max().item())
        allowed = (2 if i == 0 else 3) * (r - e).abs().max().item() + floor
        error = (a - e).abs().max().item()
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
