"""Frames, and the words they belong to, in a memory map."""

import math
import mmap
from pathlib import Path

import numpy as np
from safetensors import safe_open

from cmsbert_fast.data.untrusted.files import open_regular


class Resident:
    """Keeps the resident part of a memory map small.

    Pages that were read count as this process's memory until others need them. Dropping them is cheap while they are
    in the system's cache.
    """

    LIMIT = 64 << 20

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._read = 0

    def see(self, size: int) -> None:
        """Count bytes that were read through the map."""
        self._read += size
        if self._read > self.LIMIT and hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED)
            self._read = 0


_KINDS = {"F32": "<f4", "I32": "<i4"}


class MappedRows:
    """The rows of the one tensor of a safetensors file, as a read-only map.

    Raises:
        OSError: It cannot be read, or is no regular file.
        ValueError: The file holds another tensor.
    """

    def __init__(self, path: Path, name: str, kind: str, shape: tuple[int, ...]) -> None:
        open_regular(path).close()
        with safe_open(path, framework="np") as tensors:
            if list(tensors.keys()) != [name]:
                raise ValueError(f"{path.name} does not hold {name} alone")
            part = tensors.get_slice(name)
            found = tuple(part.get_shape()), part.get_dtype()
        if found != (shape, kind):
            raise ValueError(f"{path.name} holds {found[0]} of {found[1]}, expected {shape} of {kind}")
        rows = np.zeros(0, _KINDS[kind])
        self._resident: Resident | None = None
        if size := math.prod(shape):
            with open_regular(path) as file:
                begin = 8 + int.from_bytes(file.read(8), "little")
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._resident = Resident(data)
            rows = np.frombuffer(data, _KINDS[kind], count=size, offset=begin)
        self._all = rows.reshape(shape)

    def __len__(self) -> int:
        return len(self._all)

    def rows(self, begin: int, count: int) -> np.ndarray:
        """Rows ``begin`` to ``begin + count``, read from disk when they are used."""
        found = self._all[begin : begin + count]
        if self._resident is not None:
            self._resident.see(found.nbytes)
        return found
