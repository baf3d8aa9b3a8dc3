"""Progress of long work on stderr: one live line on a terminal, plain lines elsewhere."""

import contextlib
import contextvars
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Live
from rich.table import Column

T = TypeVar("T")
EVERY = 30.0  # seconds between two plain lines
_HIDDEN = contextvars.ContextVar("hidden", default=False)


@contextlib.contextmanager
def hidden(wanted: bool = True) -> Iterator[None]:
    """No progress within is shown, if that is wanted."""
    token = _HIDDEN.set(wanted or _HIDDEN.get())
    try:
        yield
    finally:
        _HIDDEN.reset(token)


class Progress:
    """The progress of one piece of work; a context manager.

    The last line stands when the work has ended: it names all that was done, the time it took and what was told last.

    Args:
        title: What is done.
        total: Of how many steps.
        unit: What a step is, in the plural.
        done: How many were done before.
        show: False: prints nothing.
        plain: Whether lines are also printed where there is no terminal.
        delay: Seconds before anything is shown, for work that may be short.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str = "steps",
        *,
        done: int = 0,
        show: bool = True,
        plain: bool = True,
        delay: float = 0.0,
    ) -> None:
        self._title, self._total, self._unit, self._before = title, total, unit, done
        self._done: float = done
        self._started = self._printed = time.monotonic()
        self._delay, self._text = delay, ""
        console = Console(stderr=True)
        terminal = console.is_terminal and not console.is_dumb_terminal
        show = show and not _HIDDEN.get()
        self._plain = show and plain and not terminal
        self._live = _live(console) if show and terminal else None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None and self._task is not None:
            self._refresh()
            self._live.stop()
        elif self._plain and kind is None and self._seconds() >= self._delay:
            self._print(f"{self._line()} in {_clock(self._seconds())}{self._more()}")

    def advance(self, count: float = 1, text: str | None = None) -> None:
        """So many more steps are done; ``text`` is shown behind the figures from now on."""
        self._done += count
        if text is not None:
            self._text = text
        if self._live is not None:
            if self._task is None and self._seconds() >= self._delay:
                self._task = self._live.add_task(self._title, total=self._total, completed=self._before, text="")
                self._live.start()
            self._refresh()
        elif self._plain and time.monotonic() - self._printed >= EVERY:
            rate = (self._done - self._before) / self._seconds()
            left = f"{_clock((self._total - self._done) / rate)} left" if rate else ""
            self._print(f"{self._line()}, {left}{self._more()}")
            self._printed = time.monotonic()

    def _refresh(self) -> None:
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self._done, text=self._text)

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _line(self) -> str:
        return f"{self._title}: {self._done:.0f}/{self._total} {self._unit}"

    def _more(self) -> str:
        return f", {self._text}" if self._text else ""

    @staticmethod
    def _print(line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def tracked(items: Iterable[T], title: str, unit: str, **options: Any) -> Iterator[T]:
    """Yields the items, and shows how many have been dealt with; ``options`` as of :class:`Progress`.

    Where ``items`` has no length, ``total`` is one of them.
    """
    if isinstance(items, Sized):
        options.setdefault("total", len(items) + options.get("done", 0))
    with Progress(title, unit=unit, **options) as progress:
        for item in items:
            yield item
            progress.advance()


def _live(console: Console) -> Live:
    """The line: in a narrow terminal what is told gives way, not the figures."""

    def text(field: str, ratio: int | None = None) -> TextColumn:
        column = Column(no_wrap=True, overflow="ellipsis", ratio=ratio)
        return TextColumn(f"{{task.{field}}}", markup=False, table_column=column)

    columns = (text("description"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Live(*columns, text("fields[text]", ratio=1), console=console, expand=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
