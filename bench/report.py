"""From results to BENCHMARKS.md: ``python -m bench.report``.

Reads every ``bench/results/*.json`` that ``pytest bench --benchmark-json bench/results/NAME.json`` wrote, and writes
BENCHMARKS.md with its plots in ``docs/benchmarks``. One section a machine; of a case measured twice the later counts.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from bench import measure, scaling_model

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PLOTS = ROOT / "docs" / "benchmarks"
SUITES = ["CMS attention", "Contrastive loss", "Training step", "Inference", "Data to batch", "Scaling"]

Result = dict[str, Any]

_STEP = "cmsbert-clr, MOSI lengths, batch 32"
_VARIANTS = "what the variants cost, all packed, MOSI lengths, batch 32"
_ATTENTION = "MOSI lengths, batch 32, forward + backward"
# What was promised: text, suite, case, numerator, denominators (the fastest of them counts), limit on the ratio.
TARGETS: list[tuple[str, str, str, str, tuple[str, ...], float]] = [
    ("cmsbert-clr step / the same model on the torch backend padded to 50", "Training step", _STEP,
     "ours: cmsbert-clr", ("torch backend, padded to 50",), 0.36),
    ("cmsbert-clr step / MAG-BERT's way", "Training step", _STEP,
     "ours: cmsbert-clr", ("MAG-BERT's way: padded to 50, eager",), 0.38),
    ("cmsbert-clr step / text-only BERT, both packed", "Training step", _VARIANTS, "cmsbert-clr", ("bert",), 1.15),
    ("cmsbert step / text-only BERT, both packed", "Training step", _VARIANTS, "cmsbert", ("bert",), 1.05),
    ("cmsbert-clr step in bfloat16 / in float32", "Training step", _STEP,
     "ours in bfloat16", ("ours: cmsbert-clr",), 0.6),
    ("CMS attention forward + backward / the fastest plain PyTorch", "CMS attention", _ATTENTION, "ours",
     ("torch backend", "torch backend, padded", "lean PyTorch, padded", "torch.compile of it, padded"), 1 / 1.5),
    ("CMS attention forward + backward / the literal reference", "CMS attention", _ATTENTION, "ours",
     ("literal reference, padded",), 1 / 30),
]  # fmt: skip
ACTIVATION_TARGET = 0.4


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Results by machine: ``{"facts": ..., "results": [...], "commits": [...]}``."""
    machines: dict[str, dict[str, Any]] = {}
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    for file in sorted(files, key=lambda file: file["datetime"]):
        facts = file["machine_info"]
        name = f"{facts['device']}, {facts['threads']} threads"
        machine = machines.setdefault(name, {"results": {}, "runs": []})
        machine["facts"] = facts
        commit = file["commit_info"]
        machine["runs"].append(f"{file['datetime'][:10]} at commit {str(commit.get('id'))[:10]}")
        for benchmark in file["benchmarks"]:
            for result in benchmark["extra_info"]["results"]:
                machine["results"][(result["suite"], result["case"])] = result
    for machine in machines.values():
        machine["results"] = list(machine["results"].values())
    return machines


