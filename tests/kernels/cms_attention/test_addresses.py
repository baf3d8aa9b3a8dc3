"""The CMS attention kernels on tensors with offsets beyond 2^31."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cmsbert_fast import ModalityShift, cms_attention
from cmsbert_fast.ops.attention import triton as attention_triton
from tests.kernels.cms_attention.cases import DEVICE, all_classes, runs_kernels


@runs_kernels
@all_classes
@pytest.mark.parametrize("far_apart", ["packed rows", "rows", "sequences", "heads"])
def test_addresses_beyond_two_to_the_31(shape_class: str, far_apart: str) -> None:
    """Elements 2^30 apart: products of 32-bit numbers would wrap. Untouched pages take no memory; a GPU gives 6 GB."""
    torch.use_deterministic_algorithms(False)  # which would touch them
    stride = 2**30
    try:
        storage = torch.empty(3 * stride + 256, dtype=torch.float16, device=DEVICE)
    except RuntimeError:
        pytest.skip("no memory")
    batch, n, heads = {"rows": (1, 4, 1), "packed rows": (1, 4, 1), "sequences": (4, 1, 1), "heads": (1, 1, 4)}[
        far_apart
    ]
    generator = torch.Generator().manual_seed(0)

    def pair(i: int, *shape: int) -> tuple[Tensor, Tensor]:
        """The same numbers close together and far apart."""
        near = torch.randn(*shape, generator=generator).to(DEVICE, torch.float16)
        strides = [stride if size == 4 else 1 if j == near.dim() - 1 else 16 for j, size in enumerate(shape)]
        far = storage.as_strided(shape, strides, 32 * i)
        far.copy_(near)
        return near.requires_grad_(), far.detach().requires_grad_()

    pairs = [pair(i, batch, n, heads, 16) for i in range(3)] + [pair(3, batch, n, 5)]
    gates = torch.randn(2, batch, n, generator=generator).to(DEVICE, torch.float16)
    weight = torch.randn(16 * heads, 5, generator=generator).to(DEVICE, torch.float16)

    def run(tensors: list[Tensor], backend: str) -> list[Tensor]:
        *qkv, frames = tensors
        if far_apart == "packed rows":
            cu = torch.tensor([0, 3, 4], dtype=torch.int32, device=DEVICE)  # the second sequence begins beyond 2^31
            visual = ModalityShift(gates[0, 0], gates[1, 0], frames[0], weight, cu, 3)
            z = cms_attention(*(x[0] for x in qkv), visual, backend=backend, cu_seqlens=cu, max_seqlen=3)
        else:
            z = cms_attention(*qkv, ModalityShift(*gates, frames, weight), backend=backend)
        return [z, *torch.autograd.grad(z.float().square().sum(), tensors)]

    expected, actual = run([x for x, _ in pairs], "torch"), run([x for _, x in pairs], "triton")
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=2e-2, atol=2e-2)


@runs_kernels
@pytest.mark.parametrize("kind", ["short", "medium", "long", "plain"])
def test_stores_beyond_two_to_the_31(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one sequence begins at row 2^28 + 1 of 16 columns: a product of 32-bit numbers would be that of row 1.

    Untouched pages take no memory. What the long backward pass leaves to PyTorch would touch them: forward only.
    """
    if DEVICE == "cuda":
        pytest.skip("takes 8 GB a tensor where pages are not lazy")
    kernels = attention_triton.kernels
    torch.use_deterministic_algorithms(False)  # which would touch them
    monkeypatch.setattr(kernels.call, "SHORT_TOKENS", 64 if kind == "short" else 0)
    monkeypatch.setattr(kernels.call, "MEDIUM_TOKENS", 0 if kind == "long" else 128)
    n, generator = 3, torch.Generator().manual_seed(0)

    def poisoned(empty: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = empty(*arguments)
            for x in tree_leaves(result):
                if x.shape[0] > 1:  # but for the log-sum-exp, of one head
                    x[-n:] = float("nan")  # the sequence's rows
            return result

        return call

    for name in ("empty_outputs", "empty_gradients"):
        monkeypatch.setattr(kernels.launch, name, poisoned(getattr(kernels.launch, name)))
    row = torch.randn(3, 1, 1, 16, generator=generator).half()
    gate, frames, weight = (torch.randn(*shape, generator=generator).half() for shape in ((1,), (2, 16), (16, 16)))
    cu_frames = torch.tensor([0, 2], dtype=torch.int32)

    def run(first: int) -> list[Tensor]:
        """All outputs of rows [first, first + n), the sequence's; all rows of each input are one row in memory."""
        rows = first + n
        q, k, v = (x.expand(rows, 1, 16) for x in row)
        cu = torch.tensor([first, rows], dtype=torch.int32)
        m = kernels.Modality(gate.expand(rows), torch.ones(2).half(), frames, weight, cu_frames, None, 2)
        call = kernels.Call(q, k, v, None if kind == "plain" else m, None, cu, None, n, "tanh", 0.25, 0.0, None)
        out, saved = kernels.forward(call)
        rowwise = [out, saved.mean, *([saved.shift] if saved.shift.numel() else []), saved.lse.T]
        if kind in ("short", "plain"):
            gradients = kernels.backward(call, out, out, saved, (False, False))
            rowwise += [*gradients[:4], gradients.token_gates[0]]
        return [x[first:] for x in rowwise if x.shape[0] == rows and x.numel()]

    try:
        far = run(2**28 + 1)
    except RuntimeError as error:
        if "alloc" not in str(error):
            raise
        pytest.skip("no memory")
    near = run(0)
    assert len(far) == len(near) >= 3
    for a, e in zip(far, near, strict=True):
        assert torch.equal(a, e)
