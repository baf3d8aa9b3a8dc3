"""Feature tables: a csv a video, written row by row."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cmsbert_fast.atomic import replace_file

_DIGITS = 6  # significant digits of a value: float32 has seven


def write_table(path: Path, times: Sequence[str], columns: Sequence[str], blocks: Iterable[np.ndarray]) -> int:
    """Writes rows, times in seconds first; returns how many. Without a row there is no file.

    Args:
        path: The csv; appears whole.
        times, columns: Names of the first columns, and of the rest.
        blocks: Rows (n, times + columns).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0

    def write(draft: Path) -> None:
        nonlocal count
        with open(draft, "w", encoding="ascii", newline="") as file:
            file.write(",".join([*times, *columns]) + "\n")
            line = ",".join(["%.3f"] * len(times) + [f"%.{_DIGITS}g"] * len(columns)) + "\n"
            for block in blocks:
                count += len(block)
                file.writelines(line % tuple(row) for row in block.tolist())

    replace_file(path, write)
    if not count:
        path.unlink()
    return count