# ------------------------------------------------------------------ tables


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _bytes(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def _interval(values: tuple[float, float, float]) -> str:
    return "{:.3g} [{:.3g}, {:.3g}]".format(*values)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _share(result: Result, name: str, facts: dict[str, Any] | None) -> str:
    """What part of the machine's measured best a contender reaches, if all of its time went into the least work."""
    if facts is None or result.get("flops") is None:
        return ""
    seconds = float(np.median(result["seconds"][name]))
    rate = facts["matrix_flops_per_second"][result["dtype"]]
    parts = [f"{result['flops'] / seconds / 1e9:.3g} GFLOP/s ({result['flops'] / seconds / rate:.0%})"]
    if result.get("bytes"):
        speed = result["bytes"] / seconds
        parts.append(f"{speed / 1e9:.3g} GB/s ({speed / facts['copy_bytes_per_second']:.0%})")
    return ", ".join(parts)


def _race_rows(result: Result, facts: dict[str, Any] | None) -> list[list[str]]:
    names = list(result["seconds"])
    ours = result["seconds"][names[0]]
    rows = []
    for name in names:
        times = result["seconds"][name]
        compared = "" if name == names[0] else _interval(measure.ratio(ours, times))
        memory = _bytes(result["memory"][name]) if name in result["memory"] else ""
        work = _share(result, name, facts) if name == names[0] else ""
        rows.append([name, _time(float(np.median(times))), compared, memory, work])
    return rows


def text_table(results: list[Result]) -> str:
    """The comparison as lines for a terminal."""
    lines = []
    for result in results:
        lines.append(f"{result['suite']}: {result['case']}")
        if result["kind"] == "race":
            for name, time, compared, memory, _ in _race_rows(result, None):
                lines.append(f"    {name:<48} {time:>9}  {compared:<26} {memory:>9}")
        elif result["kind"] == "scaling":
            for processes, row in result["processes"].items():
                lines.append(f"    {processes} processes: {_time(float(np.median(row['seconds'])))} a step")
        elif result["kind"] == "growth":
            lines.append(f"    time ~ {result['quantity']}^k, k = {_growth(result)}")
    return "\n".join(lines)


def _growth(result: Result) -> str:
    seconds = [result["seconds"][str(size)] for size in result["sizes"]]
    return _interval(measure.exponent(result["sizes"], seconds))


# ------------------------------------------------------------------ plots


def _plot_growth(results: list[Result], path: Path) -> None:
    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "cmsbert"  # the same picture has the same bytes
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for result in results:
        medians = np.array([np.median(result["seconds"][str(size)]) for size in result["sizes"]])
        label = f"{result['suite']}: {result['case']}"
        axes.loglog(np.array(result["sizes"]) / result["sizes"][0], medians / medians[0], marker="o", label=label)
    axes.plot([1, 64], [1, 64], color="0.7", linestyle="--", linewidth=1, label="linear")
    axes.set_xlabel("size / smallest size")
    axes.set_ylabel("time / time at the smallest size")
    axes.legend(fontsize=7)
    _save(figure, path)


def _plot_race(result: Result, path: Path) -> None:
    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "cmsbert"
    names = list(result["seconds"])[::-1]
    medians = [np.median(result["seconds"][name]) for name in names]
    ends = np.array([np.quantile(result["seconds"][name], [0.25, 0.75]) for name in names])
    figure, axes = plt.subplots(figsize=(7, 0.5 + 0.42 * len(names)), layout="constrained")
    errors = np.abs(ends.T - np.array(medians))
    axes.barh(names, medians, xerr=errors, color=["#4477aa" if n.startswith("ours") else "0.75" for n in names])
    axes.set_xlabel("seconds (median, quartiles)")
    axes.set_title(f"{result['suite']}: {result['case']}", fontsize=9)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# ------------------------------------------------------------------ the page


def _targets(results: list[Result]) -> list[str]:
    by_case = {(result["suite"], result["case"]): result for result in results}
    rows = []
    for text, suite, case, ours, theirs, limit in TARGETS:
        result = by_case.get((suite, case))
        if result is None or ours not in result["seconds"]:
            rows.append([text, f"<= {limit:.3g}", "not measured", ""])
            continue
        present = [name for name in theirs if name in result["seconds"]]
        rival = min(present, key=lambda name: np.median(result["seconds"][name]))
        value = measure.ratio(result["seconds"][ours], result["seconds"][rival])
        rows.append([text, f"<= {limit:.3g}", _interval(value), "met" if value[0] <= limit else "**missed**"])
    step = by_case.get(("Training step", _STEP))
    if step is not None:
        kept = step["facts"]["saved_for_backward"]
        value = kept["ours: cmsbert-clr"] / kept["torch backend, padded to 50"]
        verdict = "met" if value <= ACTIVATION_TARGET else "**missed**"
        text = "activations kept for the backward pass / padded torch backend"
        rows.append([text, f"<= {ACTIVATION_TARGET}", f"{value:.3g}", verdict])
    for result in results:
        if result["kind"] == "growth" and result["limit"] is not None:
            seconds = [result["seconds"][str(size)] for size in result["sizes"]]
            value = measure.exponent(result["sizes"], seconds)
            verdict = "met" if value[0] <= result["limit"] else "**missed**"
            text = f"{result['suite']}, {result['case']}: exponent in {result['quantity']}"
            rows.append([text, f"<= {result['limit']}", _interval(value), verdict])
    return _table(["what", "goal", "measured", ""], rows)


def _section(name: str, machine: dict[str, Any]) -> list[str]:
    facts, results = machine["facts"], machine["results"]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    rates = facts["matrix_flops_per_second"]
    lines = [
        f"## {name}",
        "",
        f"Python {facts['python']}, torch {facts['torch']}, transformers {facts['transformers']}, triton "
        f"{facts['triton']}; {facts['cpus']} CPUs. Runs: {'; '.join(dict.fromkeys(machine['runs']))}.",
        "",
        f"Ceilings, measured on the machine itself: copy {facts['copy_bytes_per_second'] / 1e9:.3g} GB/s (read + "
        f"written), matrix product {rates['float32'] / 1e9:.4g} GFLOP/s in float32, {rates['bfloat16'] / 1e9:.4g} in "
        "bfloat16. Shares in brackets are of these.",
        "",
        "### What was promised for 2 cores",
        "",
        *_targets(results),
        "",
    ]
    for suite in SUITES:
        chosen = [result for result in results if result["suite"] == suite]
        races = [result for result in chosen if result["kind"] == "race"]
        growths = [result for result in chosen if result["kind"] == "growth"]
        if not chosen:
            lines += [f"### {suite}", "", "Not measured.", ""]
            continue
        lines += [f"### {suite}", ""]
        for result in races:
            lines += [f"**{result['case']}**", ""]
            rounds = len(next(iter(result["seconds"].values())))
            header = ["", "median time", f"ours / it ({rounds} rounds)", "peak memory", "of the least work"]
            lines += _table(header, _race_rows(result, facts))
            extra = [f"{key}: {value}" for key, value in result["facts"].items() if not isinstance(value, dict)]
            for key, values in result["facts"].items():
                if isinstance(values, dict):
                    extra.append(
                        f"{key.replace('_', ' ')}: " + "; ".join(f"{n} {_bytes(v)}" for n, v in values.items())
                    )
            extra += [f"{contender}: not run, {why}" for contender, why in result["missing"].items()]
            lines += ["", *([". ".join(extra) + "."] if extra else []), ""]
        if growths:
            rows = [
                [
                    result["case"],
                    result["quantity"],
                    ", ".join(f"{size:g}" for size in result["sizes"]),
                    _growth(result),
                ]
                for result in growths
            ]
            lines += ["How the time grows:", ""]
            lines += [*_table(["", "size", "measured at", "exponent"], rows), ""]
        if suite == "Training step" and races:
            path = PLOTS / f"{slug}-step.svg"
            _plot_race(races[0], path)
            lines += [f"![Training step]({path.relative_to(ROOT)})", ""]
        if suite == "Scaling":
            lines += scaling_model.lines(chosen, results, facts)
    growths = [result for result in results if result["kind"] == "growth"]
    if growths:
        path = PLOTS / f"{slug}-growth.svg"
        _plot_growth(growths, path)
        lines += [f"![How the time grows]({path.relative_to(ROOT)})", ""]
    return lines


HEAD = """# Benchmarks

Generated by `python -m bench.report` from `bench/results`; never edited by hand. To measure your machine:

    pip install -e ".[test]"
    pytest bench --benchmark-json bench/results/NAME.json
    python -m bench.report

Contenders of a case run in one process (but for Scaling), in turns, in random order; a ratio is the median over rounds
of *ours / theirs* (below 1: ours is faster) with its 95 % bootstrap interval. Attention and loss with gradients, and
the models' loss or logits in float32, are compared before anything is timed: a case whose contenders disagree has no
row. Peak memory is that of tensors, beyond what existed before the call (gradients and optimiser state of earlier steps
did); scratch of the C++ kernels is not counted. "Of the least work" divides the operations and bytes that valid tokens
need (`bench/workload.py`) by the time; small cases live in the caches and can exceed the copy bandwidth. Lengths "MOSI"
are the quantiles of those of real CMU-MOSI (mean 14.8 word pieces, at most 50).
"""


def main() -> None:
    """Writes BENCHMARKS.md and its plots."""
    machines = load()
    lines = [HEAD]
    if not any("NVIDIA" in name or "AMD Instinct" in name for name in machines):
        lines += ["## GPU", "", "Not measured: no GPU was at hand. The same suites run there.", ""]
    for name, machine in machines.items():
        lines += _section(name, machine)
    (ROOT / "BENCHMARKS.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"BENCHMARKS.md: {len(machines)} machine(s), {sum(len(m['results']) for m in machines.values())} results")


if __name__ == "__main__":
    main()
