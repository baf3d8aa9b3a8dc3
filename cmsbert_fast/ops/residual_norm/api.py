"""y = LayerNorm(residual + dropout(x + b)): how each half of BERT's layer ends, in one step."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cmsbert_fast import reference
from cmsbert_fast.ops.dispatch import choose_backend
from cmsbert_fast.ops.residual_norm import triton
from cmsbert_fast.ops.residual_norm.types import Parameters


class Normed(NamedTuple):
    """The result twice: for the next residual, and for the next matrix product.

    Attributes:
        wide: (T, D) in the residual's dtype.
        rounded: (T, D) in the dtype asked for; the same tensor as ``wide`` where that is its own.
    """

    wide: Tensor
    rounded: Tensor


def residual_norm(
    x: Tensor,
    residual: Tensor,
    parameters: Parameters,
    *,
    eps: float,
    rounded: torch.dtype | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    backend: str = "auto",
) -> Normed:
    """LayerNorm(residual + dropout(x + b)), row by row; differentiable in all floating tensors.

    Args:
        x: (T, D), a product without its bias.
        residual: (T, D); its dtype may be wider than that of x, as under autocast.
        parameters: The product's bias, LayerNorm's weight and bias; each (D,).
        eps: Added to the variance.
        rounded: Dtype of the second result; None = the residual's.
        dropout_p: Probability that a number of x + b becomes 0; less than 1.
        seed: (n,) int64 on the device of x: the "triton" backend drops by its first number. None = one is drawn from
            the device's generator, in one more launch.
        backend: See :mod:`cmsbert_fast.ops.dispatch`. "triton" runs the kernels where they can run,
            "auto" never: no device has timed them.

    Raises:
        ValueError: The shapes, devices or probability do not fit, or the backend is unknown.
    """
    _check(x, residual, parameters, dropout_p)
    name = choose_backend("residual_norm", x, backend)
    if name == "triton":
        if dropout_p and seed is None:
            seed = torch.randint(2**62, (1,), dtype=torch.int64, device=x.device)
        return Normed(*triton.residual_norm(x, residual, parameters, eps, rounded, dropout_p, seed))
    if name == "reference":
        bias, weight, shift = parameters
        y = reference.residual_norm(x, bias, residual, weight, shift, eps, dropout_p)
    else:
        s = residual + F.dropout(x + parameters.bias, dropout_p)
        y = F.layer_norm(s, s.shape[-1:], parameters.weight.to(s.dtype), parameters.shift.to(s.dtype), eps)
    y = y.to(residual.dtype)
    return Normed(y, y if rounded is None else y.to(rounded))


def _check(x: Tensor, residual: Tensor, parameters: Parameters, dropout_p: float) -> None:
    if x.ndim != 2 or residual.shape != x.shape or any(p.shape != x.shape[1:] for p in parameters):
        shapes = ", ".join(str(tuple(p.shape)) for p in parameters)
        raise ValueError(
            f"x is {tuple(x.shape)}, residual {tuple(residual.shape)}, and the parameters are {shapes}; "
            "give (T, D) twice, and (D,) each."
        )
    if any(other.device != x.device for other in (residual, *parameters)):
        raise ValueError("x, residual and parameters are on different devices.")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {dropout_p}; it must be at least 0 and less than 1.")
