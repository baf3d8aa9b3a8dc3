"""Every goal finds the results that decide it: a name that changed in one place only would read "not measured"."""

import pytest

from bench import goals, names, report, scaling_model
from bench.goals import Goal
from bench.test_attention import CASES

FACTS = dict(copy_bytes_per_second=1e10, matrix_flops_per_second={"float32": 1e11, "bfloat16": 2e11})


@pytest.mark.parametrize("goal", goals.CPU_GOALS, ids=lambda goal: goal.text)
def test_goals_of_a_cpu_are_found_in_the_measured_results(goal: Goal):
    machines = [machine for name, machine in report.load().items() if not scaling_model.is_gpu(name)]
    rows = [row for machine in machines for row in goals.rows([goal], machine["results"])]
    assert any(row[2] != "not measured" for row in rows)


def race(suite, case, seconds, **changes):
    """A result of five rounds that all take the same time."""
    base = dict(kind="race", memory={}, flops=1e9, bytes=None, dtype="float32", facts={}, missing={}, machine=FACTS)
    return base | dict(suite=suite, case=case, seconds={name: [s] * 5 for name, s in seconds.items()}) | changes


def gpu_results(seconds):
    """Attention as the suites' own cases name it, and one race for each of the other goals."""
    results = []
    for kind, batch in CASES:
        for backward in (False, True):
            case = names.attention_case(kind, batch, backward)
            results += [
                race(names.ATTENTION, names.as_graphs(case), {names.OURS: seconds["backward"][backward]}, bytes=8e9),
                race(
                    names.ATTENTION,
                    names.as_graphs(names.with_projections(case)),
                    {names.OURS_PROJECTIONS: seconds["lengths"].get(kind, 0.1), names.AUGMENTED: 1.0},
                ),
            ]
    loss = names.contrastive_case(32768, 768, smoothed=True)
    step = {names.OURS_CLR: 0.2, names.OURS_BFLOAT16: 0.1, names.MAG_BERT: 1.1}
    return [
        *results,
        race(names.CONTRASTIVE, loss, {names.OURS: 1.0}, flops=1.3e11, dtype="bfloat16"),
        race(names.STEP, names.PAPER_STEP_CASE, step, facts={"saved_for_backward": {}}),
        race(names.STEP, names.PAPER_VARIANTS, {names.CLR: 1.2, names.BERT: 1.0}),
    ]


def test_goals_of_a_gpu_are_told_from_its_results():
    results = gpu_results({"backward": [1.0, 1.6], "lengths": {"mosi": 0.5, 512: 1.5}})
    told = [(row[2], row[3].strip("*")) for row in goals.rows(goals.GPU_GOALS, results)]
    # 8 GB in 1.6 s of 10 GB/s; the worst size counts; 130 of 200 GFLOP/s.
    assert told == [
        ("0.5", "missed"), ("1.5 [1.5, 1.5]", "missed"), ("0.65", "met"),
        ("0.0909 [0.0909, 0.0909]", "met"), ("1.2 [1.2, 1.2]", "missed"),
    ]  # fmt: skip
    assert all(row[2:] == ["not measured", ""] for row in goals.rows(goals.GPU_GOALS, []))
