"""A linear layer and LayerNorm of one row: for the references of the baselines."""

from collections.abc import Mapping

import torch
from torch import Tensor


def linear(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """W x + b, of ``weight`` and ``bias``."""
    return weights["weight"] @ x + weights["bias"]


def layer_norm(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """LayerNorm with PyTorch's epsilon, of ``weight`` and ``bias``."""
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5) * weights["weight"] + weights["bias"]
