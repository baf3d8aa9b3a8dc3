"""Calls of cms_attention on which the compiled CPU backend is tested."""

import pytest
import torch

from cmsbert_fast import ModalityShift, cms_attention
from cmsbert_fast.ops.dispatch import why_not
from cmsbert_fast.packing import cumulative

MISSING = why_not("attention", "cpu", torch.zeros(1))
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

# Lengths of tokens, of the face, of the voice. The longest exceed one block of queries (64) and of depth (256).
CASES = {
    "unequal": ([5, 3, 7], [4, 1, 2], [2, 9, 3]),
    "one token": ([1], [3], [2]),
    "no frames anywhere": ([4, 2], [0, 0], [0, 0]),
    "one utterance without frames": ([4, 2], [3, 0], [0, 5]),
    "an utterance without tokens": ([4, 0, 17], [3, 2, 1], [1, 1, 5]),
    "a first utterance without tokens": ([0, 5], [2, 3], [1, 4]),
    "visual only": ([16, 2], [3, 16], None),
    "acoustic only": ([4, 33], None, [31, 6]),
    "text only": ([4, 15], None, None),
    "long": ([63, 130, 1, 64], [300, 3, 0, 17], [5, 70, 2, 9]),
}
# (heads, size of a head, of the face's frames, of the voice's)
DIMENSIONS = [(2, 64, 47, 74), (3, 40, 5, 33), (2, 3, 1, 16)]


def make(case, dimensions, dtype=torch.float32, extra_rows=3, seed=0):
    """Leaves (q, k, v, and four tensors a modality), and the rest of the call's arguments.

    Shifts are smaller than q, k and v: large ones make scores of 60, whose rounding decides the softmax by chance.
    """
    heads, head_size, *sizes = dimensions
    tokens, *frames = case
    generator = torch.Generator().manual_seed(seed)
    rows = sum(tokens) + extra_rows

    def random(*shape, scale=1.0):
        x = torch.randn(*shape, dtype=torch.float64, generator=generator) * scale
        return x.to(dtype).requires_grad_()

    leaves = [random(rows, heads, head_size) for _ in range(3)]
    shifts = []
    for lengths, size in zip(frames, sizes, strict=True):
        if lengths is None:
            shifts.append(None)
            continue
        n = sum(lengths) + extra_rows
        tensors = [random(rows), random(n), random(n, size), random(heads * head_size, size, scale=0.2 * size**-0.5)]
        leaves += tensors
        shifts.append((cumulative(torch.tensor(lengths)), max(lengths)))
    return leaves, shifts, dict(cu_seqlens=cumulative(torch.tensor(tokens)), max_seqlen=max(tokens))


def call(leaves, shifts, arguments, **options):
    rest = iter(leaves[3:])
    modalities = [cu and ModalityShift(*(next(rest) for _ in range(4)), *cu) for cu in shifts]
    return cms_attention(*leaves[:3], *modalities, **arguments, **options)


def values(leaves, shifts, arguments, **options):
    """z and all gradients of its product with fixed numbers."""
    z = call(leaves, shifts, arguments, **options)
    weight = torch.randn(z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(z.dtype)
    return [z.detach(), *torch.autograd.grad((z * weight).sum(), leaves, allow_unused=True, materialize_grads=True)]
