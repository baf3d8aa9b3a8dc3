"""y = gelu(x + b): the bias of a linear layer and the activation behind it in one step."""

from torch import Tensor
from torch.nn import functional as F

from cmsbert_fast import reference
from cmsbert_fast.ops.bias_gelu import triton
from cmsbert_fast.ops.dispatch import choose_backend


def bias_gelu(x: Tensor, bias: Tensor, backend: str = "auto") -> Tensor:
    """gelu(x + b), the exact GELU (not its approximation by tanh); differentiable in both.

    Args:
        x: (T, F), a product without its bias.
        bias: (F,) on the same device; its dtype may be wider than that of x.
        backend: See :mod:`cmsbert_fast.ops.dispatch`. "triton" runs the kernels where they can run,
            "auto" never: no device has timed them.

    Returns:
        (T, F) in the dtype of x.

    Raises:
        ValueError: The shapes or devices do not fit, or the backend is unknown.
    """
    if x.ndim != 2 or bias.shape != x.shape[1:] or bias.device != x.device:
        raise ValueError(
            f"x is {tuple(x.shape)} on {x.device} and bias {tuple(bias.shape)} on {bias.device}; "
            "give (T, F) and (F,) on one device."
        )
    name = choose_backend("bias_gelu", x, backend)
    if name == "triton":
        return triton.bias_gelu(x, bias)
    if name == "reference":
        return reference.bias_gelu(x, bias).to(x.dtype)
    return F.gelu(x + bias).to(x.dtype)
