"""RAVEN for one utterance in eval mode, literally, word by word (Wang et al. 2019)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cmsbert_fast.reference.recurrent import last, part


def logits(
    weights: Mapping[str, Tensor], text: Tensor, frames: Mapping[str, Sequence[Tensor]], largest_shift: float
) -> Tensor:
    """y, (num_labels,).

    Args:
        weights: The model's state dict.
        text: (W, e), a row a word.
        frames: "visual" and "acoustic", or one of them: the frames (n, d_m) of each word, n >= 0.
        largest_shift: beta.
    """
    names = [name for name in ("visual", "acoustic") if name in frames]
    shifted = torch.zeros_like(text)
    for i, e in enumerate(text):
        heard = torch.cat([_heard(part(weights, f"{name}_frames"), frames[name][i], e) for name in names])
        s = weights["shift.weight"] @ heard + weights["shift.bias"]
        limit = largest_shift * e.norm()
        shifted[i] = e + (s if s.norm() <= limit else s * limit / s.norm())
    return weights["classifier.weight"] @ last(shifted, part(weights, "text_lstm")) + weights["classifier.bias"]


def _heard(weights: Mapping[str, Tensor], frames: Tensor, e: Tensor) -> Tensor:
    """w^m_i h^m_i."""
    x = frames @ weights["dense.weight"].T + weights["dense.bias"]
    h = last(x, part(weights, "lstm"))
    return torch.sigmoid(weights["gate.weight"][0] @ torch.cat([h, e]) + weights["gate.bias"][0]) * h
