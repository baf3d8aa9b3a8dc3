"""From results to BENCHMARKS.md: ``python -m bench.report``.

Reads every ``bench/results/*.json`` that ``pytest bench --benchmark-json bench/results/NAME.json`` wrote, and writes
BENCHMARKS.md with its plots in ``docs/benchmarks``. One section a machine; of a case measured twice the later counts.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from bench import measure, scaling_model

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PLOTS = ROOT / "docs" / "benchmarks"
SUITES = ["CMS attention", "Contrastive loss", "Training step", "Inference", "Data to batch", "Scaling"]

PROFILE_ROWS = 12

Result = dict[str, Any]

_STEP = "cmsbert-clr, MOSI lengths, batch 32"
_VARIANTS = "what the variants cost, all packed, MOSI lengths, batch 32"
_RANDOM_BATCHES = "cmsbert-clr in bfloat16, random batches of MOSI lengths, batch 32"
_ATTENTION = "MOSI lengths, batch 32, forward + backward"
_GRAPHS = ", replayed as CUDA graphs"
_LARGE = ", batch 4096, "  # attention's cases that a GPU's bandwidth bounds
_OURS, _MAG, _PADDED = "ours: cmsbert-clr", "MAG-BERT's way: padded to 50, eager", "torch backend, padded to 50"
_BFLOAT16 = "ours in bfloat16"
_BUCKETED = "lean PyTorch, in 4 buckets of similar length"
_PLAIN = ("torch backend", "torch backend, padded", "lean PyTorch, padded", _BUCKETED, "torch.compile of it, padded")
_AUGMENTED = ("augmented product + SDPA in buckets", "torch.compile of it")

Value = float | tuple[float, float, float]  # with its interval
Cases = dict[tuple[str, str], Result]


@dataclass(frozen=True, slots=True)
class Goal:
    """What was promised, and how results tell it; ``value`` gives None where nothing was measured."""

    text: str
    limit: float
    value: Callable[[Cases], Value | None]
    at_least: bool = False

    def row(self, cases: Cases) -> list[str]:
        value = self.value(cases)
        goal = f"{'>=' if self.at_least else '<='} {self.limit:.3g}"
        if value is None:
            return [self.text, goal, "not measured", ""]
        middle = value if isinstance(value, float) else value[0]
        met = middle >= self.limit if self.at_least else middle <= self.limit
        if isinstance(value, float):
            return [self.text, goal, f"{value:.3g}", "met" if met else "**missed**"]
        verdict = "met" if met else "**missed**"
        if value[1] <= self.limit <= value[2] and value[1] < value[2]:
            verdict += ", the interval crosses the goal"
        return [self.text, goal, _interval(value), verdict]


def _ratio(suite: str, case: str, ours: str, *theirs: str) -> Callable[[Cases], Value | None]:
    """Ours over the fastest of theirs."""

    def value(cases: Cases) -> Value | None:
        return _against_fastest(cases.get((suite, case)), ours, theirs)

    return value


def _against_fastest(result: Result | None, ours: str, theirs: Sequence[str]) -> tuple[float, float, float] | None:
    present = [name for name in theirs if result is not None and name in result["seconds"]]
    if result is None or ours not in result["seconds"] or not present:
        return None
    rival = min(present, key=lambda name: np.median(result["seconds"][name]))
    return measure.ratio(result["seconds"][ours], result["seconds"][rival])


def _worst_with_projections(cases: Cases) -> Value | None:
    """The largest ratio of any size, CUDA graphs on both sides."""
    ratios = [
        _against_fastest(result, "ours: projections, then the operator", _AUGMENTED)
        for (suite, case), result in cases.items()
        if suite == "CMS attention" and case.startswith("projections") and case.endswith(_GRAPHS)
    ]
    return max((r for r in ratios if r is not None), default=None)


def _least_bandwidth(cases: Cases) -> Value | None:
    """The lowest share of the copy bandwidth among the large batches."""
    shares = [
        result["bytes"] / float(np.median(result["seconds"]["ours"])) / result["machine"]["copy_bytes_per_second"]
        for (suite, case), result in cases.items()
        if suite == "CMS attention" and _LARGE in case and case.endswith(_GRAPHS)
    ]
    return min(shares, default=None)


def _loss_rate(cases: Cases) -> Value | None:
    result = cases.get(("Contrastive loss", "n = 32768, d = 768, targets smoothed"))
    if result is None:
        return None
    rate = result["machine"]["matrix_flops_per_second"][result["dtype"]]
    return result["flops"] / float(np.median(result["seconds"]["ours"])) / rate


def _activations(cases: Cases) -> Value | None:
    result = cases.get(("Training step", _STEP))
    if result is None:
        return None
    kept = result["facts"]["saved_for_backward"]
    return kept[_OURS] / kept[_PADDED]


def _exponent(suite: str, case: str) -> Callable[[Cases], Value | None]:
    def value(cases: Cases) -> Value | None:
        result = cases.get((suite, case))
        return None if result is None else _growth(result)

    return value


_STEP_RATIO = functools.partial(_ratio, "Training step", _STEP)
_VARIANT_RATIO = functools.partial(_ratio, "Training step", _VARIANTS)
CPU_GOALS = [
    Goal("cmsbert-clr step / the same model on the torch backend padded to 50", 0.36, _STEP_RATIO(_OURS, _PADDED)),
    Goal("cmsbert-clr step / MAG-BERT's way", 0.38, _STEP_RATIO(_OURS, _MAG)),
    Goal("cmsbert-clr step / text-only BERT, both packed", 1.15, _VARIANT_RATIO("cmsbert-clr", "bert")),
    Goal("cmsbert step / text-only BERT, both packed", 1.05, _VARIANT_RATIO("cmsbert", "bert")),
    Goal("cmsbert-clr step in bfloat16 / in float32, one batch of 473 rows", 0.6, _STEP_RATIO(_BFLOAT16, _OURS)),
    Goal(
        "cmsbert-clr step in bfloat16 / in float32, 13 random batches",
        0.6,
        _ratio("Training step", _RANDOM_BATCHES, _BFLOAT16, "ours in float32"),
    ),
    Goal(
        "CMS attention forward + backward / the fastest plain PyTorch",
        1 / 1.5,
        _ratio("CMS attention", _ATTENTION, "ours", *_PLAIN),
    ),
    Goal(
        "CMS attention forward + backward / the literal reference",
        1 / 30,
        _ratio("CMS attention", _ATTENTION, "ours", "literal reference, padded"),
    ),
    Goal("activations kept for the backward pass / padded torch backend", 0.4, _activations),
    Goal(
        "exponent of CMS attention's time in the batch, MOSI lengths",
        1.05,
        _exponent("CMS attention", "forward + backward, MOSI lengths"),
    ),
    Goal(
        "exponent of the step's time in valid tokens, BERT-base shape",
        1.05,
        _exponent("Training step", "cmsbert-clr, BERT-base shape, batch 16 to 128"),
    ),
]
GPU_GOALS = [
    Goal("CMS attention, batch 4,096: share of the copy bandwidth, the lower of both passes", 0.7,
         _least_bandwidth, at_least=True),
    Goal("projections + CMS attention / augmented product + SDPA, CUDA graphs, worst size", 1.0,
         _worst_with_projections),
    Goal("contrastive loss, n = 32,768, d = 768: share of the bfloat16 matrix rate", 0.6, _loss_rate, at_least=True),
    Goal("cmsbert-clr step in bfloat16 / MAG-BERT's way", 0.1, _STEP_RATIO(_BFLOAT16, _MAG)),
    Goal("cmsbert-clr step / text-only BERT, both packed, bfloat16", 1.15, _VARIANT_RATIO("cmsbert-clr", "bert")),
]  # fmt: skip


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
        rates = facts["matrix_flops_per_second"]
        machine["runs"].append(
            f"{file['datetime'][:10]} at commit {str(commit.get('id'))[:10]}"
            f"{' with uncommitted changes' if commit.get('dirty') else ''}, Python {facts['python']}, torch "
            f"{facts['torch']}, transformers {facts['transformers']}, triton {facts['triton']} (copy "
            f"{facts['copy_bytes_per_second'] / 1e9:.3g} GB/s read + written, matrix product "
            f"{rates['float32'] / 1e9:.4g} GFLOP/s in float32, {rates['bfloat16'] / 1e9:.3g} in bfloat16)"
        )
        for benchmark in file["benchmarks"]:
            for result in benchmark["extra_info"]["results"]:
                # A machine's ceilings differ from run to run: shares are of those of the result's own run.
                machine["results"][(result["suite"], result["case"])] = result | {"machine": facts}
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


def _share(result: Result, name: str) -> str:
    """What part of the machine's measured best a contender reaches, if all of its time went into the least work."""
    facts = result.get("machine")
    if facts is None or result.get("flops") is None:
        return ""
    seconds = float(np.median(result["seconds"][name]))
    rate = facts["matrix_flops_per_second"][result["dtype"]]
    parts = [f"{result['flops'] / seconds / 1e9:.3g} GFLOP/s ({result['flops'] / seconds / rate:.0%})"]
    if result.get("bytes"):
        speed = result["bytes"] / seconds
        parts.append(f"{speed / 1e9:.3g} GB/s ({speed / facts['copy_bytes_per_second']:.0%})")
    return ", ".join(parts)


