"""Goals of speed and memory, each with the results that decide it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import measure, names

Result = dict[str, Any]
Cases = dict[tuple[str, str], Result]  # by suite and case
Interval = tuple[float, float, float]  # a value between the ends of its interval
Value = float | Interval


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit, and the value that must keep it; ``value`` gives None where nothing was measured."""

    text: str
    limit: float
    value: Callable[[Cases], Value | None]
    at_least: bool = False

    def row(self, cases: Cases) -> list[str]:
        """The goal's line in the table: text, limit, value, verdict."""
        value = self.value(cases)
        goal = f"{'>=' if self.at_least else '<='} {self.limit:.3g}"
        if value is None:
            return [self.text, goal, "not measured", ""]
        middle, low, high = (value, value, value) if isinstance(value, float) else value
        met = middle >= self.limit if self.at_least else middle <= self.limit
        verdict = "met" if met else "**missed**"
        if low <= self.limit <= high and low < high:
            verdict += ", the interval crosses the goal"
        return [self.text, goal, f"{value:.3g}" if isinstance(value, float) else interval(value), verdict]


def interval(values: Interval) -> str:
    """The value and, in brackets, its interval."""
    return "{:.3g} [{:.3g}, {:.3g}]".format(*values)


def growth(result: Result) -> Interval:
    """The exponent with which the time grows."""
    return measure.exponent(result["sizes"], [result["seconds"][str(size)] for size in result["sizes"]])


# ------------------------------------------------------------------ how results give a value


def _against_fastest(result: Result | None, ours: str, theirs: Sequence[str]) -> Interval | None:
    present = [name for name in theirs if result is not None and name in result["seconds"]]
    if result is None or ours not in result["seconds"] or not present:
        return None
    rival = min(present, key=lambda name: np.median(result["seconds"][name]))
    return measure.ratio(result["seconds"][ours], result["seconds"][rival])


def _ratio(suite: str, case: str, ours: str, *theirs: str) -> Callable[[Cases], Value | None]:
    """Ours over the fastest of theirs."""
    return lambda cases: _against_fastest(cases.get((suite, case)), ours, theirs)


def _exponent(suite: str, case: str) -> Callable[[Cases], Value | None]:
    def value(cases: Cases) -> Value | None:
        result = cases.get((suite, case))
        return None if result is None else growth(result)

    return value


def _worst_with_projections(cases: Cases) -> Value | None:
    """The largest ratio of any size, CUDA graphs on both sides."""
    start, end = names.with_projections(""), names.as_graphs("")
    ratios = [
        _against_fastest(
            result, names.OURS_PROJECTIONS, [names.AUGMENTED, names.AUGMENTED_COMPILED, names.AUGMENTED_VARLEN]
        )
        for (suite, case), result in cases.items()
        if suite == names.ATTENTION and case.startswith(start) and case.endswith(end)
    ]
    return max((r for r in ratios if r is not None), default=None)


def _least_bandwidth(cases: Cases) -> Value | None:
    """The lower share of the copy bandwidth of both passes, in the batch that a GPU's bandwidth bounds."""
    shares = []
    for backward in (False, True):
        case = names.as_graphs(names.attention_case("mosi", 4096, backward))
        if result := cases.get((names.ATTENTION, case)):
            speed = result["bytes"] / float(np.median(result["seconds"][names.OURS]))
            shares.append(speed / result["machine"]["copy_bytes_per_second"])
    return min(shares, default=None)


def _loss_rate(cases: Cases) -> Value | None:
    result = cases.get((names.CONTRASTIVE, names.contrastive_case(32768, 768, smoothed=True)))
    if result is None:
        return None
    rate = result["machine"]["matrix_flops_per_second"][result["dtype"]]
    return result["flops"] / float(np.median(result["seconds"][names.OURS])) / rate


def _activations(cases: Cases) -> Value | None:
    result = cases.get((names.STEP, names.STEP_CASE))
    if result is None:
        return None
    kept = result["facts"]["saved_for_backward"]
    return kept[names.OURS_CLR] / kept[names.MODEL_PADDED]


# ------------------------------------------------------------------ the goals

