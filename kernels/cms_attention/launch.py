"""Launches of the CMS attention kernels: which ones serve a call, on what grid, with which tiles."""

import math
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from cmsbert_fast.kernels import common, tiles
from cmsbert_fast.kernels.cms_attention import arguments, varlen
from cmsbert_fast.kernels.cms_attention.aligned import aligned
from cmsbert_fast.kernels.cms_attention.attention import (
    attention_backward_key_kernel,
    attention_backward_query_kernel,
    attention_forward_kernel,
)
from cmsbert_fast.kernels.cms_attention.call import (
    Call,
    Gradients,
    Modality,
    Saved,
    empty_gradients,
    empty_outputs,
    mean_width,
)
from cmsbert_fast.kernels.cms_attention.gates import gate_backward_frame_kernel, gate_backward_token_kernel
from cmsbert_fast.kernels.cms_attention.short import (
    short_backward_kernel,
    short_forward_kernel,
    short_gate_backward_kernel,
)
from cmsbert_fast.kernels.cms_attention.tiled import medium_forward_kernel, shift_forward_kernel, zero_tail_kernel
from cmsbert_fast.kernels.common import tile_edge

# Heights of tiles of short sequences besides the longest one's, on devices by whose compiles they were chosen; "*" is
# the interpreter.
SHORT_TILES = {"sm_90": (16, 32), "*": (16, 32)}
# Of zero_tail: the rows of no sequence are few.
TAIL_PROGRAMS, TAIL_TILE = 8, {"BLOCK_N": 16, "BLOCK_D": 64}


def run(kernel: Any, grid: tuple[int, ...], given: dict[str, Any], config: dict[str, int]) -> None:
    """Launches a kernel. Every launch of this module passes here: the compile tests listen in."""
    kernel[grid](**given, **config)


class Launcher:
    """The arguments that all kernels of one call take from the same place."""

    def __init__(self, call: Call):
        self.call = call
        self.device = common.device_class(call.query.device)
        self.packed = call.cu_seqlens is not None
        self.heads, self.head_size = call.query.shape[-2:]
        self.precision = common.dot_precision(call.query.dtype, self.device, common.SPLIT)
        modalities = (call.visual, call.acoustic)
        i_acoustic, s_mean = call.mean_columns
        self.sources = tuple(
            arguments.source(m, self.packed, i_mean) for m, i_mean in zip(modalities, (0, i_acoustic), strict=True)
        )
        self.arguments: dict[str, Any] = {
            "q": arguments.heads(call.query, self.packed),
            "k": arguments.heads(call.key, self.packed),
            "v": arguments.heads(call.value, self.packed),
            "sequences": arguments.sequences(call),
            "sources": self.sources,
            "dropout": arguments.dropout(call),
            "n_batch": call.batch,
            "n_rows": call.rows,
            "length": call.max_length,
            "length_v": 0 if call.visual is None else call.visual.max_length,
            "length_a": 0 if call.acoustic is None else call.acoustic.max_length,
            "n_heads": self.heads,
            "head_size": self.head_size,
            "hidden_size": self.heads * self.head_size,
            "s_mean": s_mean,
            "scale": call.scale,
            "threshold": round(call.dropout_p * 2**24),
            "ACTIVATION": call.activation,
            "PRECISION": self.precision,
            "BLOCK_D": tile_edge(self.head_size),
            "BLOCKS_N": self.short_tiles,
            "BLOCKS_X": tuple(16 if m is None else tile_edge(m.frames.shape[-1]) for m in modalities),
        }

    @property
    def width(self) -> int:
        """Columns of the tiles of frames of all modalities."""
        return sum(tile_edge(m.frames.shape[-1]) for m in self.call.modalities)

    @property
    def padded(self) -> int:
        """1 where short sequences all take one tile: in padded batches, and on devices without lower ones."""
        return int(not self.packed or self.device not in SHORT_TILES)

    @property
    def short_tiles(self) -> tuple[int, ...]:
        """Heights of tiles of short sequences, up to the longest one's.

        Padded sequences are all as long as it. With wide heads or frames it is the only height: a kernel with code for
        three would spill.
        """
        highest = tile_edge(self.call.max_length)
        narrow = self.head_size <= 64 and self.width <= 192
        lower = SHORT_TILES.get(self.device, ()) if self.packed and narrow else ()
        return (*(n for n in lower if n < highest), highest)

    def config(self, name: str) -> dict[str, int]:
        """The table's row for this call."""
        sizes = {
            "tokens": self.call.max_length,
            "head_size": self.head_size,
            "batch": self.call.batch,
            "width": self.width,
            "padded": self.padded,
        }
        return tiles.configuration("cms_attention", name, self.device, self.call.query.element_size(), **sizes)

    def head_grid(self, config: dict[str, int]) -> tuple[int, int]:
        """A program for each sequence and HEADS heads."""
        return self.call.batch, triton.cdiv(self.heads, config["HEADS"])

    def token_tiles(self, block: int) -> int:
        """Tiles of a sequence's tokens: at least one, which zeroes the rows of no sequence."""
        return max(1, triton.cdiv(self.call.max_length, block))

    def run(self, kernel: Any, grid: tuple[int, ...], config: dict[str, int], **more: Any) -> None:
        """Launches ``kernel`` with those of the arguments that it takes, by keyword."""
        pool = self.arguments | more
        names = [name for name in kernel.arg_names if name not in config]
        run(kernel, grid, {name: pool[name] for name in names}, config)


