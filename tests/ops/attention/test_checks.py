"""What cms_attention refuses, and how it says so."""

import pytest
import torch

from cmsbert_fast import ModalityShift, cms_attention

HEADS, HEAD_SIZE = 2, 4


def broken_calls():
    x, p = torch.randn(4, HEADS, HEAD_SIZE), torch.randn(4)
    cu = torch.tensor([0, 3, 4], dtype=torch.int32)
    good = ModalityShift(p, torch.randn(2), torch.randn(2, 5), torch.randn(8, 5), cu.new_tensor([0, 1, 2]), 1)
    packed = dict(cu_seqlens=cu, max_seqlen=3)
    padded, mask = x[None], torch.ones(1, 4, dtype=torch.bool)
    yield "T, H, d_h", (padded, padded, padded), packed
    yield "without cu_seqlens", (x, x, x), {}
    yield "key has shape", (x, x[:3], x), packed
    yield "floating dtype", (x.long(), x, x), packed
    yield "value is torch.float64", (x, x, x.double()), packed
    yield "activation='gelu'", (x, x, x), packed | {"activation": "gelu"}
    yield "dropout_p=1", (x, x, x), packed | {"dropout_p": 1.0}
    yield "needs both cu_seqlens and max_seqlen", (x, x, x), {"cu_seqlens": cu}
    yield "give int32", (x, x, x), {"cu_seqlens": cu.long(), "max_seqlen": 3}
    yield "with cu_seqlens leave it out", (x, x, x), packed | {"attention_mask": mask}
    yield "max_seqlen belongs", (padded, padded, padded), {"max_seqlen": 3}
    yield "give booleans", (padded, padded, padded), {"attention_mask": mask.float()}
    yield r"it must be \(1, 4\)", (padded, padded, padded), {"attention_mask": mask[:, :2]}
    yield "visual.token_gate has shape", (x, x, x, good._replace(token_gate=p[:2])), packed
    yield "visual.weight has shape", (x, x, x, good._replace(weight=torch.randn(8, 6))), packed
    empty = good._replace(frames=torch.randn(2, 0), weight=torch.randn(8, 0))
    yield "an absent modality is None", (x, x, x, empty), packed
    yield r"give cu_seqlens.contiguous\(\)", (x, x, x), packed | {"cu_seqlens": cu.repeat_interleave(2)[::2]}
    yield "visual.frames is torch.float64", (x, x, x, good._replace(frames=good.frames.double())), packed
    yield "visual.cu_seqlens and visual.max_length", (x, x, x, good._replace(cu_seqlens=None)), packed
    yield "holds 1 sequences", (x, x, x, good._replace(cu_seqlens=cu.new_tensor([0, 2]), max_length=2)), packed
    yield (
        "for the tokens too",
        (padded, padded, padded, ModalityShift(p[None], *(t[None] for t in good[1:3]), *good[3:6])),
        {},
    )
    frame_mask = torch.ones(1, 2, dtype=torch.bool)
    yield "visual.mask belongs", (x, x, x, good._replace(mask=frame_mask)), packed
    one = ModalityShift(p[None], *(t[None] for t in good[1:3]), good.weight)
    two = one._replace(frame_gate=good.frame_gate.expand(2, 2), frames=good.frames.expand(2, 2, 5))
    yield "visual.frames holds 2 sequences but query 1", (padded, padded, padded, two), {}
    yield "visual.mask is torch.float32", (padded, padded, padded, one._replace(mask=frame_mask.float())), {}
    yield "visual.mask has shape", (padded, padded, padded, one._replace(mask=frame_mask[:, :1])), {}
    yield "key is on meta but query is on cpu", (x, x.to("meta"), x), packed
    yield "visual.weight is on meta but query", (x, x, x, good._replace(weight=good.weight.to("meta"))), packed
    yield "^cu_seqlens is on meta but query is on cpu", (x, x, x), packed | {"cu_seqlens": cu.to("meta")}
    yield (
        "visual.cu_seqlens is on meta but visual.frames is on cpu",
        (x, x, x, good._replace(cu_seqlens=good.cu_seqlens.to("meta"))),
        packed,
    )
    yield "attention_mask is on meta but query", (padded, padded, padded), {"attention_mask": mask.to("meta")}
    yield (
        "visual.mask is on meta but query is on cpu",
        (
            padded,
            padded,
            padded,
            ModalityShift(p[None], *(t[None] for t in good[1:3]), good.weight, mask=mask[:, :2].to("meta")),
        ),
        {},
    )


@pytest.mark.parametrize(
    ("message", "args", "kwargs"), list(broken_calls()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_wrong_argument_is_named(message, args, kwargs):
    with pytest.raises((ValueError, TypeError), match=message):
        cms_attention(*args, **kwargs)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(
    ("cu", "longest", "message"),
    [
        ([0, 3, 9], 9, "cu_seqlens must start at 0"),
        ([0, 5, 3], 5, "cu_seqlens must start at 0"),
        ([1, 2, 4], 4, "cu_seqlens must start at 0"),
        ([0, 3, 4], 2, "max_seqlen=2, but cu_seqlens holds a sequence of 3 rows"),
    ],
)
def test_wrong_lengths_are_refused(backend, cu, longest, message):
    x = torch.randn(4, 2, 8)
    with pytest.raises(ValueError, match=message):
        cms_attention(x, x, x, cu_seqlens=torch.tensor(cu, dtype=torch.int32), max_seqlen=longest, backend=backend)


def test_wrong_lengths_of_frames_are_refused():
    x = torch.randn(4, 2, 8)
    cu_seqlens = torch.tensor([0, 1, 4], dtype=torch.int32)
    shift = ModalityShift(torch.randn(4), torch.randn(5), torch.randn(5, 3), torch.randn(16, 3), cu_seqlens + 2, 3)
    with pytest.raises(ValueError, match=r"visual.cu_seqlens must start at 0.*5 rows of visual.frames"):
        cms_attention(x, x, x, shift, cu_seqlens=cu_seqlens, max_seqlen=3)
