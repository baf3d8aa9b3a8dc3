"""Checksums of what a run writes: a flipped bit in weights would otherwise go unnoticed.

Digests are written before the file that they are of gets its name, beside those of the files before it. So whichever
file is there when a process is killed, its digest is known.
"""

import hashlib
import json
from pathlib import Path

from cmsbert_fast.data.untrusted.files import open_regular, read_text

_LONGEST = 1 << 20  # bytes of a file of checksums
_KEPT = 3  # digests: of the next file, the present one and the one before


def digest(path: Path, size: int | None = None) -> str:
    """SHA-256 of a file, or of its first ``size`` bytes, in hexadecimal."""
    found = hashlib.sha256()
    left = path.stat().st_size if size is None else size
    with open_regular(path) as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            found.update(block)
            left -= len(block)
    return found.hexdigest()


def known(path: Path) -> list[str]:
    """The digests in a file of checksums; none where there is no such file or it is damaged."""
    try:
        found = json.loads(read_text(path, _LONGEST))
        return [one for one in found["sha256"] if isinstance(one, str)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def epochs(path: Path) -> dict[str, int]:
    """The epochs of the digests in a file of checksums, where it has them."""
    try:
        found = json.loads(read_text(path, _LONGEST))
        pairs = zip(found["sha256"], found["epochs"], strict=True)
        return {digest: epoch for digest, epoch in pairs if isinstance(digest, str) and type(epoch) is int}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def text(path: Path, before: Path | None = None, epoch: int | None = None) -> str:
    """The contents of a file of checksums for a file that is about to get its name.

    Args:
        path: The file.
        before: The present file of checksums, whose digests stay.
        epoch: The epoch that the file is of.
    """
    earlier, of = ([], {}) if before is None else (known(before), epochs(before))
    digests = [digest(path), *earlier][:_KEPT]
    numbers = [epoch, *(of.get(one) for one in earlier)][:_KEPT]
    return json.dumps({"sha256": digests, **({} if epoch is None else {"epochs": numbers})}) + "\n"


def is_damaged(path: Path, checksums: Path) -> bool:
    """Whether a file is none of those whose digests are known; False where none is."""
    digests = known(checksums)
    return bool(digests) and digest(path) not in digests
