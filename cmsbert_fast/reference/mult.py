"""MulT for one utterance in eval mode, literally (Tsai et al. 2019, with the differences that the model names)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cmsbert_fast.reference.layers import layer_norm, linear
from cmsbert_fast.reference.recurrent import part


def logits(weights: Mapping[str, Tensor], text: Tensor, frames: Mapping[str, Tensor], heads: int) -> Tensor:
    """y, (num_labels,).

    Args:
        weights: The model's state dict.
        text: Features of text, (N, D).
        frames: "visual" (N_v, d_v) and "acoustic" (N_a, d_a), or one of them; each may have no rows.
        heads: Of every attention.
    """
    features = {"text": text, **frames}
    names = [name for name in ("text", "acoustic", "visual") if name in features]
    x = {name: _convolution(features[name], weights[f"{name}_conv.weight"]) for name in names}
    last = []
    for a in names:
        crossed = [_encoder(x[a], x[b], part(weights, f"crossmodal.{a}_from_{b}"), heads) for b in names if b != a]
        memory = part(weights, f"memory.{a}")
        joint = [torch.cat(rows) for rows in zip(*crossed, strict=True)]
        states = _encoder(joint, None, memory, heads)
        last.append(states[-1] if states else torch.zeros_like(memory["norm.bias"]))
    r = torch.cat(last)
    z = linear(torch.relu(linear(r, part(weights, "dense"))), part(weights, "dense2"))
    return linear(r + z, part(weights, "classifier"))


def _convolution(rows: Tensor, weight: Tensor) -> list[Tensor]:
    """Rows outside the sequence are 0; weight (d, d_m, k)."""
    half = weight.shape[2] // 2
    out = []
    for i in range(len(rows)):
        total = weight.new_zeros(weight.shape[0])
        for tap in range(weight.shape[2]):
            j = i + tap - half
            if 0 <= j < len(rows):
                total = total + weight[:, :, tap] @ rows[j]
        out.append(total)
    return out


def position(p: int, size: int) -> list[float]:
    """pos(p) of the p-th row, 1 the first."""
    rates = [10000 ** (-k / (size / 2 - 1)) for k in range(size // 2)]
    return [math.sin(p * rate) for rate in rates] + [math.cos(p * rate) for rate in rates]


def _encoder(
    target: list[Tensor], source: list[Tensor] | None, weights: Mapping[str, Tensor], heads: int
) -> list[Tensor]:
    q = _embedded(target)
    k = None if source is None else _embedded(source)
    layer = 0
    while own := part(weights, f"layers.{layer}"):
        q = _layer(q, q if k is None else k, own, heads)
        layer += 1
    return [layer_norm(x, part(weights, "norm")) for x in q]


def _embedded(rows: list[Tensor]) -> list[Tensor]:
    return [math.sqrt(len(x)) * x + x.new_tensor(position(i + 1, len(x))) for i, x in enumerate(rows)]


def _layer(target: list[Tensor], source: list[Tensor], weights: Mapping[str, Tensor], heads: int) -> list[Tensor]:
    attention, norm1 = part(weights, "attention"), part(weights, "norm1")
    w, b = attention["in_proj_weight"].chunk(3), attention["in_proj_bias"].chunk(3)
    keys = [layer_norm(x, norm1) for x in source]
    out = []
    for i, x in enumerate(target):
        query = w[0] @ layer_norm(x, norm1) + b[0]
        seen = [y for j, y in enumerate(keys) if j <= i + abs(len(source) - len(target))]
        z = torch.zeros_like(x)
        size = len(x) // heads
        for h in range(heads if seen else 0):
            own = slice(h * size, (h + 1) * size)
            scores = [query[own] @ (w[1] @ y + b[1])[own] / math.sqrt(size) for y in seen]
            for p, y in zip(torch.softmax(torch.stack(scores), dim=0), seen, strict=True):
                z[own] = z[own] + p * (w[2] @ y + b[2])[own]
        z = x + linear(z, part(attention, "out_proj"))
        wide = torch.relu(linear(layer_norm(z, part(weights, "norm2")), part(weights, "dense")))
        out.append(z + linear(wide, part(weights, "out")))
    return out