def _race_rows(result: Result) -> list[list[str]]:
    names = list(result["seconds"])
    ours = result["seconds"][names[0]]
    rows = []
    for name in names:
        times = result["seconds"][name]
        compared = "" if name == names[0] else _interval(measure.ratio(ours, times))
        memory = _bytes(result["memory"][name]) if name in result["memory"] else ""
        work = _share(result, name) if name == names[0] else ""
        rows.append([name, _time(float(np.median(times))), compared, memory, work])
    return rows


def text_table(results: list[Result]) -> str:
    """The comparison as lines for a terminal."""
    lines = []
    for result in results:
        lines.append(f"{result['suite']}: {result['case']}")
        if result["kind"] == "race":
            for name, time, compared, memory, _ in _race_rows(result):
                lines.append(f"    {name:<48} {time:>9}  {compared:<26} {memory:>9}")
        elif result["kind"] == "scaling":
            for processes, row in result["processes"].items():
                lines.append(f"    {processes} processes: {_time(float(np.median(row['seconds'])))} a step")
        elif result["kind"] == "growth":
            lines.append(f"    time ~ {result['quantity']}^k, k = {_interval(_growth(result))}")
        elif result["kind"] == "profile":
            for name, profile in result["seconds"].items():
                slowest = ", ".join(f"{operator} {_time(t)}" for operator, t in list(profile.items())[:3])
                lines.append(f"    {name}: {slowest}")
        else:
            lines.append(f"    not run: {result['why']}")
    return "\n".join(lines)


