"""JSON without what only Python reads: NaN and infinities become null."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmsbert_fast import atomic
from cmsbert_fast.training.errors import UsageError


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically; numbers that JSON does not know (NaN) become null."""
    text = json.dumps(finite(value), indent=2, allow_nan=False) + "\n"
    atomic.replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_object(path: Path, advice: str) -> dict[str, Any] | None:
    """An object that this project has written; None where there is no such file.

    Args:
        path: The file.
        advice: What to do where it is damaged, to complete a sentence.

    Raises:
        UsageError: It cannot be read, or is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); make it readable, or remove it.") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is damaged; {advice}.")
    return found


def finite(value: Any) -> Any:
    """The value with None for what JSON does not know, NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
