"""What :func:`~cmsbert_fast.ops.residual_norm.api.residual_norm` takes, by name."""

from typing import NamedTuple

from torch import Tensor


class Parameters(NamedTuple):
    """The bias of the product before, and LayerNorm's weight and bias: each (D,).

    Their dtype may be wider than that of the product.
    """

    bias: Tensor
    weight: Tensor
    shift: Tensor