def _growth(result: Result) -> tuple[float, float, float]:
    return measure.exponent(result["sizes"], [result["seconds"][str(size)] for size in result["sizes"]])


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


def _goals(goals: Sequence[Goal], results: list[Result]) -> list[str]:
    cases = {(result["suite"], result["case"]): result for result in results if result["kind"] != "skipped"}
    return _table(["what", "goal", "measured", ""], [goal.row(cases) for goal in goals])


def _profile_lines(result: Result) -> list[str]:
    """Operators by their own time: the slowest of the first profile, the rest together."""
    profiles: dict[str, dict[str, float]] = result["seconds"]
    first = next(iter(profiles.values()))
    rows = []
    for operator in list(first)[:PROFILE_ROWS]:
        rows.append([f"`{operator}`", *(f"{profile.get(operator, 0.0) * 1e3:.1f} ms" for profile in profiles.values())])
    shown = set(list(first)[:PROFILE_ROWS])
    others = [sum(t for name, t in profile.items() if name not in shown) for profile in profiles.values()]
    rows.append(["all others", *(f"{t * 1e3:.1f} ms" for t in others)])
    rows.append(["sum", *(f"{sum(profile.values()) * 1e3:.0f} ms" for profile in profiles.values())])
    return [f"**{result['case']}** (PyTorch's profiler, each operator's own time a step)", "",
            *_table(["", *profiles], rows), ""]  # fmt: skip


