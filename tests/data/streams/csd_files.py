"""Small ``.csd`` files."""

import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cmsbert_fast.data import DataError
from cmsbert_fast.data.streams.csd import CsdStream

# Files that lie


def stream(path: Path, features: Any = None, intervals: Any = None) -> h5py.File:
    file = h5py.File(path, "w")
    group = file.create_group("COVAREP/data/v")
    if features is not None:
        group.create_dataset("features", data=features)
    if intervals is not None:
        group.create_dataset("intervals", data=intervals)
    return file


GOOD = np.ones((4, 2), dtype=np.float32)

TIMES = np.array([[0, 1], [1, 2], [2, 3], [3, 4.0]])


def refused(path: Path, key: str = "v") -> DataError:
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=path.name) as error:
            CsdStream(path).read(key)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    return error.value
