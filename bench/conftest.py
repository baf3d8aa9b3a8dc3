"""What the suites share: the device, the race between contenders, and the table at the end of ``pytest bench``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from bench import measure, names, tables
from bench.workload import UNKNOWN_WORK, Work
from cmsbert_fast.training.distributed import keep_freed_memory

SECONDS = 20.0  # a race takes about so long, its fewest rounds permitting
_finished: list[dict[str, Any]] = []


@pytest.fixture(scope="session")
def device() -> torch.device:
    if not torch.cuda.is_available():
        keep_freed_memory()  # as train.py does; here it serves every contender
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def leave_no_memory():
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Race:
    """Times contenders in turns and hands the numbers to pytest-benchmark, whose JSON the report reads.

    pytest-benchmark's own statistics are those of the first contender, which is ours.
    """

    def __init__(self, benchmark: Any, device: torch.device):
        self._benchmark = benchmark
        self._device = device

    def __call__(
        self,
        suite: str,
        case: str,
        contenders: Mapping[str, Callable[[], object]],
        *,
        seconds: float = SECONDS,
        fewest: int = 5,
        work: Work = UNKNOWN_WORK,
        facts: Mapping[str, object] | None = None,
        missing: Mapping[str, str] | None = None,
        graphs: bool = False,
    ) -> dict[str, list[float]]:
        """Runs a race between contenders that do the same work; the caller has checked that they agree.

        Args:
            suite, case: Where the result stands in the report.
            contenders: By name, ours first.
            seconds, fewest: How long, and at least how many rounds.
            work: What share of the machine's best ours reaches follows from it.
            facts: Other numbers to keep.
            missing: Contenders that cannot run here, and why.
            graphs: On a GPU: another race between the same calls as CUDA graphs.
        """
        contenders, missing = dict(contenders), dict(missing or {})
        result = dict(
            kind="race",
            suite=suite,
            case=case,
            **work._asdict(),
            facts=dict(facts or {}),
            missing=missing,
        )
        for run in contenders.values():
            run()  # compiles, tunes, makes the optimiser's state
            run()
        peaks = {name: measure.peak_memory(run, self._device) for name, run in contenders.items()}
        times = self._turns(contenders, seconds, fewest)
        self._keep(result | dict(seconds=times, memory=peaks))
        if graphs and self._device.type == "cuda":
            self._race_graphs(result, contenders, seconds, fewest)
        return times

    def _race_graphs(
        self, result: dict[str, Any], contenders: Mapping[str, Callable[[], object]], seconds: float, fewest: int
    ) -> None:
        """The same contenders as CUDA graphs, against each other: what is left is the device's own time."""
        replays, missing = {}, dict(result["missing"])
        for name, run in contenders.items():
            try:
                replays[name] = measure.graphed(run)
            except RuntimeError as error:
                missing[name] = f"cannot be captured: {str(error).splitlines()[0]}"
        if next(iter(contenders)) in replays:
            times = measure.take_turns(replays, self._device, seconds, fewest)
            case = names.as_graphs(result["case"])
            self._keep(result | dict(case=case, seconds=times, memory={}, missing=missing))

    def growth(
        self,
        suite: str,
        case: str,
        quantity: str,
        contenders: Mapping[float, Callable[[], object]],
        *,
        seconds: float = SECONDS,
        fewest: int = 5,
    ) -> None:
        """How the time of one thing grows with a size: its sizes race each other, and the exponent is fitted."""
        for run in contenders.values():
            run()
        times = self._turns({str(size): run for size, run in contenders.items()}, seconds, fewest)
        sizes: Sequence[float] = list(contenders)
        self._keep(dict(kind="growth", suite=suite, case=case, quantity=quantity, sizes=sizes, seconds=times))

    def skip(self, suite: str, case: str, why: str) -> None:
        """A case that this machine cannot run in reasonable time: the report says so."""
        self.record(kind="skipped", suite=suite, case=case, why=why)

    def record(self, **result: Any) -> None:
        """Keeps a result that was not measured by turns: in other processes, by a profiler, or not at all."""
        self._benchmark.pedantic(lambda: None, rounds=1)
        self._keep(result)

    def _turns(
        self, contenders: Mapping[str, Callable[[], object]], seconds: float, fewest: int
    ) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {}

        def all_rounds() -> None:
            times.update(measure.take_turns(contenders, self._device, seconds, fewest))

        self._benchmark.pedantic(all_rounds, rounds=1)
        # The statistics of the first contender in place of those of the whole race.
        stats = self._benchmark.stats.stats
        stats.data.clear()
        for value in times[next(iter(contenders))]:
            stats.update(value)
        return times

    def _keep(self, result: dict[str, Any]) -> None:
        self._benchmark.extra_info.setdefault("results", []).append(result)
        _finished.append(result)


@pytest.fixture
def race(benchmark: Any, device: torch.device) -> Race:
    return Race(benchmark, device)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """The machine's name is nobody's business; what it can do is."""
    machine_info.clear()
    machine_info.update(measure.machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _finished:
        terminalreporter.section("paired comparison: ours / theirs, median of rounds [95 % interval]")
        terminalreporter.write_line(tables.text_table(_finished))
