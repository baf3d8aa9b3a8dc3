"""Results as tables: in Markdown for the page, as lines for a terminal."""

from collections.abc import Iterable, Sequence

import numpy as np

from bench import measure
from bench.goals import Result, growth, interval

PROFILE_ROWS = 12


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def time_text(seconds: float) -> str:
    """Seconds in a unit that suits them, three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _bytes(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def _share(result: Result, name: str) -> str:
    """The least work over a contender's time, and what part of the machine's measured best that is."""
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
    """By contender: time, ratio, memory, work. The first is ours."""
    contenders = list(result["seconds"])
    ours = result["seconds"][contenders[0]]
    rows = []
    for name in contenders:
        times = result["seconds"][name]
        compared = "" if name == contenders[0] else interval(measure.ratio(ours, times))
        memory = _bytes(result["memory"][name]) if name in result["memory"] else ""
        work = _share(result, name) if name == contenders[0] else ""
        rows.append([name, time_text(float(np.median(times))), compared, memory, work])
    return rows


def race_lines(result: Result) -> list[str]:
    """The table of a race, and what else is known of it."""
    rounds = len(next(iter(result["seconds"].values())))
    header = ["", "median time", f"ours / it ({rounds} rounds)", "peak memory", "of the least work"]
    extra = [f"{key}: {value}" for key, value in result["facts"].items() if not isinstance(value, dict)]
    for key, values in result["facts"].items():
        if isinstance(values, dict):
            sizes = "; ".join(f"{name} {_bytes(value)}" for name, value in values.items())
            extra.append(f"{key.replace('_', ' ')}: {sizes}")
    extra += [f"{contender}: not run, {why}" for contender, why in result["missing"].items()]
    lines = [f"**{result['case']}**", "", *table(header, _race_rows(result)), ""]
    return [*lines, *([". ".join(extra) + "."] if extra else []), ""]


def growth_lines(results: Sequence[Result]) -> list[str]:
    """The exponents of all cases that grow."""
    rows = [
        [
            result["case"],
            result["quantity"],
            ", ".join(f"{size:g}" for size in result["sizes"]),
            interval(growth(result)),
        ]
        for result in results
    ]
    return ["How the time grows:", "", *table(["", "size", "measured at", "exponent"], rows), ""] if rows else []


def profile_lines(result: Result) -> list[str]:
    """Operators by their own time: the slowest of the first profile, the rest together."""
    profiles: dict[str, dict[str, float]] = result["seconds"]
    shown = list(next(iter(profiles.values())))[:PROFILE_ROWS]
    rows = []
    for operator in shown:
        rows.append([f"`{operator}`", *(f"{profile.get(operator, 0.0) * 1e3:.1f} ms" for profile in profiles.values())])
    others = [sum(t for name, t in profile.items() if name not in shown) for profile in profiles.values()]
    rows.append(["all others", *(f"{t * 1e3:.1f} ms" for t in others)])
    rows.append(["sum", *(f"{sum(profile.values()) * 1e3:.0f} ms" for profile in profiles.values())])
    title = f"**{result['case']}** (PyTorch's profiler, each operator's own time a step)"
    return [title, "", *table(["", *profiles], rows), ""]


def kernel_lines(results: Sequence[Result]) -> list[str]:
    """What calls cost on a GPU: as a graph, launched one by one, the host's part, and the slowest kernels."""
    rows = []
    for result in results:
        device = result.get("graph") or result["busy"]
        shares = ""
        if "bytes" in result:
            facts = result["machine"]
            speed = result["bytes"] / device / facts["copy_bytes_per_second"]
            rate = result["flops"] / device / facts["matrix_flops_per_second"]["bfloat16"]
            shares = f"{speed:.0%}, {rate:.0%}"
        slowest = ", ".join(
            f"`{name[:40]}` {time_text(seconds)}" for name, seconds in list(result["kernels"].items())[:4]
        )
        graph = time_text(result["graph"]) if result.get("graph") else "not captured"
        times = [graph, time_text(result["eager"]), time_text(result["host"]), time_text(result["busy"])]
        rows.append([result["case"], *times, f"{result['launches']:.0f}", shares, slowest])
    header = ["", "as a graph", "one by one", "host", "kernels", "launches", "of copy, of matrix rate", "slowest"]
    return (
        ["By kernel (medians; the sum of the kernels by PyTorch's profiler):", "", *table(header, rows), ""]
        if rows
        else []
    )


def text_table(results: Sequence[Result]) -> str:
    """The comparison as lines for a terminal."""
    lines = []
    for result in results:
        lines.append(f"{result['suite']}: {result['case']}")
        if result["kind"] == "race":
            for name, time, compared, memory, _ in _race_rows(result):
                lines.append(f"    {name:<48} {time:>9}  {compared:<26} {memory:>9}")
        elif result["kind"] == "scaling":
            for processes, row in result["processes"].items():
                lines.append(f"    {processes} processes: {time_text(float(np.median(row['seconds'])))} a step")
        elif result["kind"] == "growth":
            lines.append(f"    time ~ {result['quantity']}^k, k = {interval(growth(result))}")
        elif result["kind"] == "profile":
            for name, profile in result["seconds"].items():
                slowest = ", ".join(f"{operator} {time_text(t)}" for operator, t in list(profile.items())[:3])
                lines.append(f"    {name}: {slowest}")
        else:
            lines.append(f"    not run: {result['why']}")
    return "\n".join(lines)
