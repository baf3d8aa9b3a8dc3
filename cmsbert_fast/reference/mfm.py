"""MFM for one utterance in eval mode, literally, word by word (Tsai et al. 2019), and its MMD."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cmsbert_fast.reference.layers import linear
from cmsbert_fast.reference.mfn import fused, two_layers
from cmsbert_fast.reference.recurrent import cell, last, part


def rows(weights: Mapping[str, Tensor], text: Tensor, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """y, the codes z and the errors of reconstruction.

    Args:
        weights: The model's state dict.
        text: (W, D), a row a word.
        frames: "visual" and "acoustic", or one of them, (W, d_m), one frame a word.
    """
    found = {"shared_code": linear(fused(weights, text, frames), part(weights, "shared_code"))}
    shared = torch.relu(two_layers(part(weights, "shared_factor"), found["shared_code"]))
    for name, x in {"text": text, **frames}.items():
        own = part(weights, f"{name}_autoencoder")
        code = linear(last(x, part(own, "encoder")), part(own, "code"))
        given = torch.cat([shared, torch.relu(two_layers(part(own, "factor"), code))])
        h = c = torch.zeros_like(given)
        error = x.new_zeros(())
        for row in x:
            h, c = cell(given, h, c, part(own, "decoder"), suffix="")
            given = h
            error = error + (linear(h, part(own, "output")) - row).square().mean() / len(x)
        found |= {f"{name}_code": code, f"{name}_error": error}
    return {"logits": two_layers(part(weights, "classifier"), shared), **found}


def mmd(z: Tensor, g: Tensor) -> Tensor:
    """mean k(g, g') + mean k(z, z') - 2 mean k(g, z), over all pairs; k(x, x') = exp(-|x - x'|^2 / d^2)."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        kernels = [torch.exp(-(x - y).square().sum() / len(x) ** 2) for x in a for y in b]
        return torch.stack(kernels).mean()

    return mean(g, g) + mean(z, z) - 2 * mean(g, z)
