"""Memory that nobody wrote is NaN throughout; and what happens at large n, at small n."""

from collections.abc import Iterator

import pytest
import torch

from cmsbert_fast.ops.contrastive import cpu as cpu_engine
from cmsbert_fast.ops.contrastive import torch as torch_engine
from tests.ops.contrastive.cases import INTERPRETED, tile


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens at large n, at small n: several chunks, tiles, groups of tiles, strips and splits.

    Tiles are compiled for a GPU as they are: tests take ``size(n)`` rows there, more than ``FEW`` and than
    ``MAX_GROUPS`` tiles hold.
    """
    monkeypatch.setattr(torch_engine, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(cpu_engine, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(cpu_engine, "AT_ONCE_BYTES", 0)
    monkeypatch.setattr(torch_engine, "COMPARISONS", 0)
    if not INTERPRETED:
        return
    from cmsbert_fast.kernels.contrastive import call, gradients, statistics

    def small_tile(kernel: str, *_: object) -> dict[str, int]:
        return tile(32, 32, 16) if kernel == "gradient_product" else tile(16, 16, 32)

    monkeypatch.setattr(call, "tile", small_tile)
    monkeypatch.setattr(call, "FEW", 0)
    monkeypatch.setattr(statistics, "MAX_GROUPS", 2)
    for name, value in {"MIN_STRIP": 32, "STRIP_BYTES": 1, "PROGRAMS": 16}.items():
        monkeypatch.setattr(gradients, name, value)
