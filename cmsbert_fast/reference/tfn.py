"""TFN for one utterance in eval mode, literally (Zadeh et al. 2017, with the differences that the model names)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cmsbert_fast.reference.recurrent import last, part


def logits(weights: Mapping[str, Tensor], text: Tensor, frames: Mapping[str, Tensor]) -> Tensor:
    """y, (num_labels,).

    Args:
        weights: The model's state dict.
        text: X, (N, D).
        frames: "visual" (N_v, d_v) and "acoustic" (N_a, d_a), or one of them; each may have no rows.
    """
    one = text.new_ones(1)
    z_l = weights["text_linear.weight"] @ last(text, part(weights, "text_lstm")) + weights["text_linear.bias"]
    factors = [torch.cat([one, z_l])]
    for name in ("visual", "acoustic"):
        if name in frames:
            factors.insert(0, torch.cat([one, _frame_net(part(weights, f"{name}_net"), frames[name])]))
    product = one
    for factor in factors:  # acoustic, visual, text: the first varies slowest
        product = torch.stack([a * b for a in product for b in factor])
    p = torch.relu(weights["fusion_dense.weight"] @ product + weights["fusion_dense.bias"])
    p = torch.relu(weights["fusion_dense2.weight"] @ p + weights["fusion_dense2.bias"])
    y = weights["classifier.weight"] @ p + weights["classifier.bias"]
    return 6 * torch.sigmoid(y) - 3 if len(y) == 1 else y


def _frame_net(weights: Mapping[str, Tensor], frames: Tensor) -> Tensor:
    """z_m, (h_m,)."""
    mean = frames.sum(dim=0) / max(1, len(frames))
    z = (mean - weights["norm.mean"]) / weights["norm.deviation"] * weights["norm.weight"] + weights["norm.bias"]
    for k in range(3):
        z = torch.relu(weights[f"layers.{k}.weight"] @ z + weights[f"layers.{k}.bias"])
    return z
