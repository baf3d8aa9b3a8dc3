"""The order in which an epoch takes the examples."""

import numpy as np

from cmsbert_fast.training.batches import epoch_batches


def test_global_batches():
    batches = epoch_batches(25, 8, seed=1, epoch=2)
    assert [len(b) for b in batches] == [7, 6, 6, 6]  # never a tiny last one
    assert sorted(np.concatenate(batches)) == list(range(25))
    again, other = epoch_batches(25, 8, 1, 2), epoch_batches(25, 8, 1, 3)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    assert any((a != b).any() for a, b in zip(batches, other, strict=True))
