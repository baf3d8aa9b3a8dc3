"""MISA for one utterance in eval mode, literally (Hazarika et al. 2020, with the differences that the model names)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cmsbert_fast.reference.layers import layer_norm, linear
from cmsbert_fast.reference.recurrent import part, states


def rows(
    weights: Mapping[str, Tensor], text: Tensor, frames: Mapping[str, Tensor], heads: int
) -> dict[str, Tensor | float]:
    """The logits y, (num_labels,), the codes p_m and c_m, (d,), and the error of reconstruction.

    Args:
        weights: The model's state dict.
        text: X, (N, D): pieces of BERT, or words where the weights have a "text_net".
        frames: "visual" (N_v, d_v) and "acoustic" (N_a, d_a), or one of them; each may have no rows.
        heads: Of the Transformer layer.
    """
    found: dict[str, Tensor] = {}
    private, shared, errors = [], [], []
    for name, sequence in (("text", text), *((m, frames[m]) for m in ("visual", "acoustic") if m in frames)):
        net = part(weights, f"{name}_net")
        u = _final_states(sequence, net) if net else sequence.sum(dim=0) / max(1, len(sequence))
        x = torch.relu(linear(u, part(weights, f"{name}_projection.dense")))
        x = layer_norm(x, part(weights, f"{name}_projection.norm"))
        p = torch.sigmoid(linear(x, part(weights, f"{name}_private")))
        c = torch.sigmoid(linear(x, part(weights, "shared")))
        xhat = linear(p + c, part(weights, f"{name}_decoder"))
        errors.append(((xhat - x) ** 2).mean())
        private.append(p)
        shared.append(c)
        found |= {f"{name}_private": p, f"{name}_shared": c}
    tokens = _transformer_layer([*private, *shared], part(weights, "transformer"), heads)
    y = torch.relu(linear(torch.cat(tokens), part(weights, "fusion_dense")))
    return {"logits": linear(y, part(weights, "classifier")), **found, "reconstruction": sum(errors) / len(errors)}


def _final_states(sequence: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """u_m = [h1 fwd; h2 fwd; h1 bwd; h2 bwd], (4 d_m,)."""
    ahead, behind = _both_directions(list(sequence), part(weights, "lstm1"))
    normed = [
        layer_norm(torch.cat([f, b]), part(weights, "norm")) for f, b in zip(ahead, reversed(behind), strict=True)
    ]
    ahead2, behind2 = _both_directions(normed, part(weights, "lstm2"))
    nothing = sequence.new_zeros(sequence.shape[1])
    return torch.cat([hidden[-1] if hidden else nothing for hidden in (ahead, ahead2, behind, behind2)])


def _both_directions(sequence: list[Tensor], weights: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The hidden states of both directions, each in the order in which it computes them."""
    if not sequence:
        return [], []
    ahead, _ = states(torch.stack(sequence), part(weights, "forwards"))
    behind, _ = states(torch.stack(sequence[::-1]), part(weights, "backwards"))
    return ahead, behind


def _transformer_layer(tokens: list[Tensor], weights: Mapping[str, Tensor], heads: int) -> list[Tensor]:
    """A post-norm layer: LN(z + FF z), z = LN(x + attention x)."""
    size = len(tokens[0]) // heads
    q, k, v = zip(
        *((weights["self_attn.in_proj_weight"] @ x + weights["self_attn.in_proj_bias"]).chunk(3) for x in tokens),
        strict=True,
    )
    out = []
    for i, x in enumerate(tokens):
        z = torch.zeros_like(x)
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            scores = torch.stack([q[i][own] @ k[j][own] / math.sqrt(size) for j in range(len(tokens))])
            attended = torch.softmax(scores, dim=0)
            for j in range(len(tokens)):
                z[own] = z[own] + attended[j] * v[j][own]
        z = layer_norm(x + linear(z, part(weights, "self_attn.out_proj")), part(weights, "norm1"))
        wide = torch.relu(linear(z, part(weights, "linear1")))
        out.append(layer_norm(z + linear(wide, part(weights, "linear2")), part(weights, "norm2")))
    return out
