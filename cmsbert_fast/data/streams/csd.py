"""CMU-MultimodalSDK computational sequences (``.csd``), which are untrusted HDF5.

Layout: ``/<root name>/data/<video>/features`` (n, d) and ``/intervals`` (n, 2) in seconds; of
the metadata, the names of the features. Nothing else is read, and another process opens the files first (`verify`).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from cmsbert_fast.data.align import Track
from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.streams.hdf5 import ERRORS, Hdf5File
from cmsbert_fast.data.untrusted import child

_NAMES = 1 << 20  # bytes of the names of features


class CsdStream(Hdf5File):
    """One ``.csd`` file: the frames, words or labels of videos.

    Attributes:
        name: The file's name without suffix.
        root: The root name inside the file.
        names: Names of the features, where the metadata have them; else empty.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.name = path.stem
        file = self.file
        assert file is not None
        try:
            roots = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
            roots = [name for name in roots if isinstance(file[name], h5py.Group) and "data" in file[name]]
            if len(roots) != 1:
                raise self.damaged("it must hold one group /<name>/data")
            self.root = roots[0]
            data = self.child(file[self.root], "data")
            if not isinstance(data, h5py.Group):
                raise self.damaged(f"/{self.root}/data must be a group")
            self._data = data
            self._keys = dict.fromkeys(data)
            self.names = _names_in(file[self.root])
        except ERRORS as error:
            raise self.damaged("it cannot be opened as HDF5", error) from error
        self._chosen: list[int] | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def _open(self, key: str) -> tuple[h5py.Dataset, h5py.Dataset]:
        entry = self.child(self._data, key)
        if not isinstance(entry, h5py.Group):
            raise self.damaged(f"{key} must be a group of features and intervals")
        features, intervals = self.data_set(entry, "features"), self.data_set(entry, "intervals")
        if features.shape[:1] == intervals.shape[:1] == (0,):  # what is made of an empty list has no second dimension
            return features, intervals
        if features.ndim != 2 or (features.dtype.kind == "O" and features.shape[1] != 1):
            raise self.damaged(f"features of {key} have the shape {features.shape}, expected (n, d), or (n, 1) words")
        if intervals.shape != (len(features), 2) or intervals.dtype.kind not in "fiu":
            raise self.damaged(f"{key} has {len(features)} frames but intervals of shape {intervals.shape}")
        return features, intervals

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the features that are read; empty where the file has none."""
        return self.names if self._chosen is None else tuple(self.names[k] for k in self._chosen)

    def choose(self, places: list[int]) -> None:
        """Reads these features only, by their places in `names`."""
        self._chosen = places

    def rows(self, key: str) -> int:
        """How many frames, words or labels an entry declares, without reading them."""
        try:
            return len(self._open(key)[0])
        except ERRORS as error:
            raise self.damaged(f"{key} cannot be read", error) from error

    def check(self) -> None:
        """Look at every entry without reading its frames.

        Raises:
            DataError: One of them is damaged.
        """
        declared = 0
        for key in self._keys:
            try:
                declared += sum(data.size * data.dtype.itemsize for data in self._open(key))
                if declared > self.most:
                    raise self.damaged("it declares many times more than it stores")
            except ERRORS as error:
                raise self.damaged(f"{key} cannot be read", error) from error

    def _pair(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            features, intervals = (self.array(data) for data in self._open(key))
        except ERRORS as error:
            raise self.damaged(f"{key} cannot be read", error) from error
        if not len(features):
            return features.reshape(0, features.shape[1] if features.ndim == 2 else 0), np.zeros((0, 2))
        intervals = intervals.astype(np.float64)
        if not np.isfinite(intervals).all():
            raise self.damaged(f"{key} has intervals that are not finite")
        return features, intervals

    def read(self, key: str) -> Track:
        """The frames of one video.

        Raises:
            DataError: The entry is missing, damaged, or does not hold numbers.
        """
        features, intervals = self._pair(key)
        if features.dtype.kind not in "fiub" and len(features):
            raise DataError(f"Choose another stream: {self.name} holds text, not frames of numbers.")
        if self._chosen is not None and len(features):
            if features.shape[1] != len(self.names):
                raise DataError(
                    f"Leave out --columns: {self.name} names {len(self.names)} features, {key} has {features.shape[1]}."
                )
            features = features[:, self._chosen]
        return Track(features, intervals)

    def read_words(self, key: str) -> tuple[list[str], np.ndarray]:
        """The words of one video and their intervals (n, 2); pauses (``sp``) are left out.

        Raises:
            DataError: The entry is missing, damaged, or does not hold text.
        """
        features, intervals = self._pair(key)
        if not len(features):
            return [], intervals
        if features.dtype.kind not in "SO" or features.shape[1] != 1:
            raise DataError(f"Choose another word stream: {self.name} does not hold one word a row.")
        words = [w.decode("utf-8", "replace") if isinstance(w, bytes) else str(w) for w in features[:, 0].tolist()]
        kept = [k for k, word in enumerate(words) if word.strip() and word != "sp"]
        return [words[k] for k in kept], intervals[kept]


def _names_in(root: h5py.Group) -> tuple[str, ...]:
    """The names of features in ``metadata/dimension names``, a JSON list; empty where that is missing or damaged."""
    try:
        for name in ("metadata", "dimension names"):
            if not isinstance(root.get(name, getlink=True), h5py.HardLink):
                return ()
            root = root[name]
        if not isinstance(root, h5py.Dataset) or root.size != 1 or root.is_virtual or root.external or root.chunks:
            return ()
        if h5py.check_string_dtype(root.dtype) is None:
            return ()
        text = root[()].ravel()[0] if root.shape else root[()]
        names = json.loads(text) if len(text) <= _NAMES else []
    except (*ERRORS, RecursionError):
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def verify(paths: Sequence[Path]) -> None:
    """Lets another process, with little memory and time, open everything that reading the files will open.

    Raises:
        DataError: It refused a file, ran out of memory or time, or crashed.
    """
    child.examine(paths, check)


def check(path: Path) -> None:
    """Looks at every entry of a file without reading its frames.

    Raises:
        DataError: The file is damaged.
    """
    CsdStream(path).check()
