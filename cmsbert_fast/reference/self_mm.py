"""Self-MM literally (Yu et al. 2021, with the differences that the model names): one utterance in eval mode, and the
labels that training makes up for one example and modality."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cmsbert_fast.reference.recurrent import last, part


def rows(weights: Mapping[str, Tensor], text: Tensor, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The f_k as "NAME_features" and the y'_k as "NAME_logits", y'_M as "logits".

    Args:
        weights: The model's state dict.
        text: F_l, (D,).
        frames: "visual" (N_v, d_v) and "acoustic" (N_a, d_a), or one of them; each may have no rows.
    """
    inputs = {"text": text}
    for name in ("acoustic", "visual"):
        if name in frames:
            state = last(frames[name], part(weights, f"{name}_lstm"))
            inputs[name] = weights[f"{name}_linear.weight"] @ state + weights[f"{name}_linear.bias"]
    found = {}
    for name, values in {"fusion": torch.cat(list(inputs.values())), **inputs}.items():
        head = part(weights, f"heads.{name}")
        f = torch.relu(head["dense.weight"] @ values + head["dense.bias"])
        middle = torch.relu(head["dense2.weight"] @ f + head["dense2.bias"])
        found[f"{name}_features"] = f
        found["logits" if name == "fusion" else f"{name}_logits"] = (
            head["classifier.weight"] @ middle + head["classifier.bias"]
        )
    return found


def delta(f: Sequence[float], remembered: Sequence[Sequence[float]], labels: Sequence[float]) -> float | None:
    """(D^n - D^p) / (D^p + 1e-8) of one example's f; None if there is no positive or no negative label."""
    positive = [r for r, y in zip(remembered, labels, strict=True) if y >= 0]
    negative = [r for r, y in zip(remembered, labels, strict=True) if y < 0]
    if not positive or not negative:
        return None
    d_p, d_n = (
        math.dist(f, [sum(r[k] for r in some) / len(some) for k in range(len(f))]) for some in (positive, negative)
    )
    return (d_n - d_p) / (d_p + 1e-8)


def made_up(y: float, y_s: float, delta_s: float | None, delta_m: float | None, epoch: int, limit: float = 3) -> float:
    """The new y_s of one example after a step of epoch 2, 3, ...

    Args:
        y, y_s: The label, and the modality's so far.
        delta_s, delta_m: Of the modality and of the fusion.
        epoch: n.
        limit: The new label is clipped to plus or minus this.
    """
    if delta_s is None or delta_m is None or delta_m + 1e-8 == 0:
        return y_s
    new = 0.5 * delta_s / (delta_m + 1e-8) * y + 0.5 * (y + delta_s - delta_m)
    return (epoch - 1) / (epoch + 1) * y_s + 2 / (epoch + 1) * min(max(new, -limit), limit)
