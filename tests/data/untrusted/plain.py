"""What a loaded pickle holds, as plain Python values and numpy arrays."""

from typing import Any

from cmsbert_fast.data.untrusted import records

PROTOCOLS = range(6)


def plain(value: Any) -> Any:
    """Records as what they stand for."""
    if isinstance(value, records.Array):
        return [plain(v) for v in value.items] if value.items is not None else value.load()
    if isinstance(value, records.LongText):
        return value.load()
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value