def _section(name: str, machine: dict[str, Any]) -> list[str]:
    facts, results = machine["facts"], machine["results"]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    on_gpu = scaling_model.is_gpu(name)
    lines = [
        f"## {name}",
        "",
        f"{facts['cpus']} CPUs. Runs, with the ceilings that the machine itself reached in each, of which shares in "
        "brackets are:",
        "",
        *(f"- {run}" for run in dict.fromkeys(machine["runs"])),
        "",
        "### What was promised",
        "",
        *_goals(GPU_GOALS if on_gpu else CPU_GOALS, results),
        "",
    ]
    for suite in SUITES:
        chosen = [result for result in results if result["suite"] == suite]
        races = [result for result in chosen if result["kind"] == "race"]
        growths = [result for result in chosen if result["kind"] == "growth"]
        lines += [f"### {suite}", "", *([] if chosen else ["Not measured.", ""])]
        for result in races:
            lines += [f"**{result['case']}**", ""]
            rounds = len(next(iter(result["seconds"].values())))
            header = ["", "median time", f"ours / it ({rounds} rounds)", "peak memory", "of the least work"]
            lines += _table(header, _race_rows(result))
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
                    _interval(_growth(result)),
                ]
                for result in growths
            ]
            lines += ["How the time grows:", ""]
            lines += [*_table(["", "size", "measured at", "exponent"], rows), ""]
        for result in chosen:
            if result["kind"] == "profile":
                lines += _profile_lines(result)
        skipped = [f"- {result['case']}: {result['why']}" for result in chosen if result["kind"] == "skipped"]
        if skipped:
            lines += ["Not run here:", "", *skipped, ""]
        if suite == "Training step" and races:
            path = PLOTS / f"{slug}-step.svg"
            _plot_race(next((r for r in races if r["case"] == _STEP), races[0]), path)
            lines += [f"![Training step]({path.relative_to(ROOT)})", ""]
        if suite == "Scaling":
            measured = [result for result in chosen if result["kind"] == "scaling"]
            lines += scaling_model.lines(measured, results, facts)
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

Contenders of a case run in one process (but for Scaling and kept memory), in turns, in random order; a ratio is the
median over rounds of *ours / theirs* (below 1: ours is faster) with its 95 % bootstrap interval. Before anything is
timed, outputs and gradients of attention and loss are compared, and in the races of a step and of inference the losses
or logits of all forms of the same model: a case whose contenders disagree has no row. Other models (MAG-BERT, Hugging
Face's BERT, "text only") do other work and are compared with nothing. Peak memory is what a call holds beyond what
existed before it, gradients included, with the scratch of the C++ kernels. On a CPU the process keeps the memory it
frees, as `train.py` makes it, which serves every contender. "Of the least work" divides the operations and bytes that
valid tokens need (`bench/workload.py`) by the time; small cases live in the caches and can exceed the copy bandwidth.
Lengths "MOSI" are the quantiles of those of real CMU-MOSI (mean 14.8 word pieces, at most 50).
"""


def main() -> None:
    """Writes BENCHMARKS.md and its plots."""
    machines = load()
    lines = [HEAD]
    if not any(scaling_model.is_gpu(name) for name in machines):
        lines += ["## GPU", "", "Not measured: no GPU was at hand. The same suites run there. What was promised:", ""]
        lines += [*_goals(GPU_GOALS, []), ""]
    for name, machine in machines.items():
        lines += _section(name, machine)
    (ROOT / "BENCHMARKS.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"BENCHMARKS.md: {len(machines)} machine(s), {sum(len(m['results']) for m in machines.values())} results")


if __name__ == "__main__":
    main()
