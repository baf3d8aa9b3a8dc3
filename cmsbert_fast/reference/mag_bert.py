"""The adaptation gate of MAG-BERT for one utterance in eval mode, piece by piece (Rahman et al. 2020)."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cmsbert_fast.reference.recurrent import part


def shifted(
    weights: Mapping[str, Tensor], x: Tensor, frames: Mapping[str, Sequence[Tensor | None]], beta: float, eps: float
) -> Tensor:
    """X', (N, D).

    Args:
        weights: The model's state dict.
        x: X, (N, D), the output of BERT's embedding layer.
        frames: By modality, of those that the model has, the frame (d_m,) of each piece; None = none.
        beta: As in the model.
        eps: Of the LayerNorm.
    """
    return torch.stack(
        [_piece(weights, x[i], {name: own[i] for name, own in frames.items()}, beta, eps) for i in range(len(x))]
    )


def _piece(
    weights: Mapping[str, Tensor], x: Tensor, frames: Mapping[str, Tensor | None], beta: float, eps: float
) -> Tensor:
    h = torch.zeros_like(x)
    for name, frame in frames.items():
        own = part(weights, f"{name}_gated")
        f = x.new_zeros(own["shift.weight"].shape[1]) if frame is None else frame
        gate = torch.relu(own["gate.weight"] @ torch.cat([f, x]) + own["gate.bias"])
        h = h + gate * (own["shift.weight"] @ f + own["shift.bias"])
    size, size_x = math.sqrt(float(h @ h)), math.sqrt(float(x @ x))
    alpha = min(beta * size_x / ((size or 1) + 1e-6), 1)
    z = alpha * h + x
    centred = z - z.mean()
    z = centred / torch.sqrt((centred * centred).mean() + eps)
    return weights["shift_norm.weight"] * z + weights["shift_norm.bias"]
