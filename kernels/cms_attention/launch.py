"""Launches of CMS attention, forward and backward."""

from typing import Any

import torch
import triton
from cmsbert_fast.kernels import common, tiles
from cmsbert_fast.kernels.cms_attention.attention import (
    attention_backward_key_kernel,
    attention_backward_query_kernel,
    attention_forward_kernel,
)
from cmsbert_fast.kernels.cms_attention.call import Call, Gradients, Modality, Saved, empty_gradients, empty_outputs
from cmsbert_fast.kernels.cms_attention.gates import gate_backward_frame_kernel, gate_backward_token_kernel
from cmsbert_fast.kernels.cms_attention.short import (
    short_backward_kernel,
    short_forward_kernel,
    short_gate_backward_kernel,
)
from cmsbert_fast.kernels.cms_attention.tiled import medium_forward_kernel, shift_forward_kernel
from cmsbert_fast.kernels.common import row_contiguous, tile_edge
from torch import Tensor


def run(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], config: dict[str, int]) -> None:
    """Launches a kernel. Every launch of this module passes here: the compile tests listen in."""
    kernel[grid](**arguments, **config)


def _token_strides(x: Tensor, packed: bool) -> tuple[int, int]:
    """Strides over sequences and rows; those of a packed tensor's sequences are unused."""
    return (0, x.stride(0)) if packed else (x.stride(0), x.stride(1))


def _head_strides(name: str, x: Tensor, packed: bool) -> dict[str, int]:
    s_b, s_n = _token_strides(x, packed)
    return {f"s_{name}b": s_b, f"s_{name}n": s_n, f"s_{name}h": x.stride(-2)}


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _modality_arguments(m: Modality | None, suffix: str, packed: bool) -> dict[str, Any]:
    """The kernels' arguments of one modality."""
    names = ("token_gate", "frame_gate", "frames", "weight", "cu", "mask")
    strides = ("s_pXb", "s_pXn", "s_rXb", "s_rXn", "s_xXb", "s_xXn", "s_wX")
    if m is None:
        values: tuple[Any, ...] = (None,) * 6
        sizes: tuple[int, ...] = (0,) * 7
        length = size = 0
    else:
        frames, weight = row_contiguous(m.frames), row_contiguous(m.weight)
        values = (m.token_gate, m.frame_gate, frames, weight, m.cu_seqlens, _bytes(m.mask))
        sizes = (
            *_token_strides(m.token_gate, packed),
            *_token_strides(m.frame_gate, packed),
            *_token_strides(frames, packed),
            weight.stride(0),
        )
        length, size = m.max_length, frames.shape[-1]
    arguments = {f"{name}_{suffix}": value for name, value in zip(names, values, strict=True)}
    arguments |= {name.replace("X", suffix): value for name, value in zip(strides, sizes, strict=True)}
    return arguments | {f"length_{suffix}": length, f"size_{suffix}": size}


