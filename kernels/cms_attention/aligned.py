"""Frames and weights with rows of a multiple of 16 numbers, for loads of 16 bytes.

Rows of 47 and 74 numbers, as MOSI's, begin between words: kernels load them two bytes at a time. One launch copies
frames and weights into rows of 48 and 80, with zeros behind, and the kernels read those. Mean frames have these widths
already, and columns of zeros change no sum.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cmsbert_fast.kernels.cms_attention.call import ONE_LAUNCH_FRAME_SIZE, Call, Modality, mean_width
from cmsbert_fast.kernels.common import load_rows, row_contiguous, store_rows, tile_edge

# Fewer short sequences do not fill a GPU: the launch costs more than the loads. Counted are sequences, not tokens, so
# that all full batches of an epoch are alike, and kernels are not compiled for both.
FEWEST_SEQUENCES = 128
ITEM_SIZE = 2
BLOCK_N = 16


class Copied(NamedTuple):
    """Rows to copy."""

    source: Tensor  # (n, size)
    stride: int
    size: int
    out: Tensor  # (n, width), contiguous
    width: int


@triton.jit(do_not_specialize=["n_frames_v", "n_frames_a", "n_weights"])
def align_kernel(copies, n_frames_v, n_frames_a, n_weights, BLOCK_N: tl.constexpr, BLOCKS_X: tl.constexpr):
    """Copies BLOCK_N rows of one of ``copies``, visual and acoustic frames, then weights. Grid (row tiles, 4)."""
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_rows = (n_frames_v, n_frames_a, n_weights, n_weights)
    for i in tl.static_range(4):
        if tl.program_id(1) == i:
            if copies[i] is not None:
                o_x = tl.arange(0, BLOCKS_X[i])
                m_n = o_n < n_rows[i]
                b_x = load_rows(copies[i].source, o_n, m_n, copies[i].stride, o_x, o_x < copies[i].size)
                store_rows(copies[i].out, b_x, o_n, m_n, copies[i].width, o_x, o_x < copies[i].width)


def _copied(x: Tensor) -> Copied:
    x = row_contiguous(x.reshape(-1, x.shape[-1]))
    width = mean_width(x.shape[1])
    return Copied(x, x.stride(0), x.shape[1], x.new_empty(x.shape[0], width), width)


def _wants(m: Modality | None, frames_wanted: bool) -> bool:
    if m is None or frames_wanted or m.frames.numel() == 0:
        return False
    size = m.frames.shape[-1]
    return size % 16 != 0 and size <= ONE_LAUNCH_FRAME_SIZE


def aligned(call: Call, frames_wanted: tuple[bool, bool] = (False, False)) -> Call:
    """The same call with aligned rows where that pays, else the call itself.

    It pays for 16-bit numbers, where sequences are not short or there are at least ``FEWEST_SEQUENCES``.

    Args:
        frames_wanted: Whose frames want a gradient, which has their own size: these are left as they are.
    """
    pair = call.visual, call.acoustic
    wants = [_wants(m, wanted) for m, wanted in zip(pair, frames_wanted, strict=True)]
    few = call.shape_class == "short" and call.batch < FEWEST_SEQUENCES
    if few or call.query.element_size() != ITEM_SIZE or not any(wants):
        return call
    frames = [_copied(m.frames) if m is not None and wanted else None for m, wanted in zip(pair, wants, strict=True)]
    weights = [_copied(m.weight) if m is not None and wanted else None for m, wanted in zip(pair, wants, strict=True)]
    n_frames = [0 if x is None else x.out.shape[0] for x in frames]
    n_weights = call.query.shape[-2] * call.query.shape[-1]
    widths = [16 if x is None else tile_edge(x.width) for x in (*frames, *weights)]
    align_kernel[triton.cdiv(max(*n_frames, n_weights), BLOCK_N), 4](
        copies=(*frames, *weights),
        n_frames_v=n_frames[0],
        n_frames_a=n_frames[1],
        n_weights=n_weights,
        BLOCK_N=BLOCK_N,
        BLOCKS_X=tuple(widths),
    )
    visual, acoustic = (
        m if m is None or x is None or w is None else _replaced(m, x, w)
        for m, x, w in zip(pair, frames, weights, strict=True)
    )
    return call._replace(visual=visual, acoustic=acoustic)


def _replaced(m: Modality, frames: Copied, weight: Copied) -> Modality:
    return m._replace(frames=frames.out.view(*m.frames.shape[:-1], frames.width), weight=weight.out)
