"""The code blocks of README.md, CONTRIBUTING.md, BENCHMARKS.md and docs/, as Markdown has them."""

from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt  # comes with rich

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "BENCHMARKS.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


class Block(NamedTuple):
    """A block of code: its page and line, its language ("" for an indented one), and the code."""

    page: str
    line: int
    language: str
    code: str


def read() -> list[Block]:
    found = []
    for path in PAGES:
        for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
            if token.type in ("code_block", "fence"):
                page, line = path.relative_to(ROOT).as_posix(), (token.map or [0])[0] + 1
                found.append(Block(page, line, token.info.strip(), token.content))
    return found


BLOCKS = read()
