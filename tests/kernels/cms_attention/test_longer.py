"""A sequence longer than ``max_length`` says. On a GPU the host does not know its length, so the kernels write NaN."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cmsbert_fast.ops.attention import triton as attention_triton
from tests.kernels.cms_attention.cases import DEVICE, all_classes, runs_kernels

LONG, SHORT = 140, 5  # rows of the two sequences; frames as many
UNWRITTEN = 7.0


def outputs(said: int, plain: bool) -> tuple[list[Tensor], list[Tensor]]:
    """What forward and backward write, by rows of tokens and by rows of frames, if all lengths were ``said``."""
    kernels = attention_triton.kernels
    generator = torch.Generator().manual_seed(0)
    rows = LONG + SHORT

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, torch.float16)

    cu = torch.tensor([0, LONG, rows], dtype=torch.int32, device=DEVICE)
    qkv, d_out = [random(rows, 2, 16) for _ in range(3)], random(rows, 2, 16)
    visual = None
    if not plain:
        visual = kernels.Modality(random(rows), random(rows), random(rows, 5), random(32, 5), cu, None, said)
    call = kernels.Call(*qkv, visual, None, cu, None, said, "relu", 0.25, 0.0, None)
    out, saved = kernels.forward(call)
    gradients = kernels.backward(call, d_out, out, saved, (True, False))
    of_tokens = [out, saved.mean, saved.shift, saved.lse.T, *gradients[:4], gradients.token_gates[0]]
    of_frames = [gradients.frame_gates[0], gradients.frames[0]]
    return [x for x in of_tokens if x.numel()], [x for x in of_frames if x.numel()]


@runs_kernels
@all_classes
@pytest.mark.parametrize("plain", [False, True], ids=["shifted", "plain"])
def test_nothing_of_a_sequence_that_is_too_long_looks_right(
    shape_class: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of its tiles are NaN or what they should be, rows beyond are NaN; other sequences lose nothing."""
    if shape_class == "short" and plain:
        pytest.skip("what has no modality is never short")
    launch = attention_triton.kernels.launch

    def unwritten(empty: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: tree_map(lambda x: x.fill_(UNWRITTEN), empty(*arguments))

    right = outputs(LONG, plain) if shape_class != "short" else None
    for name in ("empty_outputs", "empty_gradients"):
        monkeypatch.setattr(launch, name, unwritten(getattr(launch, name)))
    written = outputs(SHORT, plain)
    for i, x in enumerate([*written[0], *written[1]]):
        assert not (x == UNWRITTEN).any(), f"output {i} has rows that nobody wrote"
        assert x[-SHORT:].isfinite().all(), f"output {i} of the other sequence"
    if right is None:  # one tile: everything that its rows depend on is cut off
        assert all(x[:LONG].reshape(LONG, -1).isnan().any(1).all() for x in written[0] if x.shape != (LONG + SHORT, 16))
        return
    for i, (x, e) in enumerate(zip([*written[0], *written[1]], [*right[0], *right[1]], strict=True)):
        assert ((x == e) | x.isnan()).all(), f"output {i} is neither right nor NaN"
        assert torch.equal(x[-SHORT:], e[-SHORT:])
    dq, dk, dv = (x for x in written[0] if x.shape == written[0][0].shape and x is not written[0][0])
    assert all(x[LONG - 1].isnan().all() for x in (dq, dk, dv))
    # Of medium sequences forward walks over all tiles. Of long ones the shift of the last keys is NaN, hence all of z.
    rows = {"medium": 0, "long": 1 if plain else LONG}[shape_class]
    assert written[0][0][LONG - rows : LONG].isnan().all()
