"""The chunks of an HDF5 data set: how many there are, and what they hold once unpacked.

The HDF5 library takes a kilobyte of memory for each chunk that it reads, and unpacks a chunk to whatever it holds, not
to what the data set declares.
"""

import itertools
import math
import zlib

import h5py

from cmsbert_fast.data.example import DataError

_DEFLATE, _SHUFFLE, _CHECKSUM, _SZIP, _LZF = 1, 2, 3, 4, 32000  # numbers of HDF5's filters
_LARGEST = 4 << 20  # bytes of a chunk, where the data set declares less
_MANY, _SMALL = 10_000, 1024  # chunks; bytes of one where there are so many
_DEFLATE_RATIO, _LZF_RATIO = 1032, 88  # by which a byte can expand at most
_BLOCK = 1 << 16  # bytes unpacked at a time


def filters_of(data: h5py.Dataset) -> list[int]:
    """The filters that a data set is stored with, in order.

    Raises:
        DataError: They are unknown, or something is done to chunks after they were compressed.
    """
    properties = data.id.get_create_plist()
    found = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
    packed = [k for k, number in enumerate(found) if number in (_DEFLATE, _SZIP, _LZF)]
    known = set(found) <= {_DEFLATE, _SHUFFLE, _CHECKSUM, _SZIP, _LZF}
    if not known or len(packed) > 1 or (packed and set(found[packed[0] + 1 :]) - {_CHECKSUM}):
        raise DataError(f"it is stored with unknown filters {found[:20]}")
    return found


def check_layout(data: h5py.Dataset, itemsize: int) -> None:
    """Checks the size and number of chunks.

    Args:
        data: The data set.
        itemsize: Bytes of an element in memory.

    Raises:
        DataError: They take many times more memory than what they hold.
    """
    if data.chunks is None:
        return
    size = math.prod(data.chunks) * itemsize
    count = math.prod(-(-length // part) for length, part in zip(data.shape, data.chunks, strict=True))
    if size > max(_LARGEST, data.size * itemsize):
        raise DataError(f"its chunks have {size} bytes, too many for what it holds")
    if count > _MANY and size < _SMALL:
        raise DataError(f"it is stored in {count} chunks of {size} bytes")


def check_packed(data: h5py.Dataset, most: int) -> None:
    """Checks what compressed chunks hold, before the HDF5 library unpacks them.

    Args:
        data: A data set that was checked with the other functions.
        most: Bytes that a chunk may have if it has more than the data set declares.

    Raises:
        DataError: A chunk holds more than it should.
    """
    filters = filters_of(data)
    if data.chunks is None or not {_DEFLATE, _SZIP, _LZF} & set(filters):
        return
    size = math.prod(data.chunks) * data.dtype.itemsize
    starts = (range(0, length, part) for length, part in zip(data.shape, data.chunks, strict=True))
    for start in itertools.product(*starts):
        stored = data.id.get_chunk_info_by_coord(start).size or 0
        if stored > size + size // 8 + 4096 or (_LZF in filters and stored * _LZF_RATIO > most):
            raise DataError(f"a chunk of {size} bytes is stored in {stored}")
        if _SZIP in filters and stored:
            declared = int.from_bytes(data.id.read_direct_chunk(start)[1][:4], "little")
        elif _DEFLATE in filters and stored * _DEFLATE_RATIO > most:
            declared = _unpacked_size(data.id.read_direct_chunk(start)[1], size)
        else:
            continue
        if declared > size:
            raise DataError(f"a chunk of {size} bytes unpacks to more")


def _unpacked_size(packed: bytes, most: int) -> int:
    """Bytes that deflate makes of a chunk, counted until there are more than ``most``; damage is left to HDF5."""
    unpacker, count, rest = zlib.decompressobj(), 0, packed
    try:
        while count <= most and not unpacker.eof:
            made = len(unpacker.decompress(rest, _BLOCK))
            rest, count = unpacker.unconsumed_tail, count + made
            if not made and not rest:
                break
    except zlib.error:
        pass
    return count
