"""The drawing of CMS for the README: its script works, and the file beside it is there."""

import runpy
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


def test_the_drawing_of_cms() -> None:
    figure = runpy.run_path(str(IMAGES / "cms.py"))["draw"]()
    texts = " ".join(text.get_text() for ax in figure.axes for text in ax.texts)
    assert all(f"({number})" in texts for number in ("1", "2", "3, 4", "5, 6, 7"))
    assert (IMAGES / "cms.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