def forward(call: Call) -> tuple[Tensor, Saved]:
    """z (Eq. 1-7) and what backward needs: two launches for long sequences with a modality, else one (with PyTorch's
    varlen attention, more).

    Args:
        call: Checked arguments; ``seed`` is (1,) int64 where ``dropout_p > 0``.

    Returns:
        z, contiguous, in the shape and dtype of ``call.query``; and what to hand to :func:`backward`.
    """
    out, saved = empty_outputs(call)
    if call.rows == 0 or call.batch == 0:
        return out.zero_(), saved
    launcher = Launcher(aligned(call))
    if call.by_varlen:
        return _forward_by_varlen(launcher, saved)
    outputs = {"out": out, "mean": saved.mean, "lse": saved.lse, "shift": saved.shift if call.modalities else None}
    if call.shape_class == "short":
        config = launcher.config("short_forward")
        launcher.run(short_forward_kernel, launcher.head_grid(config), config, **outputs)
        return out, saved
    if call.shape_class == "medium":
        config = launcher.config("medium_forward")
        launcher.run(medium_forward_kernel, launcher.head_grid(config), config, **outputs)
        return out, saved
    if call.modalities:
        config = launcher.config("shift_forward")
        n_tiles = launcher.token_tiles(config["BLOCK_N"])
        launcher.run(shift_forward_kernel, (call.batch * n_tiles,), config, n_tiles=n_tiles, **outputs)
    config = launcher.config("attention_forward")
    n_tiles = launcher.token_tiles(config["BLOCK_M"])
    launcher.run(attention_forward_kernel, (call.batch * n_tiles, launcher.heads), config, n_tiles=n_tiles, **outputs)
    return out, saved


def _forward_by_varlen(launcher: Launcher, saved: Saved) -> tuple[Tensor, Saved]:
    """Mean frames by a kernel, the shift by one product, attention by PyTorch.

    Backward is what it is without: PyTorch's adds up dq in an order that the machine chooses.
    """
    call = launcher.call
    assert call.cu_seqlens is not None
    query, key, value = call.query, call.key, call.value
    if call.modalities:
        config = launcher.config("shift_forward")
        n_tiles = launcher.token_tiles(config["BLOCK_N"])
        launcher.run(
            shift_forward_kernel, (call.batch * n_tiles,), config, n_tiles=n_tiles, mean=saved.mean, shift=None
        )
        torch.mm(saved.mean, _weights_side_by_side(call).t(), out=saved.shift)
        a = saved.shift.view(query.shape)
        query, key, value = query + a, key + a, value + a
    query, key, value = (_in_wide_words(x) for x in (query, key, value))
    out, lse = varlen.attention(query, key, value, call.cu_seqlens, call.max_length, call.scale)
    launcher.run(zero_tail_kernel, (TAIL_PROGRAMS, launcher.heads), TAIL_TILE, out=out, lse=lse)
    return out, saved._replace(lse=lse.mul_(math.log2(math.e)))


def _in_wide_words(x: Tensor) -> Tensor:
    """x itself where flash attention can read it, 16 bytes at a time; else a copy."""
    fits = x.stride(-1) == 1 and all(n % 8 == 0 for n in x.stride()[:-1]) and x.data_ptr() % 16 == 0
    return x if fits else x.contiguous()


def _weights_side_by_side(call: Call) -> Tensor:
    """(D, columns): the shift weights in the columns of the mean frames."""
    weights = [m.weight for m in call.modalities]
    missing = [mean_width(w.shape[1]) - w.shape[1] for w in weights]
    return torch.cat([F.pad(w, (0, n)) if n else w for w, n in zip(weights, missing, strict=True)], dim=1)


