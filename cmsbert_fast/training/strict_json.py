"""JSON without what only Python reads: NaN and infinities become null."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmsbert_fast import atomic


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically; numbers that JSON does not know (NaN) become null."""
    text = json.dumps(finite(value), indent=2, allow_nan=False) + "\n"
    atomic.replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def finite(value: Any) -> Any:
    """The value with None for what JSON does not know, NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
