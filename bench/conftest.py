"""What the suites share: the device, the race between contenders, and the table at the end of ``pytest bench``."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import lines, measure, names, tables
from bench.workload import UNKNOWN_WORK, Work
from cmsbert_fast.training.distributed import keep_freed_memory

SECONDS = 20.0  # a race takes about so long, its fewest rounds permitting
COMPILE_ASKED = "compiled on a GPU only with --compile: a minute each"
_finished: list[dict[str, Any]] = []
_path: Path | None = None  # of the JSON lines


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.addoption
    add(
        "--lines",
        type=Path,
        metavar="FILE",
        help="add each result to FILE; leave out tests that FILE says are finished",
    )
    add("--compile", action="store_true", help="on a GPU, race torch.compile's contenders too")
    add("--seconds", type=float, metavar="S", help="how long a race takes at most, its fewest rounds permitting")


def pytest_configure(config: pytest.Config) -> None:
    global _path
    _path = config.getoption("--lines")


@pytest.hookimpl(trylast=True)  # after -k has chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _path is None:
        return
    known = lines.finished(_path)
    left_out = [item for item in items if item.nodeid in known]
    items[:] = [item for item in items if item.nodeid not in known]
    config.hook.pytest_deselected(items=left_out)
    if items and not config.option.collectonly:
        lines.begin(_path, measure.machine(_device()))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and _path is not None:
        lines.append(_path, kind="finished", test=report.nodeid)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def device() -> torch.device:
    if not torch.cuda.is_available():
        keep_freed_memory()  # as train.py does; here it serves every contender
    return _device()


@pytest.fixture(autouse=True)
def leave_no_memory():
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Race:
    """Times contenders in turns and hands the numbers to pytest-benchmark, whose JSON the report reads.

    pytest-benchmark's own statistics are those of the first contender, which is ours.
    """

    def __init__(self, benchmark: Any, device: torch.device, options: Any = None):
        self._benchmark = benchmark
        self._device = device
        self._most_seconds: float | None = getattr(options, "seconds", None)
        self.compiles = device.type == "cpu" or bool(getattr(options, "compile", False))

    def without_compiled(self, contenders: Mapping[str, Any]) -> dict[str, str]:
        """Those that torch.compile would make but that nobody asked for, and why they are missing."""
        return {} if self.compiles else {name: COMPILE_ASKED for name in contenders if names.is_compiled(name)}

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
        pause: float = 0.0,
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
            pause: Seconds before each call: contenders with threads of their own, which spin for a while after a call,
                would slow the next one down.
        """
        contenders, missing = dict(contenders), dict(missing or {})
        seconds = min(seconds, self._most_seconds or seconds)
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
        times = self._turns(contenders, seconds, fewest, pause)
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
        seconds = min(seconds, self._most_seconds or seconds)
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
        self, contenders: Mapping[str, Callable[[], object]], seconds: float, fewest: int, pause: float = 0.0
    ) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {}

        def all_rounds() -> None:
            times.update(measure.take_turns(contenders, self._device, seconds, fewest, pause=pause))

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
        if _path is not None:
            lines.append(_path, **result)


@pytest.fixture
def race(benchmark: Any, device: torch.device, pytestconfig: pytest.Config) -> Race:
    return Race(benchmark, device, pytestconfig.option)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """The machine's name is nobody's business; what it can do is."""
    machine_info.clear()
    machine_info.update(measure.machine(_device()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _finished:
        terminalreporter.section("paired comparison: ours / theirs, median of rounds [95 % interval]")
        terminalreporter.write_line(tables.text_table(_finished))
