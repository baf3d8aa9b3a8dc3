"""Columns that a user added to the table of segments, such as labels: they stay with what is said.

The number of a segment says little: a sentence more in a transcript, and all later ones have other numbers.
"""

from collections.abc import Sequence
from pathlib import Path

from cmsbert_fast.data.align import common_subsequence
from cmsbert_fast.data.example import DataError
from cmsbert_fast.data.tables import number_of, read_table
from cmsbert_fast.data.text import bare


class Added:
    """The columns that a table has beside those of the extractor, and their cells.

    Attributes:
        columns: Their names.
        lost: Rows with cells for which `cells` has found no segment.

    Args:
        table: The file; it need not exist.
        own: The extractor's columns.

    Raises:
        DataError: The table cannot be read.
    """

    def __init__(self, table: Path, own: Sequence[str]) -> None:
        self.columns: list[str] = []
        self._rows: dict[str, list[tuple[float, str, list[str]]]] = {}
        self._left: dict[str, int] = {}
        if not table.exists():
            return
        header, rows = read_table(table)
        self.columns = [name for name in header if name not in own]
        if not self.columns:
            return
        if not {"video", "start", "text"} <= set(header):
            raise DataError(f"Give {table.name} its columns video, start and text again: it has {', '.join(header)}.")
        video, start, text = (header.index(name) for name in ("video", "start", "text"))
        places = [header.index(name) for name in self.columns]
        for row in rows:
            cells = [row[k] for k in places]
            self._rows.setdefault(row[video], []).append((_seconds(row[start]), _said(row[text]), cells))
        for name, known in self._rows.items():
            known.sort(key=lambda row: row[0])  # the user may have sorted them by something else
            self._left[name] = sum(any(cells) for *_, cells in known)

    @property
    def lost(self) -> int:
        return sum(self._left.values())

    def cells(self, video: str, texts: Sequence[str]) -> list[list[str]]:
        """The cells of the segments of a video: those of the row with the same text, in order; else empty ones."""
        found = [[""] * len(self.columns) for _ in texts]
        if video in self._rows:
            rows = self._rows[video]
            before, now = [said for _, said, _ in rows], list(map(_said, texts))
            pairs = common_subsequence(before, now) if before != now else (range(len(now)),) * 2
            for row, segment in zip(*pairs, strict=True):
                found[segment] = rows[row][2]
            self._left[video] -= sum(any(cells) for cells in found)
        return found


def _seconds(cell: str) -> float:
    try:
        return number_of(cell)
    except ValueError:
        return 0.0


def _said(text: str) -> str:
    """A text without what a spreadsheet may change."""
    return " ".join(map(bare, text.split()))
