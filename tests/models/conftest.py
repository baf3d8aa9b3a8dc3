"""The batch that the tests of models share."""

import pytest
import torch


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return dict(
        input_ids=torch.randint(0, 50, (4, 9), generator=generator),
        attention_mask=(torch.arange(9) < torch.tensor([9, 1, 5, 7])[:, None]).long(),
        visual=torch.randn(4, 6, 5, generator=generator, dtype=torch.float64),
        acoustic=torch.randn(4, 8, 3, generator=generator, dtype=torch.float64),
        visual_mask=(torch.arange(6) < torch.tensor([3, 6, 0, 1])[:, None]).long(),
        acoustic_mask=(torch.arange(8) < torch.tensor([8, 2, 1, 0])[:, None]).long(),
    )
