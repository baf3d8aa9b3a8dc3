"""``report.html``: all tables of an output folder on one page, with their figures. It needs no other file."""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmsbert_fast import atomic
from cmsbert_fast.experiments import curves, render
from cmsbert_fast.experiments.tables import Table, read_table
from cmsbert_fast.experiments.tuning import FOLDER as TUNED
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.figures import FIGURES
from cmsbert_fast.training.lock import turn
from cmsbert_fast.training.map_figures import CAPTIONS
from cmsbert_fast.training.strict_json import read_object

PAGE = "report.html"
_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --faint: #667085; --rule: #e3e7ed; --accent: #0072b2; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem 1.5rem 4rem; background: #fff; color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
nav { position: sticky; top: 0; background: #fffd; padding: .5rem 0; border-bottom: 1px solid var(--rule); z-index: 1; }
nav a { margin-right: 1.2rem; color: var(--accent); text-decoration: none; }
h1 { font-size: 1.7rem; margin: 1rem 0 .5rem; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
p.note, figcaption, .note { color: var(--faint); font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .28rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid var(--ink); }
tbody tr:hover { background: #f4f8fb; } td b { color: var(--accent); }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
details { margin: .6rem 0; border-left: 3px solid var(--rule); padding-left: .9rem; }
summary { cursor: pointer; color: var(--accent); }
.pair { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
.pair > div { flex: 1 1 14rem; } .pair > figure { flex: 2 1 24rem; margin: 0; }
blockquote { margin: .5rem 0; font-size: 1.15rem; }
"""
_MAIN = {"linguistic": "L", "visual": "V", "acoustic": "A"}


def write_page(root: Path, names: Iterable[str], configs: Path) -> Path | None:
    """Writes the page of those tables whose report has been written; returns its path, None if there is none.

    Args:
        root: The output folder.
        names: Tables, as on the command line.
        configs: The folder of presets and tables.
    """
    with turn(root):  # as the tables are written
        parts, links = [], []
        for name in names:
            try:
                table = read_table(name, configs)
            except UsageError as error:  # planned by an earlier command, from a file that is no more
                parts.append(f"<h2>{_text(name)}</h2><p>{_text(error)}</p>")
                continue
            value = _read_json(root / "tables" / f"{table.name}.json")
            if value:
                parts.append(_table(root, table, value))
                links.append(f'<a href="#{_anchor(table)}">{_text(table.title.split(":")[0])}</a>')
        if not parts:
            return None
        body = [f"<nav>{''.join(links)}</nav>", "<h1>Results</h1>", _legend(), *parts, *_searches(root)]
        whole = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Results</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
            "<body>\n" + "\n".join(body) + "\n</body></html>\n"
        )
        atomic.replace_file(root / PAGE, lambda draft: draft.write_text(whole, encoding="utf-8"))
    return root / PAGE


def _legend() -> str:
    return (
        '<p class="note">k: seeds that have finished. Numbers are means ± standard deviations over seeds; the best is '
        "<b>bold</b>, † marks what cannot be told apart from it: the 95 % interval of the difference, over seeds and "
        "test examples, has 0 in it. All figures lie as PNG and SVG in <code>tables/</code> and in each run's "
        "<code>figures/</code>.</p>"
    )


def _table(root: Path, table: Table, value: Mapping[str, Any]) -> str:
    parts = [f'<h2 id="{_anchor(table)}">{_text(table.title)}</h2>']
    for data, section in value["data"].items():
        if section["examples"] is None:
            parts.append(f"<h3>{_text(data)}</h3><p>No run has finished.</p>")
            continue
        parts += [f"<h3>{_text(data)}</h3>", f"<p>{_text(_finding(table, section))}</p>"]
        parts.append(_grid(render.own_lines(table, section)))
        details = (
            render.comparison_lines(table, section),
            render.figures_lines(table, section),
            render.cost_lines(section),
        )
        for title, lines in details:
            if lines:
                parts.append(f"<details><summary>{_text(title)}</summary>{_grid(lines)}</details>")
        notes = [f"<li>{_text(row['label'])}: {_text(note)}</li>" for row in section["rows"] for note in row["notes"]]
        if notes:
            parts.append(f"<details><summary>Notes</summary><ul>{''.join(notes)}</ul></details>")
    parts.append(_figure(root / "tables" / f"{table.name}.svg", "Every row with its interval."))
    for data, section in value["data"].items():
        path = root / "tables" / f"{curves.name(table.name, data)}.svg"
        parts += [_figure(path, f"Learning curves on {data}."), _alignment(section), *_models(root, data, section)]
    return "\n".join(part for part in parts if part)


def _finding(table: Table, section: Mapping[str, Any]) -> str:
    """One sentence: the best by the first metric that the data have, and who cannot be told apart from it."""
    text = f"{section['examples']} test examples"
    text += f" of {section['videos']} videos. " if section["videos"] else ". "
    rows = [row for row in section["rows"] if row.get("metrics")]
    metric = next((m for m in table.metrics if any(m.names[0] in row["metrics"] for row in rows)), None)
    if metric is None:  # classes in a table of scores, or the reverse
        return f"{text}The labels have none of this table's metrics."
    measured = [row for row in rows if metric.names[0] in row["metrics"]]
    best = next(row for row in measured if row["metrics"][metric.names[0]]["best"])
    like = [row["label"] for row in measured if row["metrics"][metric.names[0]]["like_best"]]
    text += f"{best['label']} has the best {metric.label}, {best['metrics'][metric.names[0]]['mean']:.{metric.digits}f}"
    if len(measured) == 1:
        return f"{text}; no other row has finished."
    if len(like) == len(measured) - 1:
        return f"{text}, but none of the others can be told apart from it."
    return f"{text}; not to be told apart from it: {', '.join(like)}." if like else f"{text}, distinct from all others."


def _alignment(section: Mapping[str, Any]) -> str:
    """Means over the runs of each system with a common space."""
    rows = {
        row["label"]: found
        for row in section["rows"]
        if (found := [run["alignment"] for run in row["runs"] if (run.get("alignment") or {}).get("recall_at_5")])
    }
    if not rows:
        return ""
    directions = list(next(iter(rows.values()))[0]["recall_at_5"])
    own = next((k for k in ("neighbour_correlation", "neighbour_agreement") if k in next(iter(rows.values()))[0]), None)
    names = list(dict.fromkeys(d.split("_to_")[0] for d in directions)) if own else []
    lines = [["recall at 5, %", *map(_arrow, directions), "chance", *(_arrow(f"{n}_to_{n}") for n in names)]]
    for label, found in rows.items():
        cells = [_mean(found, "recall_at_5", d, 1) for d in directions]
        chance = f"{np.mean([a['recall_by_chance']['at_5'] for a in found]):.1f}"
        lines.append([label, *cells, chance, *(_mean(found, str(own), f"{n}_to_{n}", 2) for n in names)])
    what = {
        "neighbour_correlation": " The last columns: correlation of an utterance's score with that of its nearest "
        "neighbour in the same modality.",
        "neighbour_agreement": " The last columns: in how many of 100 utterances the nearest neighbour in the same "
        "modality has the same class.",
    }.get(str(own), "")
    note = (
        "In how many of 100 test utterances the same utterance is among the five nearest of another modality "
        f"(L linguistic, V visual, A acoustic).{what}"
    )
    return f'<h3>Alignment of the modalities</h3>{_grid(lines)}<p class="note">{note}</p>'


def _arrow(direction: str) -> str:
    return "→".join(_MAIN.get(name, name) for name in direction.split("_to_"))


def _mean(found: Sequence[Mapping[str, Any]], key: str, name: str, digits: int) -> str:
    values = [a[key][name] for a in found if name in a.get(key, {})]
    return f"{np.mean(values):.{digits}f}" if values else "-"


def _models(root: Path, data: str, section: Mapping[str, Any]) -> list[str]:
    """Of each row's first run: the maps beside the transcript, and the embeddings."""
    parts = []
    for row in section["rows"]:
        if not row["runs"]:
            continue
        run = row["runs"][0]
        folder = root / run["folder"] / FIGURES
        captions, shown = _read_json(folder / CAPTIONS), []
        maps = _figure(folder / "shift_maps.svg", "Gates of Eq. 1 and 2.")
        if maps and isinstance(told := captions.get("shift_maps"), dict):
            shown.append(f'<div class="pair"><div>{_transcript(told)}</div>{maps}</div>')
        others = [_figure(folder / "embeddings.svg", "The common space of the modalities.")]
        others += [_figure(folder / f"{name}.svg", "Predictions.") for name in ("scatter", "confusion")]
        shown += [f'<div class="pair">{"".join(others)}</div>'] if any(others) else []
        if shown:
            title = f"{_text(row['label'])} on {_text(data)}, seed {run['seed']}: figures of the model"
            parts.append(f"<details><summary>{title}</summary>{''.join(shown)}</details>")
    return parts


def _searches(root: Path) -> list[str]:
    """What tuning has found."""
    found = sorted((root / TUNED).glob("*.svg"))
    figures = (_figure(path, f"{path.stem}: validation score by pairs of settings.") for path in found)
    return ["<h2>Tuning</h2>", *figures] if found else []


def _transcript(told: Mapping[str, Any]) -> str:
    words = " ".join(map(str, told.get("words", ())))
    facts = "; ".join(f"{key} {told[key]}" for key in ("label", "prediction") if key in told)
    return (
        f"<blockquote>“{_text(words)}”</blockquote><p>{_text(facts)}</p>"
        f'<p class="note">{_text(told.get("id", ""))}, {_text(told.get("rule", ""))}</p>'
    )


def _figure(path: Path, caption: str) -> str:
    """A figure within the page; empty where there is none."""
    try:
        content = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return ""
    image = f'<img src="data:image/svg+xml;base64,{content}" alt="{_text(caption)}">'
    return f"<figure>{image}<figcaption>{_text(caption)}</figcaption></figure>"


def _grid(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = [[re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", _text(cell)) for cell in line] for line in lines]
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(value: object) -> str:
    return html.escape(str(value))


def _anchor(table: Table) -> str:
    return "table-" + re.sub(r"\W+", "-", table.name)


def _read_json(path: Path) -> dict[str, Any]:
    """A file that this project has written; empty where there is none."""
    return read_object(path, "remove it, and the same command makes it anew") or {}
