"""Debian's Chromium, driven by Playwright, without a network."""

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]


def why_not() -> str | None:
    """Why no browser can be driven here; None where one can."""
    if CHROMIUM is None:
        return "there is no chromium; apt-get install chromium"
    missing = [package for package in ("playwright", "av") if importlib.util.find_spec(package) is None]
    return f'there is no {missing[0]}; pip install -e ".[test]"' if missing else None


@contextmanager
def browser() -> Iterator[Any]:
    """A headless browser with an empty profile; ``new_page`` opens pages."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        options = dict(executable_path=CHROMIUM, args=_FLAGS, headless=True, env={"HOME": profile})
        chromium = playwright.chromium.launch(**options)
        try:
            yield chromium
        finally:
            chromium.close()
