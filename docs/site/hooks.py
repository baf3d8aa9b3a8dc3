"""What the site needs besides the pages: files outside docs/, the diagram of the rooms, docstrings' roles.

On GitHub a page links to ``../BENCHMARKS.md`` or ``../examples/own_features.py``. The site has such a file as a page
below ``repository/``. A link to anything else outside docs/ stays as it is, and ``--strict`` refuses it.
"""

import io
import posixpath
import re
from pathlib import Path

import networkx as nx
from matplotlib import rc_context
from matplotlib.figure import Figure
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md"]
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*.py"))
LINK = re.compile(r"(\]\(|<a href=\")([^)\"#:]+)")
DIAGRAM = re.compile(r"```mermaid\n(.*?)```\n", re.DOTALL)
ROLE = re.compile(r":[a-z]+:<code>~?")


def on_files(files, config):
    for name in PAGES:
        files.append(File.generated(config, page_of(name), content=(ROOT / name).read_text(encoding="utf-8")))
    for name in SOURCES:
        text = f"# {name}\n\n```python\n{(ROOT / name).read_text(encoding='utf-8')}```\n"
        files.append(File.generated(config, page_of(name), content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    markdown = DIAGRAM.sub(lambda found: drawing(found[1]), markdown)
    return LINK.sub(lambda found: found[1] + site_link(here, found[2]), markdown)


def on_page_content(html, page, config, files):
    """Docstrings' remains of reStructuredText: roles, and the double colon before a literal block."""
    return ROLE.sub("<code>", html).replace("::</p>", ":</p>")


def page_of(name: str) -> str:
    """The page of a file outside docs/."""
    return f"repository/{name}" if name.endswith(".md") else f"repository/{name}.md"


def site_link(here: str, target: str) -> str:
    """A relative link of the page ``here`` as it must be on the site."""
    source = here.removeprefix("repository/") if here.startswith("repository/") else f"docs/{here}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path in PAGES or path in SOURCES:
        return posixpath.relpath(page_of(path), posixpath.dirname(here) or ".")
    if here.startswith("repository/") and path.startswith("docs/"):
        return posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(here))
    return target


def drawing(flowchart: str) -> str:
    """A flowchart of Mermaid's as SVG: Mermaid itself would be loaded from a CDN when the page is viewed."""
    graph, names, notes = nx.DiGraph(), {}, {}
    for line in flowchart.strip().splitlines()[1:]:
        found = re.fullmatch(r"\s*(\w+)(?:\[(.+?)\])? --(?: (.+) --)?> (\w+)", line)
        if found is None:
            raise ValueError(f"not an arrow of a flowchart: {line!r}")
        source, name, note, target = found.groups()
        graph.add_edge(source, target)
        names |= {source: name or names.get(source, source), target: names.get(target, target)}
        if note:
            notes[source, target] = note
    places: dict[str, tuple[float, float]] = {}
    for floor, rooms in enumerate(nx.topological_generations(graph)):
        centres = {room: [places[above][0] for above in graph.predecessors(room)] or [0.5] for room in rooms}
        row = sorted(centres, key=lambda room: sum(centres[room]) / len(centres[room]))
        gap = 1 / len(row)
        places |= {room: ((k + 0.5 + 0.25 * (-1) ** floor) * gap, -floor) for k, room in enumerate(row)}
    figure = Figure(figsize=(10, 7))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    shape = {"boxstyle": "round", "facecolor": "#e8eaf6", "edgecolor": "#3f51b5"}
    arrows = {"edge_color": "#8a8fa8", "width": 0.8, "node_size": 900, "connectionstyle": "arc3,rad=0.06"}
    nx.draw_networkx_edges(graph, places, ax=ax, **arrows)
    nx.draw_networkx_labels(graph, places, names, ax=ax, font_size=10, bbox=shape, clip_on=False)
    nx.draw_networkx_edge_labels(
        graph, places, notes, ax=ax, font_size=7, connectionstyle="arc3,rad=0.06", rotate=False, clip_on=False
    )
    svg = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rooms"}):  # text stays text
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    picture = svg.getvalue().replace("<svg ", '<svg role="img" aria-label="Which room imports which" ', 1)
    picture = re.sub(r"<metadata>.*?</metadata>", "", picture[picture.index("<svg") :], flags=re.DOTALL)
    return "<div>" + re.sub(r"\n\s*", " ", picture) + "</div>\n"
