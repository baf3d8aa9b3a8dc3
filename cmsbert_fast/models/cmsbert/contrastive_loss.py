"""The contrastive loss of CMSBERT-CLR, from its rows and its configuration."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from cmsbert_fast.models.cmsbert.configuration_cmsbert import CMSBertConfig
from cmsbert_fast.ops.contrastive.api import pairwise_contrastive_loss


def contrastive_loss(
    embeds: Mapping[str, Tensor],
    labels: Tensor,
    config: CMSBertConfig,
    group: "dist.ProcessGroup | None" = None,
    backend: str | None = None,
) -> Tensor:
    """l_con (Eq. 19) with the temperature, smoothing and threshold of a configuration.

    Args:
        embeds: z_m, each (n, d): "linguistic_embeds", "visual_embeds", "acoustic_embeds", without those of missing
            modalities; other entries are ignored.
        labels: (n,), or (n, K) for several labels at once: the same ones are the same class (Eq. 23).
        config: The model's configuration.
        group: As in :func:`~cmsbert_fast.ops.contrastive.api.pairwise_contrastive_loss`.
        backend: None = ``config.backend``.
    """
    if labels.dim() == 2:
        labels = (labels.long() * 2 ** torch.arange(labels.shape[1], device=labels.device)).sum(dim=1)
    return pairwise_contrastive_loss(
        embeds.get("linguistic_embeds"),
        embeds.get("visual_embeds"),
        embeds.get("acoustic_embeds"),
        labels,
        config.temperature,
        config.smoothing,
        config.threshold,
        group=group,
        backend=config.backend if backend is None else backend,
    )
