"""Shared by all tests: how many processes run them, what is skipped without a GPU, and where the real data are."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.interpreter import INTERPRETED, round_products_once

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Read when torch is imported, here and by the processes that tests start. Small tensors gain nothing from threads, and
# those of several workers would wait for each other. A test that is about threads starts them itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Read by cuBLAS when a process first calls it, which any test may do: deterministic products need it then.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if INTERPRETED:
    round_products_once()


@pytest.hookimpl(tryfirst=True)  # before that of pytest-xdist, which starts what the options say
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Folders run on all cores; files and single tests in this process, which starts sooner and can be watched.

    The option ``-n`` decides otherwise.
    """
    option = config.option
    if getattr(option, "numprocesses", 0) is not None or "PYTEST_XDIST_WORKER" in os.environ:
        return
    watched = option.usepdb or option.capture == "no"
    if not watched and all(Path(argument).is_dir() for argument in config.args):
        # One more than cores: many tests wait for processes of their own.
        option.numprocesses, option.dist = len(os.sched_getaffinity(0)) + 1, "worksteal"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch  # not by the process that only hands out tests

    # Unlike PyTorch's matrix products, cuDNN's LSTM takes TF32 unless told otherwise; tests compare in float32.
    torch.backends.cudnn.allow_tf32 = False
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
