"""Fixtures of the CMS attention kernels' tests."""

from collections.abc import Iterator

import pytest
import torch

from cmsbert_fast.ops.attention import triton as attention_triton


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody wrote is NaN."""
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def shape_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces small calls into a shape class of larger ones, and float32 into the short one."""
    kernels = attention_triton.kernels
    limits = {"short": (64, 128), "medium": (0, 128), "long": (0, 0)}[request.param]
    monkeypatch.setattr(kernels.call, "SHORT_TOKENS", limits[0])
    monkeypatch.setattr(kernels.call, "MEDIUM_TOKENS", limits[1])
    monkeypatch.setattr(kernels.call, "SHORT_ITEM_SIZE", 4)
    tiles = kernels.launch.tiles
    configuration = tiles.configuration

    def of_half_precision(family: str, kernel: str, device: str, item_size: int, **sizes: int) -> dict[str, int]:
        return configuration(family, kernel, device, 2 if kernel.startswith("short") else item_size, **sizes)

    monkeypatch.setattr(tiles, "configuration", of_half_precision)
    return request.param