class Launcher:
    """The arguments that all kernels of one call take from the same place."""

    def __init__(self, call: Call):
        self.call = call
        self.device = common.device_class(call.query.device)
        self.item_size = call.query.element_size()
        self.packed = call.cu_seqlens is not None
        self.heads, self.head_size = call.query.shape[-2:]
        self.precision = common.dot_precision(call.query.dtype, self.device, common.SPLIT)
        query, key, value = (row_contiguous(x) for x in (call.query, call.key, call.value))
        self.arguments: dict[str, Any] = {
            "q": query,
            "k": key,
            "v": value,
            "cu": call.cu_seqlens,
            "mask": _bytes(call.mask),
            "seed": call.seed if call.dropout_p > 0 else None,
            **_head_strides("q", query, self.packed),
            **_head_strides("k", key, self.packed),
            **_head_strides("v", value, self.packed),
            "n_batch": call.batch,
            "n_rows": call.rows,
            "length": call.max_length,
            "n_heads": self.heads,
            "head_size": self.head_size,
            "hidden_size": self.heads * self.head_size,
            "scale": call.scale,
            "keep_scale": 1.0 / (1.0 - call.dropout_p),
            "threshold": round(call.dropout_p * 2**24),
            "i_mean_a": call.mean_columns[0],
            "s_mean": call.mean_columns[1],
            **_modality_arguments(call.visual, "v", self.packed),
            **_modality_arguments(call.acoustic, "a", self.packed),
            "ACTIVATION": call.activation,
            "PRECISION": self.precision,
            "BLOCK_D": tile_edge(self.head_size),
            "BLOCK_V": 16 if call.visual is None else tile_edge(call.visual.frames.shape[-1]),
            "BLOCK_A": 16 if call.acoustic is None else tile_edge(call.acoustic.frames.shape[-1]),
        }

    def config(self, name: str) -> dict[str, int]:
        """The table's row for this call."""
        sizes = {"tokens": self.call.max_length, "head_size": self.head_size}
        return tiles.configuration("cms_attention", name, self.device, self.item_size, **sizes)

    def token_tiles(self, block: int) -> int:
        """Tiles of a sequence's tokens; one even without tokens, for somebody must zero the rows of no sequence."""
        return max(1, triton.cdiv(self.call.max_length, block))

    def run(self, kernel: Any, grid: tuple[int, ...], config: dict[str, int], **more: Any) -> None:
        """Launches ``kernel`` with those of the arguments that it takes."""
        pool = self.arguments | more
        names = [name for name in kernel.arg_names if name not in config]
        run(kernel, grid, {name: pool[name] for name in names}, config)


def forward(call: Call) -> tuple[Tensor, Saved]:
    """z (Eq. 1-7) and what backward needs: two launches for long sequences with a modality, else one.

    Args:
        call: Checked arguments; ``seed`` is (1,) int64 where ``dropout_p > 0``.

    Returns:
        z, contiguous, in the shape and dtype of ``call.query``; and what to hand to :func:`backward`.
    """
    out, saved = empty_outputs(call)
    if call.rows == 0 or call.batch == 0:
        return out.zero_(), saved
    launcher = Launcher(call)
    outputs = {"out": out, "mean": saved.mean, "lse": saved.lse, "shift": saved.shift if call.modalities else None}
    if call.shape_class != "long":
        kernel = short_forward_kernel if call.shape_class == "short" else medium_forward_kernel
        config = launcher.config(f"{call.shape_class}_forward")
        grid = (call.batch, triton.cdiv(launcher.heads, config["HEADS"]))
        outputs = {"BLOCK_N": tile_edge(call.max_length)} | outputs
        launcher.run(kernel, grid, config, **outputs)
        return out, saved
    if call.modalities:
        config = launcher.config("shift_forward")
        n_tiles = launcher.token_tiles(config["BLOCK_N"])
        launcher.run(shift_forward_kernel, (call.batch * n_tiles,), config, n_tiles=n_tiles, **outputs)
    config = launcher.config("attention_forward")
    n_tiles = launcher.token_tiles(config["BLOCK_M"])
    launcher.run(attention_forward_kernel, (call.batch * n_tiles, launcher.heads), config, n_tiles=n_tiles, **outputs)
    return out, saved


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
    launcher = Launcher(call)
    d_out = row_contiguous(d_out)
    shared = {
        "mean": saved.mean,
        "shift": saved.shift if call.modalities else None,
        "lse": saved.lse,
        "d_out": d_out,
        **_head_strides("o", d_out, launcher.packed),
        "dq": gradients.query,
        "dk": gradients.key,
        "dv": gradients.value,
        "d_shift": gradients.shift if call.modalities else None,
    }
    if call.shape_class == "short":
        config = launcher.config("short_backward")
        block_n = tile_edge(call.max_length)
        grid = (call.batch, triton.cdiv(launcher.heads, config["HEADS"]))
        launcher.run(short_backward_kernel, grid, config, BLOCK_N=block_n, **shared)
        if call.modalities:
            config = launcher.config("short_gate_backward")
            more = _gate_gradients(call, gradients, frames_wanted)
            launcher.run(short_gate_backward_kernel, (call.batch, 2), config, BLOCK_N=block_n, **shared, **more)
        return gradients

    delta = torch.empty_like(saved.lse)
    config = launcher.config("attention_backward_query")
    n_tiles = launcher.token_tiles(config["BLOCK_M"])
    grid = (call.batch * n_tiles, launcher.heads)
    launcher.run(attention_backward_query_kernel, grid, config, n_tiles=n_tiles, out=out, delta=delta, **shared)
    config = launcher.config("attention_backward_key")
    n_tiles = launcher.token_tiles(config["BLOCK_N"])
    grid = (call.batch * n_tiles, launcher.heads)
    launcher.run(attention_backward_key_kernel, grid, config, n_tiles=n_tiles, delta=delta, **shared)
    for i, (m, suffix) in enumerate(((call.visual, "v"), (call.acoustic, "a"))):
        if m is not None:
            _long_gate_backward(launcher, gradients, i, m, suffix, frames_wanted[i])
    return gradients


