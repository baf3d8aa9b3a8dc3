"""Small calls of the CMS attention operator in every shape class."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from cmsbert_fast import ModalityShift, cms_attention
from tests.interpreter import INTERPRETED

DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_kernels = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1")
# What torch.compile does with the graph it captured: generates kernels on a GPU, runs it as it is elsewhere.
COMPILER = "inductor" if DEVICE == "cuda" else "aot_eager"


class ShapeClass(NamedTuple):
    """How small calls get into the shape class of large ones, and what then runs."""

    limits: tuple[int, int]  # SHORT_TOKENS, MEDIUM_TOKENS
    dtype: torch.dtype
    tolerance: float  # between two ways of launching the same kernels
    kernels: frozenset[str]  # forward and backward


_KEPT = frozenset({"attention_backward_query", "attention_backward_key", "gate_backward_token", "gate_backward_frame"})
# float32 never runs the short kernels.
SHAPE_CLASSES = {
    "short": ShapeClass(
        (64, 128), torch.float16, 1e-3, frozenset({"short_forward", "short_backward", "short_gate_backward"})
    ),
    "medium": ShapeClass((0, 128), torch.float32, 1e-5, _KEPT | {"medium_forward"}),
    "long": ShapeClass((0, 0), torch.float32, 1e-5, _KEPT | {"shift_forward", "attention_forward"}),
}

# PyTorch knows no shape classes: two dtypes are enough.
every_way = pytest.mark.parametrize(
    ("backend", "shape_class"),
    [("torch", "short"), ("torch", "long"), *(pytest.param("triton", x, marks=runs_kernels) for x in SHAPE_CLASSES)],
    indirect=["shape_class"],
)


def inputs(
    dtype: torch.dtype = torch.float16, packed: bool = True, seed: int = 0
) -> tuple[list[Tensor], dict[str, Any]]:
    """Leaves (q, k, v and eight tensors of two modalities) and the remaining arguments of :func:`run`."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype).requires_grad_()

    lead, visual, acoustic = ((9,), (7,), (4,)) if packed else ((2, 5), (2, 4), (2, 3))
    leaves = [random(*lead, 2, 4) for _ in range(3)]
    for frames, size in ((visual, 5), (acoustic, 3)):
        leaves += [random(*lead), random(*frames), random(*frames, size), random(8, size)]
    if not packed:
        return leaves, {"attention_mask": torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]], device=DEVICE).bool()}
    cu = [torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in ([0, 3, 8], [0, 5, 6], [0, 0, 4])]
    return leaves, {"cu_seqlens": cu[0], "max_seqlen": 5, "cu_visual": cu[1], "cu_acoustic": cu[2]}


def run(leaves: list[Tensor], backend: str, cu_visual: Any = None, cu_acoustic: Any = None, **options: Any) -> Tensor:
    packed = cu_visual is not None
    visual = ModalityShift(*leaves[3:7], cu_visual, 5 if packed else None)
    acoustic = ModalityShift(*leaves[7:], cu_acoustic, 4 if packed else None)
    return cms_attention(*leaves[:3], visual, acoustic, backend=backend, **options)


def value_and_gradients(function: Any, leaves: list[Tensor]) -> list[Tensor]:
    z = function(leaves)
    weight = torch.linspace(-1, 1, z.numel(), device=z.device, dtype=z.dtype).view(z.shape)
    for x in leaves:
        x.grad = None
    (z * weight).sum().backward()
    return [z.detach(), *(x.grad for x in leaves)]
