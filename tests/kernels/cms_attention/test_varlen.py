"""Above 64 tokens: mean frames by a kernel, the shift by one product, attention by PyTorch's varlen attention.

Without a GPU a stand-in takes the place of the last, in float32 and one sequence after the other.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsbert_fast import ModalityShift, cms_attention
from cmsbert_fast.ops import capability
from cmsbert_fast.ops.attention import triton as attention_triton
from cmsbert_fast.packing import cumulative
from tests.kernels.cms_attention.cases import DEVICE, bfloat16, check, make_case, runs_kernels
from tests.kernels.cms_attention.test_launches import Spy

GRID: dict[str, dict[str, Any]] = {
    "BERT's heads": {
        "tokens": [65, 7, 0], "visual": [50, 0, 3], "acoustic": [9, 3, 0], "heads": 3, "head_size": 64,
        "sizes": (47, 74),
    },
    "two classes": {"tokens": [129, 1], "visual": [5, 64], "acoustic": [0, 1], "heads": 1, "activation": "sigmoid"},
    "a modality is absent": {"tokens": [66], "visual": None, "acoustic": [9], "head_size": 24, "activation": "tanh"},
    "plain attention": {"tokens": [70, 2], "visual": None, "acoustic": None},
    "aligned sizes": {"tokens": [65], "visual": [3], "acoustic": [4], "sizes": (16, 32)},
    "wide frames": {"tokens": [65, 3], "visual": [33, 5], "acoustic": [9, 50], "sizes": (709, 1), "heads": 1},
}  # fmt: skip


def stand_in(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int, scale: float
) -> tuple[Tensor, Tensor]:
    assert query.shape[-1] % 8 == 0
    for x in (query, key, value):
        assert x.stride(-1) == 1
        assert all(n % 8 == 0 for n in x.stride()[:-1])
    out, lse = torch.full_like(query, torch.nan), query.new_full(query.shape[1::-1], torch.nan, dtype=torch.float32)
    for begin, end in pairwise(cu_seqlens.tolist()):
        assert end - begin <= longest
        if begin == end:
            continue
        q, k, v = (x[begin:end].float().transpose(0, 1) for x in (query, key, value))
        scores = q @ k.transpose(1, 2) * scale
        lse[:, begin:end] = scores.logsumexp(2)
        out[begin:end] = (scores.softmax(2) @ v).transpose(0, 1)
    return out, lse


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr(capability, "why_not_varlen", lambda device: None)
        monkeypatch.setattr(attention_triton.kernels.varlen, "attention", stand_in)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, bfloat16])
@pytest.mark.parametrize("name", GRID)
def test_values_and_gradients(name: str, dtype: torch.dtype, varlen: None) -> None:
    check(make_case(**GRID[name], dtype=dtype), dtype, tail=3, backend="varlen")


def calls(
    monkeypatch: pytest.MonkeyPatch, tokens: int, dtype: torch.dtype, packed: bool, dropout_p: float
) -> list[str]:
    """The kernels of a forward pass, and whether varlen attention ran."""
    spy = Spy(monkeypatch)
    attention = attention_triton.kernels.varlen.attention
    monkeypatch.setattr(
        attention_triton.kernels.varlen, "attention", lambda *given: (spy.names.append("varlen"), attention(*given))[1]
    )
    case = make_case([tokens], [5], None, heads=1, head_size=16)
    query, key, value, *shift = (
        x.to(DEVICE, dtype) for x in (case.query, case.key, case.value, *(case.visual or [])[:4])
    )
    if packed:
        options = {"cu_seqlens": cumulative(torch.tensor([tokens])).to(DEVICE), "max_seqlen": tokens}
        query, key, value, *shift = (*(x[0] for x in (query, key, value, *shift[:3])), shift[3])
        visual = ModalityShift(*shift, cu_seqlens=cumulative(torch.tensor([5])).to(DEVICE), max_length=5)
    else:
        options, visual = {}, ModalityShift(*shift)
    cms_attention(query, key, value, visual, dropout_p=dropout_p, backend="varlen", **options)
    return spy.names


@runs_kernels
@pytest.mark.parametrize(
    ("tokens", "dtype", "packed", "dropout_p", "expected"),
    [
        (65, torch.float16, True, 0.0, ["shift_forward_kernel", "varlen", "zero_tail_kernel"]),
        (64, torch.float16, True, 0.0, ["short_forward_kernel"]),
        (65, torch.float32, True, 0.0, ["medium_forward_kernel"]),
        (65, torch.float16, False, 0.0, ["medium_forward_kernel"]),
        (129, torch.float16, True, 0.1, ["shift_forward_kernel", "attention_forward_kernel"]),
    ],
)
def test_where_it_runs(
    tokens: int,
    dtype: torch.dtype,
    packed: bool,
    dropout_p: float,
    expected: list[str],
    varlen: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert calls(monkeypatch, tokens, dtype, packed, dropout_p) == expected


@runs_kernels
@pytest.mark.parametrize("last", [True, False], ids=["odd rows", "strided columns"])
def test_what_flash_attention_cannot_read_is_copied(last: bool, varlen: None) -> None:
    """Rows of 33 numbers; and a last dimension that is not contiguous."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(70, 33, generator=generator).to(DEVICE, torch.float16)[:, :32]
    x = wide.unflatten(1, (2, 16)) if last else wide.unflatten(1, (16, 2)).transpose(1, 2)
    options = {"cu_seqlens": cumulative(torch.tensor([66, 4])).to(DEVICE), "max_seqlen": 66}
    z, expected = (cms_attention(x, x, x, backend=backend, **options) for backend in ("varlen", "torch"))
    torch.testing.assert_close(z, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.skipif(DEVICE == "cuda", reason="there it can run")
def test_it_wants_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "why_not_triton", lambda device, dtype: None)
    x = torch.zeros(1, 2, 8, dtype=torch.float16)
    with pytest.raises(
        ValueError, match=r'^backend="varlen" cannot run here: PyTorch\'s varlen attention runs on NVIDIA'
    ):
        cms_attention(x, x, x, cu_seqlens=torch.tensor([0, 1], dtype=torch.int32), max_seqlen=1, backend="varlen")
