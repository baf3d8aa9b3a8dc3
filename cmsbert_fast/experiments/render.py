"""A table's report as Markdown, LaTeX and CSV, from its JSON value."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cmsbert_fast.experiments.tables import SOURCES, Metric, Table

_ESCAPES = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#"}


def markdown(table: Table, value: Mapping[str, Any]) -> str:
    """The table as in the paper, the figures beside those of others, and the comparison with the reference."""
    parts = [f"# {table.title}"]
    for data, section in value["data"].items():
        parts += [f"## {data}", _sample(section), _grid(own_lines(table, section))]
        for title, lines in (figures_lines(table, section), comparison_lines(table, section), cost_lines(section)):
            if lines:
                parts += [f"{title}:", _grid(lines)]
        notes = [f"- {row['label']}: {'; '.join(row['notes'])}" for row in section["rows"] if row["notes"]]
        if notes:
            parts.append("\n".join(notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _sample(section: Mapping[str, Any]) -> str:
    """What the numbers of a section are of, and what the marks mean."""
    if section["examples"] is None:
        return "No run has finished."
    of = f", {section['videos']} videos" if section["videos"] else ""
    return (
        f"Test set: {section['examples']} examples{of}. Mean ± standard deviation over k seeds (n - 1). "
        "**Best**; † not distinguishable from the best (95 % interval over seeds and examples)."
    )


def own_lines(table: Table, section: Mapping[str, Any]) -> list[list[str]]:
    """Head and rows of the table as in the paper; the best are in ``**``."""
    lines = [["method", "k", *(f"{m.label} {'↓' if m.lower else '↑'}" for m in table.metrics)]]
    for row in section["rows"]:
        if row.get("metrics"):
            status = f", {row['status']}" if row["status"] else ""
            cells = [_ours(metric, row["metrics"], _markdown_mark) for metric in table.metrics]
            lines.append([row["label"], f"{len(row['seeds'])}{status}", *cells])
        elif row["variant"] is None:
            printed = row["figures"].get("paper", {})
            lines.append([f"{row['label']} (cited)", "", *(_printed(metric, printed) for metric in table.metrics)])
        else:
            lines.append([row["label"], row["status"], *("" for _ in table.metrics)])
        if row.get("pooled"):
            cells = [_ours(metric, row["pooled"], _markdown_mark) for metric in table.metrics]
            lines.append([f"{row['label']}, folds pooled", "", *cells])
    return lines


def figures_lines(table: Table, section: Mapping[str, Any]) -> tuple[str, list[list[str]]]:
    """Title, and a line for each system and metric: ours, and what others print; no lines if they print nothing."""
    title = "Ours beside printed figures"
    sources = [source for source in SOURCES if any(source in row["figures"] for row in section["rows"])]
    if not sources:
        return title, []
    lines = [["method", "metric", "ours", *(SOURCES[source] for source in sources)]]
    for row in section["rows"]:
        for metric in table.metrics:
            ours = _ours(metric, row["metrics"], lambda text, _: text) if row.get("metrics") else "-"
            printed = [_printed(metric, row["figures"].get(source, {})) for source in sources]
            lines.append([row["label"], metric.label, ours, *printed])
    return title, lines


def comparison_lines(table: Table, section: Mapping[str, Any]) -> tuple[str, list[list[str]]]:
    """Title, and a line for each system and metric; no lines without a reference, or any metric of the table."""
    title = f"Difference from {table.reference}, paired bootstrap over seeds and examples"
    compared = [row for row in section["rows"] if row.get("comparison")]
    cells = [
        {"method": row["label"], "metric": name, **_compared(row["comparison"][name], metric)}
        for row in compared
        for metric in table.metrics
        for name in metric.names
        if name in row["comparison"]
    ]
    return title, [list(cells[0]), *(list(line.values()) for line in cells)] if cells else []


def _compared(c: Mapping[str, Any], metric: Metric) -> dict[str, str]:
    """The cells of a comparison, by column."""

    def signed(number: float) -> str:
        return f"{number:+.{metric.digits}f}"

    return {
        "difference": signed(c["difference"]),
        "95 % interval": _range(c["interval"], signed),
        "p (Holm)": f"{_p(c['p'])} ({_p(c['p_holm'])})",
        "by video": _range(c["cluster_interval"], signed),
        "p by video": _p(c["cluster_p"]),
        "p of seeds": _p(c["seed_p"]),
        "P(better)": f"{c['superiority']:.2f} {_range(c['superiority_interval'], '{:.2f}'.format)}",
        "80 % power at": "-" if c["resolvable"] is None else f"{c['resolvable']:.{metric.digits}f}",
    }


def cost_lines(section: Mapping[str, Any]) -> tuple[str, list[list[str]]]:
    """Title, and a line for each system that has runs: what one costs, as a mean over them; no lines without runs."""
    title = "Cost of a run, validation, test and figures included"
    lines = [["method", "parameters", "epochs", "seconds", "seconds an epoch"]]
    for row in section["rows"]:
        runs = [run for run in row["runs"] if run["epochs"]]
        if runs:
            epochs, seconds = (sum(run[name] for run in runs) / len(runs) for name in ("epochs", "seconds"))
            parameters = " to ".join(f"{n:,}" for n in sorted({run["parameters"] for run in runs}))
            each = sum(run["seconds"] / run["epochs"] for run in runs) / len(runs)
            lines.append([row["label"], parameters, f"{epochs:.1f}", f"{seconds:.0f}", f"{each:.1f}"])
    return title, lines if len(lines) > 1 else []


def latex(table: Table, value: Mapping[str, Any]) -> str:
    """A booktabs table: data sets side by side; below each system, in italics, what others print."""
    sections = value["data"]
    columns = len(table.metrics)
    lines = [
        f"% {table.title}; mean and standard deviation over seeds. Needs booktabs.",
        rf"\begin{{tabular}}{{l{'r' * columns * len(sections)}}}",
        r"\toprule",
        " & ".join(["", *(rf"\multicolumn{{{columns}}}{{c}}{{{_tex(d)}}}" for d in sections)]) + r" \\",
        " & ".join(["Method", *(_head(metric) for _ in sections for metric in table.metrics)]) + r" \\",
        r"\midrule",
    ]
    for i, row in enumerate(table.rows):
        shown = [section["rows"][i] for section in sections.values()]
        if row.variant is not None:
            lines.append(_tex_line(_tex(shown[0]["label"]), [_tex_cells(table, r) for r in shown]))
        for source, name in SOURCES.items():
            if any(source in r["figures"] for r in shown):
                label = _tex(row.label) + r"\textsuperscript{c}" if row.variant is None else rf"\quad\textit{{{name}}}"
                lines.append(
                    _tex_line(
                        label, [[_printed(m, r["figures"].get(source, {})) for m in table.metrics] for r in shown]
                    )
                )
    legend = r"\textbf{best}, $^\dagger$ not distinguishable from the best, \textsuperscript{c} cited"
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {legend}"]) + "\n"


def _head(metric: Metric) -> str:
    arrow = "downarrow" if metric.lower else "uparrow"
    return rf"{metric.label} $\{arrow}$"


def _tex_cells(table: Table, row: Mapping[str, Any]) -> list[str]:
    if not row.get("metrics"):
        return [rf"\multicolumn{{{len(table.metrics)}}}{{c}}{{{_tex(row['status'])}}}"]
    cells = [_ours(metric, row["metrics"], _tex_mark).replace("±", r"$\pm$") for metric in table.metrics]
    if row["status"]:
        cells[-1] += rf" {{\scriptsize {_tex(row['status'])}}}"
    return cells


def _tex_line(label: str, cells: Sequence[Sequence[str]]) -> str:
    return " & ".join([label, *(cell for part in cells for cell in part)]) + r" \\"


def _tex_mark(text: str, found: Mapping[str, Any]) -> str:
    return rf"\textbf{{{text}}}" if found.get("best") else text + (r"$^\dagger$" if found.get("like_best") else "")


def _markdown_mark(text: str, found: Mapping[str, Any]) -> str:
    return f"**{text}**" if found.get("best") else text + ("†" if found.get("like_best") else "")


def _tex(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in text)


def csv_rows(table: Table, value: Mapping[str, Any]) -> list[list[str]]:
    """One line for each number: of ours with its spread and comparison, and of others."""
    rows = [["table", "data", "method", "source", "metric", "value", "std", "seeds", "low", "high", "p", "p_holm"]]
    for data, section in value["data"].items():
        for row in section["rows"]:
            for group, source in (("metrics", "ours"), ("pooled", "ours, folds pooled")):
                for name, found in (row.get(group) or {}).items():
                    low, high = found.get("interval") or (None, None)
                    compared = (row.get("comparison") or {}).get(name, {}) if group == "metrics" else {}
                    numbers = [found["mean"], found["std"], len(row["seeds"]), low, high]
                    numbers += [compared.get("p"), compared.get("p_holm")]
                    cells = ["" if number is None else repr(number) for number in numbers]
                    rows.append([table.name, data, row["label"], source, name, *cells])
            for source, figures in row["figures"].items():
                for name, figure in figures.items():
                    rows.append([table.name, data, row["label"], SOURCES[source], name, repr(figure), *[""] * 6])
    return rows


def _ours(metric: Metric, found: Mapping[str, Any], mark: Callable[[str, Mapping[str, Any]], str]) -> str:
    parts = []
    for name in metric.names:
        if name not in found or found[name]["mean"] is None:
            parts.append("-")
            continue
        std = found[name]["std"]
        text = f"{found[name]['mean']:.{metric.digits}f}" + (f" ± {std:.{metric.digits}f}" if std is not None else "")
        parts.append(mark(text, found[name]))
    return " / ".join(parts)


def _printed(metric: Metric, figures: Mapping[str, float]) -> str:
    parts = [f"{figures[name]:.{metric.digits}f}" if name in figures else "-" for name in metric.names]
    return "-" if set(parts) == {"-"} else "/".join(parts)


def _range(interval: Sequence[float] | None, number: Callable[[float], str]) -> str:
    if interval is None or interval[0] is None:
        return "-"
    return f"[{number(interval[0])}, {number(interval[1])}]"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def _grid(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line is its head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (lines[0], rule, *lines[1:])
    )
