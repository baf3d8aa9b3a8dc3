"""The contrastive loss, read from a configuration."""

import pytest
import torch

from cmsbert_fast import pairwise_contrastive_loss
from cmsbert_fast.models.cmsbert.contrastive_loss import contrastive_loss
from tests.models.small import config


@pytest.mark.parametrize("present", [("visual", "acoustic"), ("acoustic",)])
def test_the_contrastive_loss_is_the_configurations(present):
    generator = torch.Generator().manual_seed(2)
    embeds = {f"{m}_embeds": torch.randn(6, 4, generator=generator) for m in ("linguistic", *present)}
    labels = torch.tensor([0.0, 1.0, 1.2, -1.0, -1.1, 2.0])
    settings = config(temperature=0.3, smoothing=0.7, threshold=0.25)
    expected = pairwise_contrastive_loss(
        embeds["linguistic_embeds"], embeds.get("visual_embeds"), embeds["acoustic_embeds"], labels, 0.3, 0.7, 0.25
    )
    assert torch.equal(contrastive_loss({**embeds, "logits": labels}, labels, settings), expected)
    literal = contrastive_loss(embeds, labels, settings, backend="reference")
    torch.testing.assert_close(literal, expected)
    unsmoothed = contrastive_loss(embeds, labels, config(temperature=0.3, smoothing=None))
    assert (unsmoothed - expected).abs() > 0.01
