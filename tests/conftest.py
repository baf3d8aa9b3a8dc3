"""Shared by all tests: skips what needs a GPU where there is none, and finds the real data where it is at hand."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interpreter import INTERPRETED, round_products_once

SHARED = Path(__file__).resolve().parents[2] / "shared"


if INTERPRETED:
    round_products_once()


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


class Disk:
    """Knows what of a folder would outlast a loss of power, and that nothing gets its name before it does."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._synced: dict[int, Any] = {}

    @staticmethod
    def _state(path: Path) -> Any:
        return {p.name: p.stat().st_ino for p in path.iterdir()} if path.is_dir() else path.read_bytes()

    def sync(self, descriptor: int) -> None:
        """Takes the place of ``os.fsync``."""
        found = os.fstat(descriptor)
        paths = [p for p in (self._root, *self._root.rglob("*")) if os.path.samestat(p.stat(), found)]
        if paths:
            self._synced[found.st_ino] = self._state(paths[0])

    def holds(self, path: Path) -> bool:
        """Whether a file or folder was synced as it is now, a folder with all that it holds."""
        return all(
            self._synced.get(p.stat().st_ino) == self._state(p)
            for p in (path, *(path.rglob("*") if path.is_dir() else ()))
        )

    def knows_name(self, path: Path) -> bool:
        """Whether the folder of a file was synced when it had the names that it has now."""
        return self._synced.get(path.parent.stat().st_ino) == self._state(path.parent)

    def checked(self, rename: Callable[..., None]) -> Callable[..., None]:
        """Takes the place of ``os.rename`` and ``os.replace``."""

        def call(source: Any, target: Any, **options: Any) -> None:
            assert self.holds(Path(source)), f"{source} gets its name before it is on the disk"
            rename(source, target, **options)

        return call


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Watches ``tmp_path``."""
    watched = Disk(tmp_path)
    monkeypatch.setattr(os, "fsync", watched.sync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, watched.checked(getattr(os, name)))
    return watched
