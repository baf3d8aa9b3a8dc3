"""Frames in a memory map."""

import mmap
from pathlib import Path

import numpy as np
from safetensors import safe_open


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


class MappedFrames:
    """The frames of a modality as a read-only map of a safetensors file; no frames where there is no file.

    Raises:
        ValueError: The file does not hold ``count`` frames of ``width`` features.
    """

    def __init__(self, path: Path | None = None, width: int = 0, count: int = 0) -> None:
        self._all = np.zeros((0, width), dtype=np.float32)
        self._resident: Resident | None = None
        if path is None:
            return
        with safe_open(path, framework="np") as tensors:
            if list(tensors.keys()) != ["frames"]:
                raise ValueError(f"{path.name} does not hold frames alone")
            part = tensors.get_slice("frames")
            shape, kind = tuple(part.get_shape()), part.get_dtype()
        if shape != (count, width) or kind != "F32":
            raise ValueError(f"{path.name} holds {shape} of {kind}, expected {(count, width)} of F32")
        if count:
            with path.open("rb") as file:
                begin = 8 + int.from_bytes(file.read(8), "little")
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._resident = Resident(data)
            self._all = np.frombuffer(data, dtype="<f4", count=count * width, offset=begin).reshape(count, width)

    def __len__(self) -> int:
        return len(self._all)

    def rows(self, begin: int, count: int) -> np.ndarray:
        """Frames ``begin`` to ``begin + count``, read from disk when they are used."""
        found = self._all[begin : begin + count]
        if self._resident is not None:
            self._resident.see(found.nbytes)
        return found
