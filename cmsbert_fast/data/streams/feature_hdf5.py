"""Frames in HDF5 files, ``.h5`` or ``.hdf5``: the only data set of the file, or the one called ``features``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.streams.hdf5 import ERRORS, Hdf5File
from cmsbert_fast.data.untrusted import child

FEATURES = "features"  # of several arrays
_FILES = 500  # that another process is given at a time


def load_hdf5(path: Path) -> np.ndarray:
    """The frames of a file that `verify_hdf5` has let pass.

    Raises:
        DataError: It is damaged, holds several data sets, or more than its size warrants.
    """
    with _opened(path) as (file, frames):
        return file.array(frames)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Hdf5File, h5py.Dataset]]:
    """A file and the data set of its frames; closed afterwards."""
    file = Hdf5File(path)
    root = file.file
    assert root is not None
    try:
        names = [FEATURES] if FEATURES in root else list(root)[:20]
        if len(names) != 1:
            raise DataError(
                f"Save {path.name} with the frames as its only data set or as {FEATURES!r}: it has "
                f"{', '.join(name[:40] for name in names) or 'none'}."
            )
        yield file, file.data_set(root, names[0])
    except ERRORS as error:
        raise file.damaged("it cannot be read", error) from error
    finally:
        file.close()


def verify_hdf5(paths: Sequence[Path]) -> None:
    """Lets another process, with little memory and time, open files first.

    Raises:
        DataError: It refused one, ran out of memory or time, or crashed.
    """
    for begin in range(0, len(paths), _FILES):
        child.examine(paths[begin : begin + _FILES], check_hdf5)


def check_hdf5(path: Path) -> None:
    """Looks at a file without reading its frames.

    Raises:
        DataError: It is damaged.
    """
    with _opened(path):
        pass
