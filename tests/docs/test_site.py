"""The site of ``docs/``: built strictly, complete, and a page loads nothing from elsewhere."""

import html.parser
import importlib.util
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import cmsbert_fast
from cmsbert_fast import data, reference
from tests.docs.blocks import PAGES, ROOT
from tests.page import browser

DOCS = ROOT / "docs"
LOADS = {"src", "srcset", "poster", "data"}  # attributes whose address a page loads
RELATIONS = {"stylesheet", "icon", "preload", "preconnect", "modulepreload", "manifest", "dns-prefetch", "prefetch"}
OUTSIDE = re.compile(r"^\s*(https?:)?//")

needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason='needs mkdocs; pip install -e ".[docs]"',
)


class Loads(html.parser.HTMLParser):
    """Notes what a page loads, and its elements' classes."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.classes |= set(given.get("class", "").split())
        self.addresses += [value for name, value in given.items() if name in LOADS]
        if tag == "link" and RELATIONS & set(given.get("rel", "").split()):
            self.addresses.append(given.get("href", ""))
        self.addresses += addresses_of_style(given.get("style", ""))


def addresses_of_style(style: str) -> list[str]:
    return re.findall(r"(?:url\(|@import\s)\s*[\"']?([^\"')\s;]+)", style)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/site/mkdocs.yml", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_public_name_is_on_a_page_of_the_api():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    named = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert len(named) == len(set(named))
    for module in (cmsbert_fast, data, reference):
        public = {f"{module.__name__}.{name}" for name in module.__all__ if name not in ("__version__", "reference")}
        assert public <= set(named)


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ('<script src="https://cdn.example/a.js"></script>', ["https://cdn.example/a.js"]),
        ('<link rel="stylesheet" href="//cdn.example/a.css">', ["//cdn.example/a.css"]),
        ('<link rel="canonical" href="https://x.example/"><a href="https://x.example/">x</a>', []),
        ('<p style="background: url(https://x.example/a.png)">', ["https://x.example/a.png"]),
    ],
)
def test_what_a_page_loads_is_seen(text, addresses):
    assert Loads(text).addresses == addresses


@needs_mkdocs
def test_the_site_names_nothing_outside_that_it_loads(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for path in pages:
        found = Loads(path.read_text(encoding="utf-8"))
        assert not [address for address in found.addresses if OUTSIDE.match(address)], path
        assert "mermaid" not in found.classes  # its script would be loaded from a CDN
    for path in site.rglob("*.css"):
        found = addresses_of_style(path.read_text(encoding="utf-8"))
        assert not [address for address in found if OUTSIDE.match(address)], path


@needs_mkdocs
def test_the_pages_are_whole(site):
    """What the hooks do: files outside docs/, the diagram, docstrings without remains of reStructuredText."""
    assert (site / "repository" / "BENCHMARKS.html").is_file()
    assert "ModalityShift" in (site / "repository/examples/attention_in_another_encoder.py.html").read_text()
    assert 'href="repository/BENCHMARKS.html"' in (site / "performance.html").read_text(encoding="utf-8")
    diagram = (site / "architecture.html").read_text(encoding="utf-8")
    assert "flowchart TD" not in diagram
    assert all(f">{room}</text>" in diagram for room in ("train.py", "predict_videos", "kernels", "Example only"))
    for path in (site / "api").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r":[a-z]+:<code>|<code>~|::</p>", text)
    assert not list(site.rglob("*.py"))


@needs_mkdocs
@pytest.mark.parametrize(
    "page", [path for path in PAGES if path.parent in (DOCS, DOCS / "kernels")], ids=lambda p: p.stem
)
def test_a_page_has_the_same_parts_as_on_github(site, page):
    """Python-Markdown nests what is indented by 4 spaces, CommonMark by less."""
    text = page.read_text(encoding="utf-8")
    github = MarkdownIt().enable("table").render(text)
    built = (site / page.relative_to(DOCS).with_suffix(".html")).read_text(encoding="utf-8")
    article = built.split("<article")[1].split("</article>")[0]
    tags = ("h2", "li", "ol", "pre", "table", "ul")
    found, expected = ({tag: len(re.findall(rf"<{tag}[ >]", html)) for tag in tags} for html in (article, github))
    expected["pre"] -= text.count("```mermaid")
    assert found == expected


@needs_mkdocs
@pytest.mark.skipif(browser.why_not() is not None, reason=str(browser.why_not()))
def test_in_a_browser_pages_ask_nobody_else_and_search_finds(site):
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    handler.log_message = lambda *a: None  # type: ignore[attr-defined]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}/"
    asked: list[str] = []
    try:
        with browser.browser() as chromium:
            page = chromium.new_page(viewport={"width": 1300, "height": 900})
            page.on("request", lambda request: asked.append(request.url))
            for name in ("architecture.html", "page.html", "api/index.html", "index.html"):
                page.goto(here + name, wait_until="load")
            page.locator("[data-md-component=search-query]").fill("gradcache_backward")
            page.locator(".md-search-result__item").first.wait_for(timeout=20_000)
    finally:
        server.shutdown()
        server.server_close()
    assert here + "index.html" in asked
    assert not [url for url in asked if not url.startswith((here, "data:", "blob:"))]


@needs_mkdocs
def test_a_broken_link_fails_the_build(tmp_path):
    """The settings refuse a link to no page, to no heading, and to a file outside docs/ that is no page of the site."""
    for target in ("nowhere.md", "data.md#nowhere", "../setup.py"):
        assert target not in (DOCS / "index.md").read_text(encoding="utf-8")
    # On a copy of two pages: the configuration is the site's, without its navigation and API.
    copy = tmp_path / "docs"
    (copy / "site").mkdir(parents=True)
    config = (DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[0]
    config = re.sub(r"  - mkdocstrings:\n(?: {6,}.*\n)+", "", config)
    (copy / "site" / "mkdocs.yml").write_text(
        config.replace("hooks: [hooks.py]", f"hooks: ['{DOCS / 'site/hooks.py'}']")
    )
    (copy / "data.md").write_text("# Data\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(copy / "site" / "mkdocs.yml")]
    (copy / "index.md").write_text("# A\n\n[a](nowhere.md) [b](data.md#nowhere) [c](../setup.py)\n")
    done = subprocess.run([*command, "-d", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 1
    for wrong in ("nowhere.md", "#nowhere", "../setup.py"):
        assert f"'{wrong}'" in done.stderr or wrong in done.stderr
