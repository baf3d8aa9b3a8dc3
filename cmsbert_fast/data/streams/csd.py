"""CMU-MultimodalSDK computational sequences (``.csd``), which are untrusted HDF5.

Layout: ``/<root name>/data/<video>/features`` (n, d) and ``/intervals`` (n, 2) in seconds. Nothing else is read. Links,
virtual and external data sets, and sizes that the file cannot hold are refused. `verify` lets another process open
the files first, because altered ones can make the HDF5 library itself exhaust memory.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from cmsbert_fast.data.align import Track
from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.streams.chunks import check_layout, check_packed, filters_of
from cmsbert_fast.data.untrusted import child
from cmsbert_fast.data.untrusted.files import open_regular
from cmsbert_fast.data.untrusted.limits import FLOOR, RATIO

_DEFLATE_RATIO = 1100  # zlib cannot expand by more than 1032
_STRING_CHUNK = 1 << 20  # bytes: what HDF5 keeps of a data set that is read piece by piece
_POINTER, _STRING = 16, 56  # bytes of a string: in a data set, which points to its text; empty in memory
_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)  # what h5py raises on damaged files
_LONGEST_WORD = 1000  # bytes; variable-length strings are read a few at a time because their size is not declared


class CsdStream:
    """One ``.csd`` file: the frames, words or labels of videos.

    Attributes:
        name: The file's name without suffix.
        root: The root name inside the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self._size = path.stat().st_size
        self._most = RATIO * self._size + FLOOR
        self._file: h5py.File | None = None
        try:
            open_regular(path).close()
            file = self._file = h5py.File(path, "r")
            roots = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
            roots = [name for name in roots if isinstance(file[name], h5py.Group) and "data" in file[name]]
            if len(roots) != 1:
                raise self._damaged("it must hold one group /<name>/data")
            self.root = roots[0]
            data = self._child(file[self.root], "data")
            if not isinstance(data, h5py.Group):
                raise self._damaged(f"/{self.root}/data must be a group")
            self._data = data
            self._keys = dict.fromkeys(data)
        except _ERRORS as error:
            raise self._damaged("it cannot be opened as HDF5", error) from error

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def _damaged(self, what: str, cause: Exception | None = None) -> DataError:
        """The error to raise; the file is closed, because nothing in it is trusted any more."""
        if self._file is not None:
            self._file.close()
        return DataError(
            f"Get {self.path.name} again, it is damaged or not what it seems: {what}"
            + (f" ({cause})." if cause else ".")
        )

    def _child(self, group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise self._damaged(f"{group.name}/{name} is missing or a link to elsewhere")
        found = group[name]
        if h5py.h5o.get_info(found.id).rc > 1:  # else a file of any size is read a hundred thousand times
            raise self._damaged(f"{group.name}/{name} has several names")
        return found

    def _data_set(self, group: h5py.Group, name: str) -> h5py.Dataset:
        """A data set of numbers or strings, stored in the file itself, of a size that the file can hold."""
        data = self._child(group, name)
        where = f"{group.name}/{name}"
        if not isinstance(data, h5py.Dataset) or data.shape is None:
            raise self._damaged(f"{where} must be a data set")
        if data.is_virtual or data.external:
            raise self._damaged(f"{where} points to other files")
        try:
            filters = filters_of(data)
        except DataError as error:
            raise self._damaged(f"{where}: {error}") from error
        stored, declared = data.id.get_storage_size(), data.size * data.dtype.itemsize
        ratio = _DEFLATE_RATIO if filters else 1
        if stored > self._size or declared > stored * ratio:
            raise self._damaged(f"{where} declares {declared} bytes and stores {stored}")
        strings = data.dtype.kind == "O"
        # Small integers become float32.
        itemsize = _POINTER if strings else max(data.dtype.itemsize, 1 if data.dtype.kind == "S" else 4)
        declared, chunk = data.size * itemsize, math.prod(data.chunks or ()) * itemsize
        if declared > self._most or (strings and chunk > _STRING_CHUNK):
            raise self._damaged(
                f"{where} declares {declared} bytes in chunks of {chunk}, too many for its file (if you trust it, save "
                "it without compression)"
            )
        try:
            check_layout(data, itemsize)
        except DataError as error:
            raise self._damaged(f"{where}: {error}") from error
        if data.dtype.kind not in "fiubS" and h5py.check_string_dtype(data.dtype) is None:
            raise self._damaged(f"{where} has the type {data.dtype}, expected numbers or strings")
        return data

    def _array(self, data: h5py.Dataset) -> np.ndarray:
        try:
            check_packed(data, self._most)
        except DataError as error:
            raise self._damaged(f"{data.name}: {error}") from error
        return self._strings(data) if data.dtype.kind == "O" else data[...]

    def _strings(self, data: h5py.Dataset) -> np.ndarray:
        parts: list[np.ndarray] = []
        left = self._most
        for begin in range(0, len(data), 16):
            part = data[begin : begin + 16]
            if any(len(word) > _LONGEST_WORD for word in part.ravel()):
                raise self._damaged(f"{data.name} holds a word of more than {_LONGEST_WORD} bytes")
            left -= sum(len(word) + _STRING for word in part.ravel())
            if left < 0:
                raise self._damaged(f"the words of {data.name} are many times larger than the file")
            parts.append(part)
        return np.concatenate(parts) if parts else np.zeros(data.shape, dtype="S1")

    def _open(self, key: str) -> tuple[h5py.Dataset, h5py.Dataset]:
        entry = self._child(self._data, key)
        if not isinstance(entry, h5py.Group):
            raise self._damaged(f"{key} must be a group of features and intervals")
        features, intervals = self._data_set(entry, "features"), self._data_set(entry, "intervals")
        if features.shape[:1] == intervals.shape[:1] == (0,):  # what is made of an empty list has no second dimension
            return features, intervals
        if features.ndim != 2 or (features.dtype.kind == "O" and features.shape[1] != 1):
            raise self._damaged(f"features of {key} have the shape {features.shape}, expected (n, d), or (n, 1) words")
        if intervals.shape != (len(features), 2) or intervals.dtype.kind not in "fiu":
            raise self._damaged(f"{key} has {len(features)} frames but intervals of shape {intervals.shape}")
        return features, intervals

    def rows(self, key: str) -> int:
        """How many frames, words or labels an entry declares, without reading them."""
        try:
            return len(self._open(key)[0])
        except _ERRORS as error:
            raise self._damaged(f"{key} cannot be read", error) from error

    def check(self) -> None:
        """Look at every entry without reading its frames.

        Raises:
            DataError: One of them is damaged.
        """
        declared = 0
        for key in self._keys:
            try:
                declared += sum(data.size * data.dtype.itemsize for data in self._open(key))
                if declared > self._most:
                    raise self._damaged("it declares many times more than it stores")
            except _ERRORS as error:
                raise self._damaged(f"{key} cannot be read", error) from error

    def _pair(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            features, intervals = (self._array(data) for data in self._open(key))
        except _ERRORS as error:
            raise self._damaged(f"{key} cannot be read", error) from error
        if not len(features):
            return features.reshape(0, features.shape[1] if features.ndim == 2 else 0), np.zeros((0, 2))
        intervals = intervals.astype(np.float64)
        if not np.isfinite(intervals).all():
            raise self._damaged(f"{key} has intervals that are not finite")
        return features, intervals

    def read(self, key: str) -> Track:
        """The frames of one video.

        Raises:
            DataError: The entry is missing, damaged, or does not hold numbers.
        """
        features, intervals = self._pair(key)
        if features.dtype.kind not in "fiub" and len(features):
            raise DataError(f"Choose another stream: {self.name} holds text, not frames of numbers.")
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
