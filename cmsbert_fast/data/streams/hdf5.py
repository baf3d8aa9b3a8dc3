"""Untrusted HDF5: files are opened and read without links, other files, or more than they can hold.

Links, virtual and external data sets, and sizes that the file cannot hold are refused. `child.examine` lets another
process open the files first, because altered ones can make the HDF5 library itself exhaust memory.
"""

import math
from pathlib import Path

import h5py
import numpy as np

from cmsbert_fast.data.example import DataError, unreadable
from cmsbert_fast.data.streams.chunks import check_layout, check_packed, filters_of
from cmsbert_fast.data.untrusted.files import open_regular
from cmsbert_fast.data.untrusted.first_bytes import LENGTH, check_first_bytes
from cmsbert_fast.data.untrusted.limits import FLOOR, RATIO

_DEFLATE_RATIO = 1100  # zlib cannot expand by more than 1032
_STRING_CHUNK = 1 << 20  # bytes: what HDF5 keeps of a data set that is read piece by piece
_POINTER, _STRING = 16, 56  # bytes of a string: in a data set, which points to its text; empty in memory
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)  # what h5py raises on damaged files
_LONGEST_WORD = 1000  # bytes; variable-length strings are read a few at a time because their size is not declared


class Hdf5File:
    """An open file.

    Attributes:
        path: Where it is.
        file: Its root group.
        most: Bytes that anything in it may have.

    Raises:
        DataError: It is damaged or no HDF5.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: h5py.File | None = None
        try:
            self._size = path.stat().st_size
            self.most = RATIO * self._size + FLOOR
            with open_regular(path) as file:
                if not (head := file.read(LENGTH)).startswith(_SIGNATURE):  # it may come later
                    check_first_bytes(path.name, head)
            self.file = h5py.File(path, "r")
        except PermissionError as error:
            raise unreadable(path.name) from error
        except ERRORS as error:
            raise self.damaged("it cannot be opened as HDF5", error) from error

    def close(self) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()

    def damaged(self, what: str, cause: Exception | None = None) -> DataError:
        """The error to raise; the file is closed, because nothing in it is trusted any more."""
        self.close()
        return DataError(
            f"Get {self.path.name} again, it is damaged or not what it seems: {what}"
            + (f" ({cause})." if cause else ".")
        )

    def child(self, group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
        """What a group holds under a name, and under no other name in the file."""
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise self.damaged(f"{group.name}/{name} is missing or a link to elsewhere")
        found = group[name]
        if h5py.h5o.get_info(found.id).rc > 1:  # else a file of any size is read a hundred thousand times
            raise self.damaged(f"{group.name}/{name} has several names")
        return found

    def data_set(self, group: h5py.Group, name: str) -> h5py.Dataset:
        """A data set of numbers or strings, stored in the file itself, of a size that the file can hold."""
        data = self.child(group, name)
        where = f"{group.name}/{name}"
        if not isinstance(data, h5py.Dataset) or data.shape is None:
            raise self.damaged(f"{where} must be a data set")
        if data.is_virtual or data.external:
            raise self.damaged(f"{where} points to other files")
        try:
            filters = filters_of(data)
        except DataError as error:
            raise self.damaged(f"{where}: {error}") from error
        stored, declared = data.id.get_storage_size(), data.size * data.dtype.itemsize
        ratio = _DEFLATE_RATIO if filters else 1
        if stored > self._size or declared > stored * ratio:
            raise self.damaged(f"{where} declares {declared} bytes and stores {stored}")
        strings = data.dtype.kind == "O"
        # Small integers become float32.
        itemsize = _POINTER if strings else max(data.dtype.itemsize, 1 if data.dtype.kind == "S" else 4)
        declared, chunk = data.size * itemsize, math.prod(data.chunks or ()) * itemsize
        if declared > self.most or (strings and chunk > _STRING_CHUNK):
            raise self.damaged(
                f"{where} declares {declared} bytes in chunks of {chunk}, too many for its file (if you trust it, save "
                "it without compression)"
            )
        try:
            check_layout(data, itemsize)
        except DataError as error:
            raise self.damaged(f"{where}: {error}") from error
        if data.dtype.kind not in "fiubS" and h5py.check_string_dtype(data.dtype) is None:
            raise self.damaged(f"{where} has the type {data.dtype}, expected numbers or strings")
        return data

    def array(self, data: h5py.Dataset) -> np.ndarray:
        """The content of what `data_set` returned."""
        try:
            check_packed(data, self.most)
        except DataError as error:
            raise self.damaged(f"{data.name}: {error}") from error
        return self._strings(data) if data.dtype.kind == "O" else data[...]

    def _strings(self, data: h5py.Dataset) -> np.ndarray:
        parts: list[np.ndarray] = []
        left = self.most
        for begin in range(0, len(data), 16):
            part = data[begin : begin + 16]
            if any(len(word) > _LONGEST_WORD for word in part.ravel()):
                raise self.damaged(f"{data.name} holds a word of more than {_LONGEST_WORD} bytes")
            left -= sum(len(word) + _STRING for word in part.ravel())
            if left < 0:
                raise self.damaged(f"the words of {data.name} are many times larger than the file")
            parts.append(part)
        return np.concatenate(parts) if parts else np.zeros(data.shape, dtype="S1")
