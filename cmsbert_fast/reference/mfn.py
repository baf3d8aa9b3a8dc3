"""MFN for one utterance in eval mode, literally, word by word (Zadeh et al. 2018)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cmsbert_fast.reference.recurrent import cell, part


def logits(weights: Mapping[str, Tensor], text: Tensor, frames: Mapping[str, Tensor]) -> Tensor:
    """y, (num_labels,).

    Args:
        weights: The model's state dict.
        text: (W, e), a row a word.
        frames: "visual" and "acoustic", or one of them, (W, d_m), one frame a word.
    """
    return two_layers(part(weights, "classifier"), fused(weights, text, frames))


def fused(weights: Mapping[str, Tensor], text: Tensor, frames: Mapping[str, Tensor]) -> Tensor:
    """[h^l; h^a; h^v; u]_W; 0 without words."""
    x = {"text": text, **{name: frames[name] for name in ("acoustic", "visual") if name in frames}}
    lstms = {name: part(weights, f"{name}_lstm") for name in x}
    h = {name: text.new_zeros(lstm["weight_hh_l0"].shape[1]) for name, lstm in lstms.items()}
    c = dict(h)
    u = text.new_zeros(len(weights["memory.retain.out_proj.bias"]))
    memory = part(weights, "memory")
    for t in range(len(text)):
        before = torch.cat(list(c.values()))
        for name, lstm in lstms.items():
            h[name], c[name] = cell(x[name][t], h[name], c[name], lstm)
        both = torch.cat([before, *c.values()])
        attended = torch.softmax(two_layers(part(memory, "attention"), both), dim=0) * both
        proposal = torch.tanh(two_layers(part(memory, "proposal"), attended))
        seen = torch.cat([attended, u])
        retain = torch.sigmoid(two_layers(part(memory, "retain"), seen))
        update = torch.sigmoid(two_layers(part(memory, "update"), seen))
        u = retain * u + update * proposal
    return torch.cat([*h.values(), u])


def two_layers(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """W2 relu W1 x."""
    middle = torch.relu(weights["dense.weight"] @ x + weights["dense.bias"])
    return weights["out_proj.weight"] @ middle + weights["out_proj.bias"]
