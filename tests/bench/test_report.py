"""Statistics, and the page made of results."""

import json

import pytest
import torch

from bench import measure, names, report, scaling_model
from cmsbert_fast import cms_attention
from cmsbert_fast.kernels.cpu import library


def test_ratio_is_the_median_of_rounds_with_its_interval():
    value, low, high = measure.ratio([1.0, 2.0, 3.0, 2.0, 50.0], [2.0, 4.0, 6.0, 4.0, 10.0])
    assert value == 0.5
    assert low == 0.5
    assert high > 0.5  # the round that went wrong shows in the interval, not in the median


def test_exponent_of_a_power_law():
    sizes = [1, 2, 4, 8]
    value, low, high = measure.exponent(sizes, [[3 * size**1.5] * 5 for size in sizes])
    assert value == pytest.approx(1.5)
    assert (low, high) == pytest.approx((1.5, 1.5))


def test_turns_are_complete_rounds():
    calls = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = measure.take_turns(runs, torch.device("cpu"), seconds=0, fewest=4)
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(set(calls[k : k + 3]) == set("abc") for k in range(0, 12, 3))
    assert len({tuple(calls[k : k + 3]) for k in range(0, 12, 3)}) > 1  # not always in one order


def test_peak_memory_counts_what_is_held_at_a_time():
    def run():
        for _ in range(3):
            torch.empty(1_000_000).fill_(0)  # 4 MB, freed before the next

    assert measure.peak_memory(run, torch.device("cpu")) == pytest.approx(4e6, rel=0.01)


@pytest.mark.skipif(library.why_not() is not None, reason="needs a C++ compiler")
def test_peak_memory_counts_the_scratch_of_those_who_take_it():
    """Threads keep theirs between calls: a call that takes as much is charged again, any other never."""
    x = torch.randn(300, 2, 64)
    cu_seqlens = torch.tensor([0, 300], dtype=torch.int32)

    def attend():
        cms_attention(x, x, x, cu_seqlens=cu_seqlens, max_seqlen=300, backend="cpu")

    def rest():
        torch.empty(1000)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # or they share the heads as it comes
        first, other, again = (measure.peak_memory(run, torch.device("cpu")) for run in (attend, rest, attend))
    finally:
        torch.set_num_threads(threads)
    assert first > x.nbytes + 4 * 300 * 64 * 4  # z, and at least a head's q, k and v and their products
    assert other == 4000
    assert again == first


def test_saved_for_backward_counts_activations_once_and_no_parameters():
    weight = torch.randn(1000, 1000, requires_grad=True)
    x = torch.randn(500, 1000)

    def forward():
        hidden = x @ weight  # keeps x (2 MB); weight is a parameter
        return torch.sigmoid(hidden).square()  # keeps the sigmoid's output (2 MB), twice

    assert measure.saved_for_backward(forward, [weight]) == 4_000_000


def result(**changes):
    base = dict(kind="race", memory={"ours": 1e6}, flops=1e9, bytes=1e6, dtype="float32", facts={}, missing={})
    return base | changes


def write_results(folder, seconds, device="A CPU"):
    facts = dict(device=device, threads=2, cpus=2, python="3", torch="2", transformers="5", triton=None)
    facts |= dict(copy_bytes_per_second=1e10, matrix_flops_per_second={"float32": 1e11, "bfloat16": 2e11})
    extra = result(suite=names.ATTENTION, case=names.attention_case("mosi", 32, backward=True), seconds=seconds)
    growth = dict(kind="growth", suite=names.STEP, case=names.STEP_GROWTH)
    growth |= dict(
        quantity="valid tokens", sizes=[10, 20, 40], seconds={"10": [1.0] * 5, "20": [4.0] * 5, "40": [16.0] * 5}
    )
    file = dict(datetime="2026-01-01T00:00:00", machine_info=facts, commit_info={"id": "abcdef0123456789"})
    skipped = dict(kind="skipped", suite=names.ATTENTION, case="batch 10 million", why="too large")
    profile = dict(kind="profile", suite=names.STEP, case="profile")
    profile |= dict(seconds={"cmsbert-clr": {"mm": 2e-3, "add": 1e-3}, "bert": {"mm": 1e-3, "tanh": 5e-4}})
    file["benchmarks"] = [{"extra_info": {"results": [r]}} for r in (extra, growth, skipped, profile)]
    folder.mkdir()
    (folder / "one.json").write_text(json.dumps(file))


@pytest.fixture
def page(tmp_path, monkeypatch):
    def render(seconds):
        write_results(tmp_path / "results", seconds)
        machines = report.load(tmp_path / "results")
        monkeypatch.setattr(report, "load", lambda: machines)
        monkeypatch.setattr(report, "ROOT", tmp_path)
        monkeypatch.setattr(report, "PLOTS", tmp_path / "plots")
        report.main()
        return (tmp_path / "BENCHMARKS.md").read_text()

    return render


def test_page_tells_goals_met_and_missed(page, tmp_path):
    text = page(
        {"ours": [1.0] * 5, "torch backend": [1.2] * 5, "literal reference, padded": [40.0] * 5}
    )  # 1.2 times is not 1.5
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
    assert "**missed**" in lines["CMS attention forward + backward / the fastest plain PyTorch"]
    assert lines["CMS attention forward + backward / the literal reference"].endswith("| met |")
    assert "not measured" in lines["cmsbert-clr step / MAG-BERT's way"]
    assert "**missed**" in lines["exponent of the step's time in valid tokens, BERT-base shape"]
    assert "2 [2, 2]" in text
    assert "0.833 [0.833, 0.833]" in text
    assert "Not measured: no GPU was at hand" in text
    assert "1 GFLOP/s (1%)" in text
    assert "- batch 10 million: too large" in text
    assert lines["`mm`"].endswith("| 2.0 ms | 1.0 ms |")
    assert lines["all others"].endswith("| 0.0 ms | 0.5 ms |")
    assert list((tmp_path / "plots").glob("*-growth.svg"))


def test_more_devices_cost_more_of_everything_but_compute():
    few, many = (scaling_model.predict(k, 1.0, 1e12, 1e9) for k in (8, 1024))
    assert few["compute"] == many["compute"]
    assert all(few[name] < many[name] for name in ("imbalance", "loss", "gather", "total"))
    assert scaling_model.predict(1, 1.0, 1e12, 1e9)["gather"] == 0


@pytest.mark.parametrize(("has", "end"), [(True, " and AMX"), (False, "")])
def test_a_cpu_is_named_with_its_matrix_unit(monkeypatch, has, end):
    monkeypatch.setattr(measure, "has_matrix_unit", lambda: has)
    assert measure._processor().endswith(f" with {torch.backends.cpu.get_cpu_capability()}{end}")
