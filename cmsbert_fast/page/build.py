"""One HTML file from the content of a page: no server, no other file but the recording, no request."""

import base64
import hashlib
import json
import os
import re
from html import escape
from pathlib import Path
from urllib.parse import quote

from cmsbert_fast import atomic
from cmsbert_fast.page.content import Page
from cmsbert_fast.page.packing import packed, shown

MOST = 500  # segments: more of them make a page slow
LARGEST = 200_000_000  # bytes: a browser holds several times as much
_SCRIPTS = ("charts.js", "words.js", "page.js")
_MARK = re.compile(r"@@(\w+)@@")


def write_page(path: Path, page: Page) -> None:
    """Writes a page, atomically.

    Raises:
        OSError: The file cannot be written.
    """
    text = html(page)
    atomic.replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def html(page: Page) -> str:
    """The page as text."""
    style, script = _file("page.css"), "\n".join(map(_file, _SCRIPTS))
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    values = {
        "title": escape(shown(page.title)),
        "model": escape(shown(page.model)),
        "notes": "".join(f"<li>{escape(shown(note))}</li>" for note in page.notes),
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "data": _in_script(json.dumps(packed(page), allow_nan=False, separators=(",", ":"))),
    }
    return _MARK.sub(lambda mark: values[mark[1]], _file("page.html"))  # at once: texts may hold marks


def media_url(file: Path, page: Path) -> str:
    """The URL by which a page finds a file: relative, so that both can move together.

    Args:
        file: The recording.
        page: Where the page will be.
    """
    try:
        relative = os.path.relpath(file.resolve(), page.resolve().parent)
    except ValueError:  # on another drive of Windows
        return file.resolve().as_uri()
    return "./" + quote(Path(relative).as_posix(), errors="surrogateescape")  # "./": a name with a colon is no scheme


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A policy that allows this style, this script and recordings beside the page, and no request."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "media-src 'self' file:; base-uri 'none'; form-action 'none'"
    )


def _in_script(text: str) -> str:
    """JSON that no tag or comment in it can end; ASCII, as `json.dumps` makes it."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
