"""The oracles: the literal equations in plain PyTorch. They import nothing else from the project."""

from cmsbert_fast.reference.cms import (
    ACTIVATIONS,
    attention,
    cms_attention,
    directional_loss,
    fusion,
    gate,
    lstm,
    mean_pool,
    pairwise_contrastive_loss,
    projector,
    shift,
    targets,
    total_loss,
    updated_nu,
)
from cmsbert_fast.reference.layer import bias_gelu, residual_norm

__all__ = [
    "ACTIVATIONS",
    "attention",
    "bias_gelu",
    "cms_attention",
    "directional_loss",
    "fusion",
    "gate",
    "lstm",
    "mean_pool",
    "pairwise_contrastive_loss",
    "projector",
    "residual_norm",
    "shift",
    "targets",
    "total_loss",
    "updated_nu",
]