def _gate_gradients(call: Call, gradients: Gradients, frames_wanted: tuple[bool, bool]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for i, (m, suffix) in enumerate(((call.visual, "v"), (call.acoustic, "a"))):
        present = m is not None
        arguments[f"d_token_gate_{suffix}"] = gradients.token_gates[i] if present else None
        arguments[f"d_frame_gate_{suffix}"] = gradients.frame_gates[i] if present else None
        arguments[f"d_frames_{suffix}"] = gradients.frames[i] if present and frames_wanted[i] else None
        arguments[f"n_rows_{suffix}"] = gradients.frame_gates[i].numel()
    return arguments


def _long_gate_backward(
    launcher: Launcher, gradients: Gradients, i: int, m: Modality, suffix: str, frames_wanted: bool
) -> None:
    """dp, dr and the frames' gradient of one modality; <dm_i, x_j> is computed twice rather than stored."""
    pool = launcher.arguments
    batch, size = launcher.call.batch, m.frames.shape[-1]
    shared = {
        # One product of (rows, D) and (D, d_m) for all tiles: da rows of no sequence are 0, hence those of dm.
        "d_mean": gradients.shift @ m.weight,
        "d_token_gate": gradients.token_gates[i],
        "d_frame_gate": gradients.frame_gates[i],
        "d_frames": gradients.frames[i] if frames_wanted else None,
        "token_gate": pool[f"token_gate_{suffix}"],
        "frame_gate": pool[f"frame_gate_{suffix}"],
        "frames": pool[f"frames_{suffix}"],
        "cu_f": pool[f"cu_{suffix}"],
        "mask_f": pool[f"mask_{suffix}"],
        "length_f": m.max_length,
        "size": size,
        "n_frame_rows": m.frame_gate.numel(),
        **{f"s_{x}{axis}": pool[f"s_{x}{suffix}{axis}"] for x in "prx" for axis in "bn"},
    }
    config = launcher.config("gate_backward_token")
    n_tiles = launcher.token_tiles(config["BLOCK_N"])
    launcher.run(gate_backward_token_kernel, (batch * n_tiles,), config, n_tiles=n_tiles, **shared)
    if m.frame_gate.numel() > 0:
        config = launcher.config("gate_backward_frame")
        n_tiles = max(1, triton.cdiv(m.max_length, config["BLOCK_F"]))
        grid = (batch * n_tiles, 1 + (triton.cdiv(size, config["BLOCK_X"]) if frames_wanted else 0))
        launcher.run(gate_backward_frame_kernel, grid, config, n_tiles=n_tiles, **shared)