_ATTENTION_CASE = names.attention_case("mosi", 32, backward=True)
CPU_GOALS = [
    Goal(
        "cmsbert-clr step / the same model on the torch backend padded to 50",
        0.36,
        _ratio(names.STEP, names.STEP_CASE, names.OURS_CLR, names.MODEL_PADDED),
    ),
    Goal(
        "cmsbert-clr step / MAG-BERT's way",
        0.19,
        _ratio(names.STEP, names.STEP_CASE, names.OURS_CLR, names.MAG_BERT),
    ),
    Goal(
        "cmsbert-clr step / text-only BERT, both packed",
        1.15,
        _ratio(names.STEP, names.VARIANTS, names.CLR, names.BERT),
    ),
    Goal(
        "cmsbert step / text-only BERT, both packed",
        1.05,
        _ratio(names.STEP, names.VARIANTS, names.CMS, names.BERT),
    ),
    Goal(
        "cmsbert-clr step in bfloat16 / in float32, one batch of 473 rows",
        0.6,
        _ratio(names.STEP, names.STEP_CASE, names.OURS_BFLOAT16, names.OURS_CLR),
    ),
    Goal(
        "cmsbert-clr step in bfloat16 / in float32, 13 random batches",
        0.6,
        _ratio(names.STEP, names.RANDOM_BATCHES, names.OURS_BFLOAT16, names.OURS_FLOAT32),
    ),
    Goal(
        "CMS attention forward + backward / the fastest plain PyTorch",
        1 / 1.5,
        _ratio(
            names.ATTENTION,
            _ATTENTION_CASE,
            names.OURS,
            names.TORCH,
            names.TORCH_PADDED,
            names.LEAN,
            names.BUCKETED,
            names.LEAN_COMPILED,
        ),
    ),
    Goal(
        "CMS attention forward + backward / the literal reference",
        1 / 30,
        _ratio(names.ATTENTION, _ATTENTION_CASE, names.OURS, names.LITERAL_PADDED),
    ),
    Goal(
        "inference on one utterance, cmsbert-clr / OpenVINO's text-only BERT",
        1.3,
        _ratio(names.INFERENCE, names.inference_case(1), names.OURS_CLR, names.OPENVINO),
    ),
    Goal(
        "the same, both in bfloat16",
        1.3,
        _ratio(names.INFERENCE, names.inference_case(1), names.OURS_BFLOAT16, names.OPENVINO_BFLOAT16),
    ),
    Goal(
        "inference on 64 utterances, cmsbert-clr / OpenVINO's text-only BERT, padded",
        0.42,
        _ratio(names.INFERENCE, names.inference_case(64), names.OURS_CLR, names.OPENVINO),
    ),
    *(
        Goal(
            f"contrastive loss, n = {n:,}, without labels / open_clip's algorithm",
            limit,
            _ratio(names.CONTRASTIVE, names.contrastive_case(n, 768, smoothed=False), names.OURS, names.OPEN_CLIP),
        )
        for n, limit in ((4096, 0.45), (128, 0.6))
    ),
    Goal(
        "cmsbert-clr step beside two busy processes / alone, of which a fair share of two cores is 2",
        6.0,
        _ratio(names.STEP, names.BUSY, names.OURS_CLR, names.NOBODY_ELSE),
    ),
    Goal("activations kept for the backward pass / padded torch backend", 0.4, _activations),
    Goal(
        "exponent of CMS attention's time in the batch, MOSI lengths",
        1.05,
        _exponent(names.ATTENTION, names.ATTENTION_GROWTH),
    ),
    Goal(
        "exponent of the step's time in valid tokens, BERT-base shape",
        1.05,
        _exponent(names.STEP, names.STEP_GROWTH),
    ),
]
GPU_GOALS = [
    Goal(
        "CMS attention, batch 4,096: share of the copy bandwidth, the lower of both passes",
        0.7,
        _least_bandwidth,
        at_least=True,
    ),
    Goal(
        "projections + CMS attention / augmented product + SDPA or varlen attention, CUDA graphs, worst size",
        1.0,
        _worst_with_projections,
    ),
    Goal(
        "contrastive loss, n = 32,768, d = 768: share of the bfloat16 matrix rate",
        0.6,
        _loss_rate,
        at_least=True,
    ),
    Goal(
        "cmsbert-clr step in bfloat16 / MAG-BERT's way, batch 128",
        0.1,
        _ratio(names.STEP, names.PAPER_STEP_CASE, names.OURS_BFLOAT16, names.MAG_BERT),
    ),
    Goal(
        "cmsbert-clr step / text-only BERT, both packed, bfloat16, batch 128",
        1.15,
        _ratio(names.STEP, names.PAPER_VARIANTS, names.CLR, names.BERT),
    ),
]


def rows(goals: Sequence[Goal], results: Sequence[Result]) -> list[list[str]]:
    """The lines of the table, under "what", "goal", "measured" and the verdict."""
    cases = {(result["suite"], result["case"]): result for result in results if result["kind"] != "skipped"}
    return [goal.row(cases) for goal in goals]
