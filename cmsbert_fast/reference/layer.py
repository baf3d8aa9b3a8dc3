"""What BERT's layer computes between its matrix products, literally (Devlin et al., 2019)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + b) = u Phi(u), u = x + b; (T, F)."""
    u = x + bias
    return u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))


def residual_norm(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, eps: float, dropout_p: float = 0.0
) -> Tensor:
    """LayerNorm(residual + dropout(x + b)) with weight and bias ("shift"), row by row; (T, D)."""
    s = residual + F.dropout(x + bias, dropout_p)
    centred = s - s.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * weight + shift
