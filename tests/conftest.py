"""Shared by all tests: skips what needs a GPU where there is none, and finds the real data where it is at hand."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture
def mosi_folder() -> Path:
    """The folder of real CMU-MOSI files beside the checkout; its tests are skipped where it is absent."""
    folder = SHARED / "data" / "mosi"
    if not folder.is_dir():
        pytest.skip("real CMU-MOSI is not beside this checkout")
    return folder


@pytest.fixture
def folds_folder() -> Path:
    """The folder of standard folds beside the checkout; its tests are skipped where it is absent."""
    folder = SHARED / "data" / "folds"
    if not folder.is_dir():
        pytest.skip("the standard folds are not beside this checkout")
    return folder
