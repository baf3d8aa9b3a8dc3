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


def text(path: Path, before: list[str]) -> str:
    """The contents of a file of checksums for a file that is about to get its name, after those of ``before``."""
    return json.dumps({"sha256": [digest(path), *before][:_KEPT]}) + "\n"


def is_damaged(path: Path, checksums: Path) -> bool:
    """Whether a file is none of those whose digests are known; False where none is."""
    digests = known(checksums)
    return bool(digests) and digest(path) not in digests
