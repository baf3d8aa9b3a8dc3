"""Packed sequences: where rows lie, with sequences of length 0 and rows that belong to no sequence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmsbert_fast.packing import (
    Packing,
    cumulative,
    pack_mask,
    pad,
    segment_mean,
    sequence_of_row,
    unpad,
    valid_positions,
)

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=5)


@given(LENGTHS, st.integers(0, 3), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_pad_and_unpad_are_inverse(lengths, extra_rows, slack):
    packing = Packing(cumulative(torch.tensor(lengths)), max(lengths) + slack)
    total = sum(lengths) + extra_rows
    packed = torch.randn(total, 2, dtype=torch.float64)
    padded, valid = pad(packed, packing), valid_positions(packing)
    starts = packing.cu_seqlens.tolist()
    for b, length in enumerate(lengths):
        assert torch.equal(padded[b, :length], packed[starts[b] : starts[b] + length])
        assert valid[b].tolist() == [True] * length + [False] * (packing.max_length - length)
    back = unpad(padded, packing, total)
    assert torch.equal(back[: sum(lengths)], packed[: sum(lengths)])
    assert (back[sum(lengths) :] == 0).all()
    owner = [b for b, length in enumerate(lengths) for _ in range(length)] + [len(lengths)] * extra_rows
    assert sequence_of_row(packing, total).tolist() == owner


@given(LENGTHS, st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_segment_mean(lengths, extra_rows):
    packing = Packing(cumulative(torch.tensor(lengths)), max(lengths))
    packed = torch.randn(sum(lengths) + extra_rows, 3, dtype=torch.float64, requires_grad=True)
    mean = segment_mean(packed, packing)
    for b, rows in enumerate(packed[: sum(lengths)].split(lengths)):
        expected = rows.mean(dim=0) if len(rows) else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(mean[b], expected, rtol=0, atol=1e-14)
    if packed.numel():
        assert torch.autograd.gradcheck(lambda x: segment_mean(x, packing), packed)


def test_segment_mean_accumulates_half_precision_in_float32():
    packed = torch.full((4000, 1), 0.1).bfloat16()
    mean = segment_mean(packed, Packing(torch.tensor([0, 4000], dtype=torch.int32), 4000))
    assert mean.dtype == torch.bfloat16
    assert mean.item() == pytest.approx(0.1, rel=5e-3)


def test_pack_mask_keeps_the_order_of_valid_positions():
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1]])
    rows, packing = pack_mask(mask)
    assert rows.tolist() == [0, 2, 7, 8]
    assert packing.cu_seqlens.tolist() == [0, 2, 2, 4]
    assert packing.cu_seqlens.dtype == torch.int32
