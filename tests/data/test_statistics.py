"""Running moments."""

import json

import numpy as np
import pytest

from cmsbert_fast.data.statistics import Moments


@pytest.fixture
def blocks() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    # Far from zero, where sum(x^2) - mean^2 has no digits left.
    return [(1e4 + random.normal(size=(n, 3))).astype(np.float32) for n in (5, 1, 0, 40, 7)]


def test_blocks_give_the_moments_of_all_frames(blocks: list[np.ndarray]) -> None:
    moments, frames = Moments(), np.concatenate(blocks).astype(np.float64)
    for block in blocks:
        moments.see(block)
    assert moments.count == len(frames)
    np.testing.assert_allclose(moments.mean, frames.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(moments.std, frames.std(axis=0), rtol=1e-12)


def test_a_state_goes_through_json_to_the_bit(blocks: list[np.ndarray]) -> None:
    straight, broken = Moments(), Moments()
    for block in blocks:
        straight.see(block)
        broken.see(block)
        broken = Moments(json.loads(json.dumps(broken.state())))
    assert broken.state() == straight.state()


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_no_frames_and_no_features(shape: tuple[int, int]) -> None:
    moments = Moments()
    moments.see(np.zeros(shape, dtype=np.float32))
    assert moments.state() == {"count": 0, "mean": [], "square": []}
    assert moments.std.shape == (0,)