def backward(
    call: Call, d_out: Tensor, out: Tensor | None, saved: Saved, frames_wanted: tuple[bool, bool]
) -> Gradients:
    """All gradients but the shift weights', which are ``da^T m``: one matrix product, left to the caller.

    Args:
        call: As in :func:`forward`.
        d_out: Gradient of z, any strides.
        out: z; None where the call's shape class is short.
        saved: From :func:`forward`.
        frames_wanted: Whether the visual and the acoustic frames want a gradient.
    """
    gradients = empty_gradients(call, frames_wanted)
    if call.rows == 0 or call.batch == 0:
        for gradient in gradients.flat:
            gradient.zero_()
        return gradients
    call = aligned(call, frames_wanted)
    launcher = Launcher(call)
    launcher.arguments |= {
        "d_out": arguments.heads(d_out, launcher.packed),
        "mean": saved.mean,
        "dq": gradients.query,
        "dk": gradients.key,
        "dv": gradients.value,
        "d_shift": gradients.shift if call.modalities else None,
    }
    of_sources = _source_gradients(call, gradients, frames_wanted)
    if call.shape_class == "short":
        _short_backward(launcher, of_sources)
    else:
        _long_backward(launcher, out, saved, gradients.shift, of_sources)
    return gradients


OfModalities = tuple[arguments.SourceGradients | None, ...]


def _source_gradients(call: Call, gradients: Gradients, frames_wanted: tuple[bool, bool]) -> OfModalities:
    """What backward writes of each modality."""
    written = (gradients.token_gates, gradients.frame_gates, gradients.frames)
    return tuple(
        None if m is None else arguments.SourceGradients(token, frame, frames if wanted else None)
        for m, token, frame, frames, wanted in zip((call.visual, call.acoustic), *written, frames_wanted, strict=True)
    )


def _short_backward(launcher: Launcher, gradients: OfModalities) -> None:
    """Attention, then the gates of both modalities."""
    config = launcher.config("short_backward")
    launcher.run(short_backward_kernel, launcher.head_grid(config), config)
    if launcher.call.modalities:
        n_rows_v, n_rows_a = (0 if g is None else g.frame_gate.numel() for g in gradients)
        config = launcher.config("short_gate_backward")
        launcher.run(
            short_gate_backward_kernel,
            (launcher.call.batch, len(gradients)),
            config,
            gradients=gradients,
            n_rows_v=n_rows_v,
            n_rows_a=n_rows_a,
        )


def _long_backward(
    launcher: Launcher, out: Tensor | None, saved: Saved, d_shift: Tensor, gradients: OfModalities
) -> None:
    """Queries, keys, and for each modality tokens and frames."""
    call = launcher.call
    shift = saved.shift if call.modalities else None
    shared = {"shift": shift, "lse": saved.lse, "delta": torch.empty_like(saved.lse)}
    config = launcher.config("attention_backward_query")
    n_tiles = launcher.token_tiles(config["BLOCK_M"])
    grid = (call.batch * n_tiles, launcher.heads)
    launcher.run(attention_backward_query_kernel, grid, config, n_tiles=n_tiles, out=out, **shared)
    config = launcher.config("attention_backward_key")
    n_tiles = launcher.token_tiles(config["BLOCK_N"])
    grid = (call.batch * n_tiles, launcher.heads)
    launcher.run(attention_backward_key_kernel, grid, config, n_tiles=n_tiles, **shared)
    for m, source, of_source in zip((call.visual, call.acoustic), launcher.sources, gradients, strict=True):
        if m is not None and of_source is not None:
            # One product of (rows, D) and (D, d_m) for all tiles: da rows of no sequence are 0, hence those of dm.
            _gate_backward(launcher, d_shift @ m.weight, m, source, of_source)


def _gate_backward(
    launcher: Launcher, d_mean: Tensor, m: Modality, source: arguments.Source, gradients: arguments.SourceGradients
) -> None:
    """dp, dr and the frames' gradient of one modality; <dm_i, x_j> is computed twice rather than stored."""
    batch = launcher.call.batch
    shared = {"d_mean": d_mean, "source": source, "gradients": gradients, "length_f": m.max_length}
    config = launcher.config("gate_backward_token")
    n_tiles = launcher.token_tiles(config["BLOCK_N"])
    launcher.run(gate_backward_token_kernel, (batch * n_tiles,), config, n_tiles=n_tiles, **shared)
    n_frame_rows = m.frame_gate.numel()
    if n_frame_rows == 0:
        return
    config = launcher.config("gate_backward_frame")
    n_tiles = max(1, triton.cdiv(m.max_length, config["BLOCK_F"]))
    columns = 0 if gradients.frames is None else triton.cdiv(source.size, config["BLOCK_X"])
    grid = (batch * n_tiles, 1 + columns)
    launcher.run(gate_backward_frame_kernel, grid, config, n_tiles=n_tiles, n_frame_rows=n_frame_rows, **shared)
