"""A sequence longer than ``max_seqlen`` says: the host cannot see it on a GPU, the device can."""

import pytest
import torch

from cmsbert_fast.ops.attention import triton as attention_triton
from cmsbert_fast.packing import cumulative


def cu(*lengths: int) -> torch.Tensor:
    return cumulative(torch.tensor(lengths))


def test_too_small_a_maximum_fails_on_the_device() -> None:
    """On the CPU PyTorch's asynchronous assertion fails at once."""
    attention_triton.assert_longest(cu(3, 0, 7), 7, "max_seqlen")
    with pytest.raises(RuntimeError, match="max_seqlen=6: a sequence is longer"):
        attention_triton.assert_longest(cu(3, 0, 7), 6, "max_seqlen")


def test_layers_share_the_assertion(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "_assert_async", lambda condition, message: asked.append(message))
    ends = cu(3, 7)
    for maximum in (9, 9, 50, 7, 9):
        attention_triton.assert_longest(ends, maximum, "max_seqlen")
    assert [message.partition(":")[0] for message in asked] == ["max_seqlen=9", "max_seqlen=7"]
    ends += 1
    attention_triton.assert_longest(ends, 9, "max_seqlen")
    attention_triton.assert_longest(cu(3, 7), 9, "max_seqlen")
    assert len(asked) == 4
